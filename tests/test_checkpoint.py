"""Weights in several files: how a large checkpoint is split, and put together again."""

import json

import pytest
import torch
from conftest import random_llama, tiny_config
from safetensors import safe_open
from safetensors.torch import load_file

import common.checkpoint
from common.checkpoint import read_into, split_by_bytes, weight_files, write_tensors
from model import Llama


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request) -> Llama:
    return random_llama(tiny_config(tie_word_embeddings=request.param))


@pytest.fixture
def folder(model, tmp_path, monkeypatch):
    """The model, in files of 20,000 bytes."""
    monkeypatch.setattr(common.checkpoint, "SHARD_BYTES", 20_000)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_a_large_checkpoint_is_split_into_numbered_files(folder):
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    for number, path in enumerate(files, 1):
        assert path.name == f"model-{number:05d}-of-{len(files):05d}.safetensors"
        assert path.stat().st_size < 22_000  # with the file's own header
    assert weight_files(folder) == files


def test_the_index_says_where_each_tensor_is(folder, model):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    weight_map = index["weight_map"]
    assert set(weight_map) == set(model.state_dict())
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}  # transformers refuses others
            found.update(dict.fromkeys(file.keys(), path.name))
    assert found == weight_map
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in model.parameters())


def test_files_are_put_together_again(folder, model):
    tokens = torch.arange(20)[None]
    again = Llama.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))


def test_transformers_puts_them_together_too(folder, model):
    transformers = pytest.importorskip("transformers")
    tokens = torch.arange(20)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(tokens).logits
        torch.testing.assert_close(logits, model(tokens), rtol=1e-4, atol=1e-4)


def test_a_small_checkpoint_is_one_file_without_an_index(model, tmp_path):
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.safetensors", "config.json"}


def test_a_file_is_as_full_as_it_may_be_and_no_fuller(monkeypatch):
    """Sizes in bytes 8, 8, 4, 40, 4 and a limit of 20: the 40 get a file of their own."""
    monkeypatch.setattr(common.checkpoint, "SHARD_BYTES", 20)
    tensors = {}
    for name, size in (("a", 2), ("b", 2), ("c", 1), ("d", 10), ("e", 1)):
        tensors[name] = torch.zeros(size)
    assert split_by_bytes(tensors) == [["a", "b", "c"], ["d"], ["e"]]


@pytest.mark.parametrize("limit", [20, 10**9], ids=["several files", "one file"])
def test_tensors_come_back_as_they_were(tmp_path, monkeypatch, limit):
    """As training's checkpoints need it: into tensors that exist, whatever is in them."""
    monkeypatch.setattr(common.checkpoint, "SHARD_BYTES", limit)
    tensors = {f"layer.{i}.weight": torch.randn(3, i + 1) for i in range(4)}
    write_tensors(tmp_path, tensors)
    targets = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    read_into(targets, tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(targets[name], tensor)
    assert len(weight_files(tmp_path)) == (4 if limit == 20 else 1)


def test_a_view_is_saved_without_what_it_is_a_view_of(tmp_path):
    """As a transposed tensor, or a row of a larger one."""
    whole = torch.randn(100, 8)
    write_tensors(tmp_path, {"row": whole[3], "turned": whole[:2].T})
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["row"], whole[3]) and torch.equal(found["turned"], whole[:2].T)
    assert (tmp_path / "model.safetensors").stat().st_size < 1000
