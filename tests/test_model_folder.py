"""Hugging Face checkpoint folders: what is saved is what is loaded, and nothing else is."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SHAPES, digest, random_llama, randomise, some_tokens
from safetensors.torch import load_file, save_file

from common import checkpoint
from common.cli import InputError
from model import Llama

WEIGHTS = "model.safetensors"


@torch.no_grad()
def same_logits(a: Llama, b, atol: float = 0.0) -> None:
    tokens = some_tokens(2, 96)
    logits = b(tokens)
    if not isinstance(logits, torch.Tensor):  # of transformers
        logits = logits.logits
    torch.testing.assert_close(a(tokens), logits, atol=atol, rtol=0)


# --------------------------------------------------------------------------------------------
# With transformers


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_what_we_save(shape, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = random_llama(SHAPES[shape])
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    same_logits(ours, theirs, atol=1e-4)


def test_shards_written_by_transformers_load_as_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPES["llama3-8b"]))
    randomise(theirs)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    state = Llama.from_pretrained(tmp_path).state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state[name], tensor)


def test_transformers_loads_our_shards(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    ours = random_llama(SHAPES["llama3-8b"])
    ours.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert not (tmp_path / WEIGHTS).exists()
    theirs, report = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    same_logits(ours, theirs, atol=1e-4)
    same_logits(ours, Llama.from_pretrained(tmp_path))


# --------------------------------------------------------------------------------------------
# Saving and loading


@pytest.mark.parametrize("shape", ["smollm2", "biases"])
def test_save_load_save_is_byte_identical(shape, tmp_path):
    random_llama(SHAPES[shape]).save_pretrained(tmp_path / "a")
    Llama.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    for name in ("config.json", WEIGHTS):
        assert digest(tmp_path / "a" / name) == digest(tmp_path / "b" / name)


def test_saving_loses_no_field_of_the_config(tmp_path):
    hf_config = {**SHAPES["smollm2"], "extra_field": [1], "torch_dtype": "float16"}
    random_llama(hf_config).save_pretrained(tmp_path / "a")
    Llama.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    expected = {**SHAPES["smollm2"], "extra_field": [1], "dtype": "float32"}
    for name in ("a", "b"):
        assert json.loads((tmp_path / name / "config.json").read_text()) == expected


def test_tied_embeddings_are_saved_once(tmp_path):
    random_llama(SHAPES["smollm2"]).save_pretrained(tmp_path)
    names = load_file(tmp_path / WEIGHTS)
    assert "model.embed_tokens.weight" in names and "lm_head.weight" not in names


def test_bfloat16_is_loaded_as_asked(tmp_path):
    model = random_llama(SHAPES["biases"])
    model.save_pretrained(tmp_path)
    half = Llama.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, p in half.named_parameters():
        assert torch.equal(p, model.state_dict()[name].bfloat16())
    assert half(some_tokens(1, 8)).dtype == torch.bfloat16


def test_bfloat16_is_saved_as_it_is(tmp_path):
    random_llama(SHAPES["biases"]).bfloat16().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    tensors = load_file(tmp_path / WEIGHTS).values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


# --------------------------------------------------------------------------------------------
# Damaged folders


@pytest.fixture
def folder(tmp_path) -> Path:
    random_llama(SHAPES["llama2"]).save_pretrained(tmp_path / "m")
    Llama.from_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.mark.parametrize("name, tensor, named", [
    ("model.norm.weight", None, "1 tensors are missing .* model.norm.weight"),
    ("model.odd", torch.ones(1), f"{WEIGHTS}: tensor model.odd does not belong"),
    ("lm_head.weight", torch.ones(63, 32), r"lm_head.weight is \(63, 32\), .* asks \(64, 32\)"),
], ids=["missing", "left over", "wrong shape"])
def test_every_tensor_must_fit_the_config(name, tensor, named, folder):
    state = load_file(folder / WEIGHTS)
    if tensor is None:
        del state[name]
    else:
        state[name] = tensor
    save_file(state, folder / WEIGHTS)
    with pytest.raises(InputError, match=named):
        Llama.from_pretrained(folder)


def test_tables_of_old_folders_are_passed_over(folder):
    """Some Llama 2 folders have RoPE's frequencies among their weights."""
    state = load_file(folder / WEIGHTS)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    before = Llama.from_pretrained(folder)
    save_file(state, folder / WEIGHTS)
    same_logits(Llama.from_pretrained(folder), before)


def test_a_truncated_file_is_named(folder):
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-100])
    with pytest.raises(InputError, match=f"{WEIGHTS}: not a readable safetensors file"):
        Llama.from_pretrained(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=f"has neither {WEIGHTS} nor {WEIGHTS}.index.json"):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("index, named", [
    ({"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}},
     "model-2.safetensors: no such file, but model.safetensors.index.json names it"),
    ({"weight_map": {}}, "model.safetensors.index.json: its weight_map names no file"),
    ({"weight_map": [1]}, "model.safetensors.index.json: its weight_map names no file"),
    ({}, "model.safetensors.index.json: its weight_map names no file"),
])
def test_a_broken_index_is_named(index, named, folder):
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=named):
        Llama.from_pretrained(folder)


@pytest.mark.parametrize("content, named", [
    (None, "config.json: no such file"),
    ("{", "config.json: cannot be read as JSON"),
    ("[]", "config.json: expected a JSON object"),
])
def test_a_folder_without_a_readable_config_is_refused(content, named, folder):
    if content is None:
        (folder / "config.json").unlink()
    else:
        (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=named):
        Llama.from_pretrained(folder)
