"""Checkpoint folders from strangers: loaded as by transformers, or refused in one line, at once."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import BOS, EOS, SHIPPED, random_llama, run, some_tokens, tiny_config
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors

import sample
from common.options import load_checkpoint
from model import Llama

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def refusal(folder, tmp_path, error_of):
    """The one line in which sample.py refuses the folder; nothing is left of the call."""

    def refuse() -> str:
        started = time.time()
        before = sorted(tmp_path.rglob("*"))
        message = error_of(sample, "--limit", "2", "--model", folder, "--out", tmp_path / "out")
        assert time.time() - started < 2
        assert sorted(tmp_path.rglob("*")) == before
        assert str(folder) in message and len(message) < 400
        return message

    return refuse


def change(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --------------------------------------------------------------------------------------------
# config.json, on the way that a script takes


@pytest.mark.parametrize("name, value", [
    ("head_dim", -32), ("head_dim", "32"), ("head_dim", 1.5), ("hidden_size", True),
    ("hidden_size", 10**30), ("num_hidden_layers", 10**7), ("rope_theta", 0), ("rope_theta", -1),
    ("rms_norm_eps", float("nan")), ("max_position_embeddings", "1024"),
], ids=str)
def test_a_number_of_the_config_that_makes_no_sense_is_named(folder, refusal, name, value):
    change(folder / "config.json", **{name: value})
    assert f"{folder / 'config.json'}: {name} must be" in refusal()


def test_rope_that_differs_by_layer_type_is_refused(folder, refusal):
    nested = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e6}}
    change(folder / "config.json", rope_parameters=nested)
    assert "rope_parameters must be the same for all layers" in refusal()


@pytest.mark.parametrize("name", ["config.json", "generation_config.json",
                                  "tokenizer_config.json", "tokenizer.json", INDEX])
@pytest.mark.parametrize("content", ["[" * 10**5, '{"a":' * 10**5, "\x00", "[]", "9" * 5000],
                         ids=["lists", "objects", "zeros", "list", "long number"])
def test_json_that_is_no_object_is_named(folder, refusal, name, content):
    (folder / name).write_text(content)
    assert f"{folder / name}: " in refusal()


# --------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.uint8, torch.int64,
                                   torch.float8_e4m3fn], ids=str)
def test_quantized_weights_are_refused_by_name(folder, refusal, dtype):
    weights = load_file(folder / WEIGHTS)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(dtype)
    save_file(weights, folder / WEIGHTS)
    assert f"{folder / WEIGHTS}: tensor model.norm.weight has the type {dtype}" in refusal()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a/b.safetensors",
                                  "", ".", "..", 7, None, [WEIGHTS]], ids=repr)
def test_an_index_names_files_of_its_folder_alone(folder, refusal, name):
    shutil.copyfile(folder / WEIGHTS, folder.parent / "outside.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    refusal()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x00" * 64, b"\x02" + b"\x00" * 7 + b"{}"],
                         ids=repr)
def test_what_is_no_safetensors_file_is_named(folder, refusal, content):
    (folder / WEIGHTS).write_bytes(content)
    assert str(folder) in refusal()


def test_a_tied_checkpoint_that_holds_its_head_too_is_loaded(tmp_path):
    """As some tools save it."""
    transformers = pytest.importorskip("transformers")
    hf_config = tiny_config(tie_word_embeddings=True)
    random_llama(hf_config).save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, tmp_path / WEIGHTS, metadata={"format": "pt"})
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = some_tokens(2, 40)
    with torch.no_grad():
        ours = Llama.from_pretrained(tmp_path)(tokens)
        torch.testing.assert_close(ours, theirs(tokens).logits, rtol=0, atol=1e-4)


def test_a_tied_head_that_differs_is_refused(folder, refusal):
    """transformers takes it as it is, and so would have another model."""
    weights = load_file(folder / WEIGHTS)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    save_file(weights, folder / WEIGHTS)
    assert "set tie_word_embeddings to false" in refusal()


# --------------------------------------------------------------------------------------------
# Tokens


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [10**6, -1, "1", True, [None], [1, 10**30]], ids=repr)
def test_an_eos_token_id_is_a_token_of_the_model(folder, refusal, name, value):
    change(folder / name, eos_token_id=value)
    assert "eos_token_id" in refusal()


def test_token_ids_beyond_the_model_are_refused(folder, refusal):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zzz"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "tokenizer.json names token 5000, the model knows only 175" in refusal()


def test_a_bos_beyond_the_model_is_refused(folder, refusal):
    """The post-processor has numbers of its own, which are not in the vocabulary."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 6000)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert "tokenizer.json names token 6000" in refusal()


def test_a_tokenizer_that_appends_eos_is_refused(folder, refusal):
    """Behind it a model would begin another text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    assert f"{folder}/tokenizer.json: ends every prompt with EOS" in refusal()


@pytest.mark.parametrize("kept", [[], ["<|begin_of_text|>", "<|end_of_text|>", "x"]], ids=str)
def test_a_tokenizer_that_knows_too_few_words_is_named(folder, refusal, kept):
    """Without a token for unknown words it knows nothing to say of the others."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"] = {"type": "WordLevel", "unk_token": "none",
                          "vocab": {word: vocabulary.get(word, 3) for word in kept}}
    tokenizer["added_tokens"], tokenizer["post_processor"] = [], None
    path.write_text(json.dumps(tokenizer))
    assert "tokenizer.json: " in refusal()


def test_what_is_whole_is_loaded(folder, tmp_path):
    """So that the tests above are not passed by a folder that is refused anyway."""
    load_checkpoint(folder)
    run(sample, "--limit", "1", "--k", "1", "--model", folder, "--out", tmp_path / "out")
    assert (tmp_path / "out").exists()
