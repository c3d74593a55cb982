"""config.json: what cannot be computed, or makes no sense, is refused in one line, at once."""

import json
import math
import time

import pytest
from conftest import SHAPES, family_config, random_llama, tiny_config

from common.checkpoint import llama_fields
from common.cli import InputError
from model import Config, Llama

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads", "num_key_value_heads", "head_dim")


def refusal(**changes) -> str:
    """The one line in which a config.json with these changes is refused, at once."""
    started = time.time()
    with pytest.raises(InputError) as error:
        llama_fields(tiny_config(**changes), "folder/config.json")
    assert time.time() - started < 0.1
    line = str(error.value)
    assert line.startswith("folder/config.json: ") and "\n" not in line and len(line) < 200
    return line


@pytest.mark.parametrize("value", [True, "32", 1.5, 32.0, -32, 0, [32], 10**30, math.nan],
                         ids=repr)
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_whole_numbers(name, value):
    assert f"{name} must be a whole number from 1 to" in refusal(**{name: value})


@pytest.mark.parametrize("name", SIZES[:5])
def test_a_size_must_be_given(name):
    assert f"{name} must be a whole number" in refusal(**{name: None})


@pytest.mark.parametrize("name, most", [
    ("num_hidden_layers", 1000), ("num_attention_heads", 1000), ("hidden_size", 10**7),
    ("vocab_size", 10**7), ("intermediate_size", 10**7),
])
def test_absurd_sizes_are_refused(name, most):
    assert f"{name} must be a whole number from 1 to {most:,}" in refusal(**{name: most + 1})


def test_ten_million_layers_are_refused_before_any_is_made(tmp_path):
    """On the way that every script takes: from a folder."""
    random_llama(tiny_config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny_config(num_hidden_layers=10**7)))
    started = time.time()
    with pytest.raises(InputError) as error:
        Llama.from_pretrained(tmp_path)
    assert time.time() - started < 1
    assert str(error.value).startswith(f"{path}: num_hidden_layers must be")


@pytest.mark.parametrize("value", [
    0, -10000.0, math.nan, math.inf, True, "1e4", None, pytest.param(10**400, id="10**400"),
], ids=repr)
def test_rope_theta_is_a_positive_number(value):
    assert "rope_theta must be a number above 0" in refusal(rope_theta=value)
    in_newer_spelling = {"rope_type": "default", "rope_theta": value}
    assert "rope_theta must be a number above 0" in refusal(rope_parameters=in_newer_spelling)


@pytest.mark.parametrize("value", [0, -1e-5, math.nan, math.inf, True, "1e-5", None], ids=repr)
def test_rms_norm_eps_is_a_positive_number(value):
    assert "rms_norm_eps must be a number above 0" in refusal(rms_norm_eps=value)


@pytest.mark.parametrize("value", [5, 1])
def test_head_dim_is_even(value):
    """RoPE turns features in pairs."""
    assert "head_dim must be" in refusal(head_dim=value)


@pytest.mark.parametrize("value", ["512", True, 1.5, -512, [512]], ids=repr)
def test_the_context_length_is_a_whole_number(value):
    assert "max_position_embeddings must be" in refusal(max_position_embeddings=value)


@pytest.mark.parametrize("name", ["tie_word_embeddings", "attention_bias", "mlp_bias"])
def test_switches_are_true_or_false(name):
    for value in ("false", 1, [True]):
        assert f"{name} must be true or false" in refusal(**{name: value})


@pytest.mark.parametrize("changes, named", [
    ({"model_type": "gemma"}, "model_type must be one of llama, mistral, qwen2, qwen3, found"),
    ({"model_type": None}, "model_type must be one of llama, mistral, qwen2, qwen3, found 'None'"),
    ({"model_type": ["llama"]}, "model_type must be one of"),
    ({"hidden_act": "gelu"}, "hidden_act must be 'silu', found 'gelu'"),
    ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads"),
    ({"num_attention_heads": 64}, "head_dim must be"),  # 32 features are too few for 64 heads
    ({"rope_scaling": "linear"}, "rope_parameters or rope_scaling must be an object"),
    ({"rope_scaling": {"type": "yarn"}}, "rope_type must be 'default' or 'llama3', found 'yarn'"),
    ({"rope_scaling": {"rope_type": ["llama3"]}}, "rope_type must be 'default' or 'llama3'"),
])
def test_what_is_no_llama_is_refused(changes, named):
    assert named in refusal(**changes)


