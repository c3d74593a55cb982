"""Several processes do what one does: the same samples, losses and weights, also when their number changes midway."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, random_llama, tiny_config
from safetensors.torch import load_file
from test_train import SMALL, TOY, run

import model as model_file
import scpo
import train
import vote
from model import Llama, memory, saved_bytes, token_logps, training_flops

LLAMA3_8B = tiny_config(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                        num_attention_heads=32, num_key_value_heads=8, rope_theta=500000.0)


def launch(ranks: int, *argv) -> subprocess.Popen:
    """train.py on so many gloo processes, in a session of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen([*torchrun, "train.py", *map(str, argv)], cwd=ROOT, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def finish(process: subprocess.Popen) -> str:
    shown = process.communicate(timeout=200)[0]
    assert process.returncode == 0, shown[-2000:]
    return shown


def assert_alike(a: Path, b: Path, rounds: int) -> None:
    """The same files; losses and weights, computed in another order, to 1e-5."""
    for folder in (f"M{t}" for t in range(1, rounds + 1)):
        for name in ("problems.jsonl", "responses.jsonl"):
            assert (a / folder / name).read_bytes() == (b / folder / name).read_bytes()
        for name in ("pairs.jsonl", "log.jsonl"):
            for x, y in zip(vote.read_jsonl(a / folder / name), vote.read_jsonl(b / folder / name), strict=True):
                assert {k: v for k, v in x.items() if not isinstance(v, float)} == {
                    k: v for k, v in y.items() if not isinstance(v, float)}
                assert y.get("loss", 0) == pytest.approx(x.get("loss", 0), rel=1e-5)
                assert [v for v in y.values() if isinstance(v, float)] == pytest.approx(
                    [v for v in x.values() if isinstance(v, float)], rel=1e-3, abs=1e-4)
        weights = [load_file(f / folder / "model/model.safetensors") for f in (a, b)]
        for name, tensor in weights[0].items():
            assert (weights[1][name] - tensor).norm() < 1e-5 * tensor.norm()


def test_two_ranks_make_the_files_and_weights_of_one(tmp_path, monkeypatch):
    """Two rounds: several batches of samples, accumulation, clipping, recomputation, a last pair for one rank alone."""
    how = [*SMALL, "--batch-size", "5", "--micro-batch", "1", "--clip", "0.5", "--choose", "votes", "--epochs", "2",
           "--rows", "16", "--supervision", "reward", "--limit", "23", "--new-problems", "0", "8"]
    run(monkeypatch, train, *how, "--out", tmp_path / "one")
    shown = finish(launch(2, *how, "--recompute", "--out", tmp_path / "two"))
    assert shown.count("M2 optimise:") == 1  # the first rank alone speaks
    assert_alike(tmp_path / "one", tmp_path / "two", 2)
    assert (tmp_path / "one/M2/eval.json").read_bytes() == (tmp_path / "two/M2/eval.json").read_bytes()
    assert any(step["pairs"] % 2 for step in vote.read_jsonl(tmp_path / "two/M1/log.jsonl"))


def test_two_ranks_in_bfloat16(tmp_path, monkeypatch):
    """Blocks put together in bf16, over weights in fp32: the same samples, and about the same first loss."""
    how = [*SMALL, "--rounds", "1", "--dtype", "bfloat16", "--limit", "16", "--rows", "16"]
    run(monkeypatch, train, *how, "--out", tmp_path / "one")
    finish(launch(2, *how, "--out", tmp_path / "two"))
    logs = [vote.read_jsonl(tmp_path / name / "M1/log.jsonl") for name in ("one", "two")]
    assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["loss"], rel=0.02) and len(logs[0]) == len(logs[1])
    assert (tmp_path / "one/M1/responses.jsonl").read_bytes() == (tmp_path / "two/M1/responses.jsonl").read_bytes()
    assert {t.dtype for t in load_file(tmp_path / "two/M1/model/model.safetensors").values()} == {torch.float32}


