"""What memory a round will take: the budget by hand, by a real block, and by PyTorch's tracker."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SHIPPED, random_llama, run, tiny_config

import bench.memory
import train
from bench.memory import memory, packed_pairs, saved_bytes
from common.throughput import Throughput, training_flops
from model import Config, Llama
from scpo import EncodedPair

LLAMA3_8B = tiny_config(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    rope_theta=500000.0,
)


def on_meta(hf_config: dict) -> Llama:
    with torch.device("meta"):
        return Llama(Config.from_dict(hf_config), hf_config)


def budget_of_8b(ranks: int, micro_batch_size: int, checkpointing: bool = True) -> dict[str, float]:
    """Of GSM8K: prompts of 242 tokens, responses of 512; batches of 16 pairs, 8 · 8 rows."""
    return memory(
        on_meta(LLAMA3_8B),
        torch.bfloat16,
        ranks,
        prompt=242,
        response=512,
        prompt_tokens=8 * 242,
        batch_size=16,
        micro_batch_size=micro_batch_size,
        max_num_seqs=64,
        activation_checkpointing=checkpointing,
    )


# --------------------------------------------------------------------------------------------
# The budget


N_8B = 8_030_261_248


def test_number_of_weights_of_llama_3_8b():
    assert sum(p.numel() for p in on_meta(LLAMA3_8B).parameters()) == N_8B


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_weights_moments_and_gradients_are_shared_by_the_ranks(ranks):
    kinds = budget_of_8b(ranks, micro_batch_size=16)
    assert kinds["weights, fp32"] == kinds["gradients, fp32"] == 4 * N_8B / ranks
    assert kinds["optimizer, 2 x fp32"] == 8 * N_8B / ranks
    assert kinds["training, at most"] > 4 * kinds["weights, fp32"]


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_each_rank_samples_from_a_whole_model(ranks):
    """In bf16: keys and values of 8 prompts and 64 responses, 32 layers of 8 heads of 128."""
    kinds = budget_of_8b(ranks, micro_batch_size=16)
    assert kinds["sampling: weights"] == 2 * N_8B
    assert kinds["sampling: cache"] == (1 + 1 / 64) * (8 * 242 + 64 * 512) * 32 * 2 * 8 * 128 * 2
    assert kinds["sampling, at most"] == sum(
        kinds[f"sampling: {kind}"] for kind in ("weights", "cache", "in passing"))


def test_gradients_are_whole_until_they_are_exchanged():
    """Of several micro-batches, after the last one: 8 pairs on each of two ranks, one at a time."""
    assert budget_of_8b(2, micro_batch_size=1)["gradients, fp32"] == 4 * N_8B


def test_activation_checkpointing_keeps_less_than_a_tenth():
    with_it = budget_of_8b(1, micro_batch_size=2, checkpointing=True)["activations"]
    without = budget_of_8b(1, micro_batch_size=2, checkpointing=False)["activations"]
    assert 10 * with_it < without


def test_saved_bytes_are_those_that_a_real_block_keeps():
    hf_config = tiny_config(hidden_size=64, intermediate_size=160)
    model = random_llama(hf_config)
    packed = packed_pairs(2, prompt=6, response=9)  # of 2 · (6 + 2 · 9) tokens
    x = torch.randn(1, 48, 64, requires_grad=True)
    angle = torch.randn(1, 48, 1, 8)
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](x, (angle, angle), packed, 0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    inside, outside = saved_bytes(model.config, packed, torch.float32)
    assert outside == 48 * 64 * 4
    assert inside == pytest.approx(measured, rel=0.02)


@pytest.mark.parametrize("ranks, more", [
    (1, ["--micro-batch-size", "2", "--micro-batches", "2"]),
    (2, ["--activation-checkpointing", "--micro-batches", "2"]),
    (4, ["--micro-batch-size", "4", "--activation-checkpointing"]),
    (8, ["--micro-batch-size", "2"]),
])
def test_the_budget_agrees_with_the_memory_tracker_of_pytorch(ranks, more):
    """On ranks that are not there, six layers of the 8B shape."""
    script = ROOT / "bench/llama8b.py"
    command = [sys.executable, script, "--pretend", str(ranks), "--layers", "6", *more]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    difference = float(re.search(r"budget .*\(([-+][0-9.]+) %\)", shown)[1])
    assert -5 < difference < 10, shown


# --------------------------------------------------------------------------------------------
# Speed


def test_flops_of_a_pair_by_hand():
    """Six per weight of a block and token, the vocabulary for the three response tokens alone.

    And n_heads · head_dim multiplications for what a token sees, twice, three times, in two layers:
    3² / 2 in the prompt, (5² - 3²) / 2 and (4² - 3²) / 2 in the responses.
    """
    model = on_meta(tiny_config())
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    attention = 2 * (3 * (2 * 2 * (3**2 + 5**2 - 3**2 + 4**2 - 3**2) / 2 * 32))
    flops = training_flops(model, [EncodedPair([1, 2, 3], [4, 5], [6], 1.0)])
    assert flops == 6 * blocks * 6 + 6 * 64 * 32 * 3 + attention


def test_flops_add_up_over_the_pairs():
    model = on_meta(tiny_config())
    pairs = [EncodedPair([1, 2, 3], [4, 5], None, 1.0), EncodedPair([1], [2, 3, 4], [5], 1.0)]
    assert training_flops(model, pairs) == sum(training_flops(model, [pair]) for pair in pairs)


def test_throughput_is_tokens_by_seconds(monkeypatch):
    """Eight tokens in two seconds, then eight more in two more."""
    clock = [100.0]
    monkeypatch.setattr("common.throughput.time.time", lambda: clock[0])
    throughput = Throughput(random_llama(tiny_config()))
    for seconds in (102.0, 104.0):
        throughput.add([EncodedPair([1, 2], [3], None, 1.0), EncodedPair([1, 2], [3], [4, 5], 1.0)])
        clock[0] = seconds
        assert throughput.metrics() == {"tok/s": "4"}  # of a CPU there is no more to tell


# --------------------------------------------------------------------------------------------
# --dry-run


def test_dry_run_prints_the_budget_and_makes_nothing(tmp_path, capsys):
    run(train, "--dry-run", "--out", tmp_path / "run")
    shown = capsys.readouterr().out
    assert "760,832 parameters" in shown and "fits in cpu" in shown
    assert "M1: up to 1000 problems x 8 = 8000 responses, 0.8M tokens; up to 160 steps" in shown
    assert "M2: up to 2000 problems x 8 = 16000 responses, 1.5M tokens; up to 315 steps" in shown
    assert not (tmp_path / "run").exists()


def write_model(folder, **changes) -> None:
    (folder / "config.json").write_text(json.dumps({**LLAMA3_8B, **changes}))
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).write_bytes((SHIPPED / name).read_bytes())


def test_dry_run_reads_no_weights(tmp_path, monkeypatch, capsys):
    """The folder of an 8B model without its safetensors, on a machine that has the room."""
    write_model(tmp_path)
    monkeypatch.setattr(bench.memory, "memory_of", lambda device: 1e13)
    run(train, "--model", tmp_path, "--dry-run", "--out", tmp_path / "run")
    assert f"{N_8B:,} parameters" in capsys.readouterr().out


def test_dry_run_refuses_what_cannot_fit(tmp_path, error_of):
    write_model(tmp_path, num_hidden_layers=320)
    message = error_of(train, "--model", tmp_path, "--dry-run", "--out", tmp_path / "run")
    assert message.startswith("error: --dry-run: training needs ")
    assert "--activation-checkpointing" in message and "--micro-batch-size" in message


@pytest.mark.parametrize("work, named", [
    ("training", "--activation-checkpointing"),
    ("sampling", "--max-num-seqs"),
])
def test_dry_run_names_what_to_lower(tmp_path, monkeypatch, error_of, work, named):
    """Room for all but a byte of what this work takes, and for all of the other."""
    needs = {"training, at most": 10.0, "sampling, at most": 10.0, f"{work}, at most": 11.0}
    monkeypatch.setattr(bench.memory, "memory", lambda *args, **kwargs: needs)
    monkeypatch.setattr(bench.memory, "memory_of", lambda device: 10.0)
    message = error_of(train, "--dry-run", "--out", tmp_path / "run")
    assert f"--dry-run: {work} needs" in message and named in message