WINDOWS = pytest.mark.parametrize("family, changes, named", [
    ("Qwen2", {"use_sliding_window": True}, "use_sliding_window must be false"),
    ("Qwen3", {"use_sliding_window": True}, "use_sliding_window must be false"),
    ("Qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types must be"),
    ("Qwen3", {"head_dim": 8, "layer_types": "full_attention"}, "layer_types must be"),
    ("Mistral", {"sliding_window": 511}, "sliding_window must be null, or at least"),
    ("Mistral", {"sliding_window": True}, "sliding_window must be null, or at least"),
    ("Mistral", {"max_position_embeddings": 8192}, "sliding_window must be"),  # left out: 4096
    ("Mistral", {"sliding_window": 512, "max_position_embeddings": None}, "sliding_window must be"),
])


@WINDOWS
def test_sliding_windows_are_refused(family, changes, named):
    assert named in refusal(**family_config(family, **changes))


@pytest.mark.parametrize("family, changes", [
    ("Qwen2", {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1}),
    ("Qwen2", {"use_sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ("Qwen3", {"head_dim": 8, "sliding_window": None, "layer_types": None}),
    ("Mistral", {"sliding_window": None, "head_dim": None}),
    ("Mistral", {"sliding_window": 512}),
    ("Mistral", {}),
])
def test_windows_that_no_layer_uses_load(family, changes):
    Config.from_dict(family_config(family, **changes))


@pytest.mark.parametrize("family, name", [
    ("Qwen2", "num_key_value_heads"), ("Qwen3", "num_key_value_heads"), ("Qwen3", "head_dim"),
    ("Mistral", "num_key_value_heads"),
])
def test_what_transformers_would_guess_must_be_given(family, name):
    assert f"{name} must be a whole number" in refusal(
        **{**family_config(family, head_dim=8), name: None})


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Mistral"])
def test_yarn_is_refused_in_every_family(family):
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    assert "rope_type must be 'default' or 'llama3', found 'yarn'" in refusal(
        **family_config(family, head_dim=8, rope_scaling=yarn))


def test_switches_that_a_family_does_not_have_do_nothing():
    """As in transformers, which has no such switch there."""
    for family in ("Qwen2", "Mistral"):
        switched = family_config(family, attention_bias=True, mlp_bias=True)
        assert Config.from_dict(switched) == Config.from_dict(family_config(family))


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor",
                                  "original_max_position_embeddings"])
def test_llama3_rope_needs_its_four_numbers(name):
    rope = dict(SHAPES["llama3.2"]["rope_scaling"])
    llama_fields(tiny_config(rope_scaling=rope), "config.json")
    for value in (0, -1.0, math.nan, "8"):
        assert f"{name} must be" in refusal(rope_scaling={**rope, name: value})
    del rope[name]
    assert f"{name} must be" in refusal(rope_scaling=rope)


def test_what_may_be_left_out():
    """The defaults are those of Hugging Face's Llama."""
    hf_config = tiny_config()
    for name in ("num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings"):
        del hf_config[name]
    config = Config.from_dict(hf_config)
    assert config.num_key_value_heads == 4 and config.head_dim == 32 // 4
    assert config.rms_norm_eps == 1e-6 and config.rope["rope_theta"] == 10000.0
    assert not (config.tie_word_embeddings or config.attention_bias or config.mlp_bias)


def test_null_is_as_good_as_left_out():
    names = ("num_key_value_heads", "head_dim", "rope_scaling", "attention_bias", "mlp_bias")
    assert Config.from_dict(tiny_config(**dict.fromkeys(names))) == Config.from_dict(
        tiny_config(num_key_value_heads=4))