def test_stopped_on_two_ranks_and_continued_on_four(tmp_path, monkeypatch):
    """SIGTERM while it trains: progress is kept, and another number of ranks ends with the weights of one process."""
    how = [*SMALL, "--rounds", "1", "--epochs", "12", "--micro-batch", "2"]
    run(monkeypatch, train, *how, "--out", tmp_path / "one")
    stopped = launch(2, *how, "--checkpoint-every", "5", "--out", tmp_path / "many")
    folder, deadline = tmp_path / "many/M1", time.time() + 120
    while not list(folder.glob("progress-*[0-9]")) and time.time() < deadline:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    assert "interrupted" in stopped.communicate(timeout=100)[0]
    kept = [path for path in folder.glob("progress-*") if path.suffix != ".part"]
    assert len(kept) == 1 and not (folder / "log.jsonl").exists()
    done = len(vote.read_jsonl(kept[0] / "log.jsonl"))
    assert kept[0].name == f"progress-{done}" and 0 < done < 24
    finish(launch(4, *how, "--out", tmp_path / "many"))
    assert_alike(tmp_path / "one", tmp_path / "many", 1)
    assert not list(folder.glob("progress-*"))


def test_two_steps_and_two_steps_are_four_to_the_bit(tmp_path, monkeypatch):
    """One process, stopped by SIGINT after any step, goes on where it was."""
    how = [*SMALL, "--rounds", "1", "--epochs", "2", "--limit", "20"]
    run(monkeypatch, train, *how, "--out", tmp_path / "whole")
    real, calls = train.accumulate, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    monkeypatch.setattr(train, "accumulate", interrupted)
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, train, *how, "--out", tmp_path / "parts")
    assert exit_.value.code == 130 and (tmp_path / "parts/M1/progress-2").exists()
    run(monkeypatch, train, *how, "--out", tmp_path / "parts")
    assert len(calls) == len(vote.read_jsonl(tmp_path / "whole/M1/log.jsonl"))  # no step was made twice
    for name in ("log.jsonl", "model/model.safetensors"):
        assert (tmp_path / "whole/M1" / name).read_bytes() == (tmp_path / "parts/M1" / name).read_bytes()


def test_a_second_process_is_kept_out_of_the_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    with train.alone(tmp_path / "run"):
        with pytest.raises(SystemExit) as exit_:
            run(monkeypatch, train, *SMALL, "--out", tmp_path / "run")
        assert exit_.value.code == 2 and "another process" in capsys.readouterr().err
    run(monkeypatch, train, *SMALL, "--rounds", "1", "--limit", "8", "--out", tmp_path / "run")


# --- log-probs without the vocabulary


@pytest.mark.parametrize("tied", [False, True])
def test_chunks_and_recomputation_change_no_gradient(tied, monkeypatch):
    model = random_llama(tiny_config(tie_word_embeddings=tied)).train()
    sequences = [([1, 2, 3], [4, 5, 6, 7, 1]), ([8, 9], [10, 1]), ([3] * 9, [11, 12, 13])]
    tokens, targets = scpo.collate(sequences)
    logits = model(tokens)  # the plain way, all at once
    expected = torch.stack([token_logps(logits[i, len(p) - 1 : len(p) + len(r) - 1], torch.tensor(r)).sum()
                            for i, (p, r) in enumerate(sequences)])
    wanted = torch.autograd.grad(expected @ torch.tensor([1.0, -2.0, 0.5]), list(model.parameters()))
    projected = []
    model.head = lambda hidden, head=model.head: projected.append(hidden.shape) or head(hidden)
    for chunk, recompute in ((1024, False), (3, False), (4, True)):
        monkeypatch.setattr(model_file, "CHUNK", chunk)
        model.model.recompute = recompute
        logps = model.response_logps(tokens, targets)
        torch.testing.assert_close(logps, expected)
        grads = torch.autograd.grad(logps @ torch.tensor([1.0, -2.0, 0.5]), list(model.parameters()))
        for ours, theirs in zip(grads, wanted):
            torch.testing.assert_close(ours, theirs)
        assert all(len(shape) == 2 and shape[0] <= chunk for shape in projected)  # (N, C), never (B, T, C)
        assert sum(shape[0] for shape in projected) == 2 * 10  # the ten response tokens, forward and backward
        projected.clear()


# --- checkpoints in several files


@pytest.mark.parametrize("tied", [False, True])
def test_a_large_checkpoint_is_split_and_indexed(tied, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    model = random_llama(tiny_config(tie_word_embeddings=tied))
    monkeypatch.setattr(model_file, "SHARD", 20_000)
    model.save_pretrained(tmp_path)
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all(path.stat().st_size < 22_000 for path in tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(model.state_dict()) and set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in model.parameters())
    tokens = torch.arange(20)[None]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(Llama.from_pretrained(tmp_path)(tokens), model(tokens))
        torch.testing.assert_close(theirs(tokens).logits, model(tokens), rtol=1e-4, atol=1e-4)


def test_ranks_that_fail_say_so_and_leave(tmp_path):
    process = launch(2, "--model", tmp_path / "nowhere", "--out", tmp_path / "run")
    shown = process.communicate(timeout=100)[0]
    assert process.returncode == 1 and "(exitcode: 2)" in shown  # torchrun's own, and that of our processes
    assert f"error: --model {tmp_path / 'nowhere'}: no such folder" in shown and 'train.py", line' not in shown


# --- what a run will take


def on_meta(raw: dict) -> Llama:
    with torch.device("meta"):
        return Llama(model_file.Config.from_dict(raw), raw)


def test_budget_of_the_8b_shape():
    model = on_meta(LLAMA3_8B)
    total = sum(p.numel() for p in model.parameters())
    assert total == 8_030_261_248
    how = {"prompt": 242, "response": 512, "batch_size": 16, "rows": 64, "recompute": True}
    for ranks in (1, 2, 4, 8):
        kinds = memory(model, torch.bfloat16, ranks, micro_batch=16, **how)
        assert kinds["weights, fp32"] == kinds["gradients, fp32"] == 4 * total / ranks
        assert kinds["optimiser, 2 x fp32"] == 8 * total / ranks
        assert kinds["sampling: weights"] == 2 * total
        assert kinds["sampling: cache"] == (1 + 1 / 64) * 64 * 754 * 32 * 2 * 8 * 128 * 2
        assert kinds["training, at most"] > 4 * kinds["weights, fp32"]
    accumulating = memory(model, torch.bfloat16, 2, micro_batch=1, **how)
    assert accumulating["gradients, fp32"] == 4 * total  # whole until they are exchanged
    kept = [memory(model, torch.bfloat16, 1, micro_batch=2, **how | {"recompute": again})["activations"]
            for again in (True, False)]
    assert 10 * kept[0] < kept[1]


@pytest.mark.parametrize("ranks, more", [
    (1, ["--micro-batch", "2", "--micro-batches", "2"]), (2, ["--recompute", "--micro-batches", "2"]),
    (4, ["--micro-batch", "4", "--recompute"]), (8, ["--micro-batch", "2"])])
def test_budget_against_the_memory_tracker_of_pytorch(ranks, more):
    command = [sys.executable, ROOT / "bench/llama8b.py", "--pretend", str(ranks), "--layers", "6", *more]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    difference = float(re.search(r"budget .*\(([-+][0-9.]+) %\)", out)[1])
    assert -5 < difference < 10, out


def test_saved_bytes_are_those_that_a_real_block_keeps():
    raw = tiny_config(hidden_size=64, intermediate_size=160, num_attention_heads=4, num_key_value_heads=2)
    model, kept = random_llama(raw), {}
    x = torch.randn(2, 24, 64, requires_grad=True)
    angle = torch.randn(1, 24, 1, 8)

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model.layers[0](x, (angle, angle), None, 0)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    measured = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    inside, outside = saved_bytes(model.config, 2, 24, torch.float32)
    assert outside == 2 * 24 * 64 * 4 and inside == pytest.approx(measured, rel=0.02)


def test_flops_of_one_matrix_are_counted_by_hand():
    model = on_meta(tiny_config())
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    flops = training_flops(model, [([1, 2, 3], [4, 5])])
    assert flops == 6 * blocks * 5 + 6 * 64 * 32 * 2 + 3 * (2 * 2 * 5**2 / 2 * 32) * 2  # T² / 2 · H · D, two layers


def test_dry_run_prints_the_budget_and_makes_nothing(tmp_path, monkeypatch, capsys):
    run(monkeypatch, train, "--dry-run", "--out", tmp_path / "run")
    shown = capsys.readouterr().out
    assert "760,832 parameters" in shown and "fits in cpu" in shown and not (tmp_path / "run").exists()
    assert "M2: up to 2000 problems x 8 = 16000 responses" in shown


def test_dry_run_refuses_what_cannot_fit(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA3_8B | {"num_hidden_layers": 320}))
    for name in ("tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_bytes((TOY / "model" / name).read_bytes())
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, train, "--model", tmp_path, "--dry-run", "--out", tmp_path / "run")
    shown = capsys.readouterr()
    assert exit_.value.code == 2 and "training needs" in shown.err and "--recompute" in shown.err
