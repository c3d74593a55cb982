"""Several processes do what one does: the same samples, losses and weights.

Also when their number changes midway, and when one of them fails.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import (ROOT, SHIPPED, SMALL, digest, family_config, random_llama, run,
                      stage_files)
from safetensors.torch import load_file

import sample
import train
from common import distributed
from common.files import read_jsonl

SHIPPED_WEIGHTS = SHIPPED / "model.safetensors"


def launch(ranks: int, *argv, script: Path | str = "train.py", **variables) -> subprocess.Popen:
    """train.py on so many gloo processes, in a session of its own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", str(ranks), str(script), *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen) -> str:
    """What it prints, when it has ended well."""
    shown = process.communicate(timeout=200)[0]
    assert process.returncode == 0, shown[-2000:]
    return shown


def split_floats(row: dict) -> tuple[dict, dict]:
    exact, floats = {}, {}
    for name, value in row.items():
        (floats if isinstance(value, float) else exact)[name] = value
    return exact, floats


def assert_alike(ours: Path, theirs: Path, rounds: int) -> None:
    """The same problems, responses and pairs; losses to 1e-5 and weights to 1e-5 of their norm,
    as they are computed in another order."""
    for round_ in (f"M{t}" for t in range(1, rounds + 1)):
        for name in ("problems.jsonl", "responses.jsonl", "pairs.jsonl"):
            a, b = ours / round_ / name, theirs / round_ / name
            assert digest(a) == digest(b)
        for name in ("reference.jsonl", "log.jsonl"):
            a, b = read_jsonl(ours / round_ / name), read_jsonl(theirs / round_ / name)
            for x, y in zip(a, b, strict=True):
                (x_exact, x_floats), (y_exact, y_floats) = split_floats(x), split_floats(y)
                assert x_exact == y_exact
                assert x_floats == pytest.approx(y_floats, rel=1e-3, abs=1e-4)
                assert x.get("loss", 0) == pytest.approx(y.get("loss", 0), rel=1e-5)
        a = load_file(ours / round_ / "model/model.safetensors")
        b = load_file(theirs / round_ / "model/model.safetensors")
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            assert (b[name] - tensor).norm() < 1e-5 * tensor.norm()


def test_two_ranks_make_the_files_and_weights_of_one(tmp_path):
    """Two rounds: several batches of samples, accumulation, clipping, activation checkpointing,
    rewards, epochs to select from, and a last pair that one rank has alone."""
    how = [*SMALL, "--batch-size", "5", "--micro-batch-size", "1", "--max-grad-norm", "0.5"]
    how += ["--select", "votes", "--epochs", "2", "--max-num-seqs", "32", "--method", "reward"]
    how += ["--limit", "23", "--new-problems", "0", "8", "--max-new-tokens", "96"]
    one, two = tmp_path / "one", tmp_path / "two"
    run(train, *how, "--out", one)
    shown = finish(launch(2, *how, "--activation-checkpointing", "--out", two))
    assert shown.count("M2 training:") == 1  # the first rank alone speaks
    assert "\r" not in shown and "it/s" not in shown  # and there is no bar
    assert_alike(one, two, 2)
    for name in ("M0/eval.json", "M1/eval.json", "M2/eval.json", "M2/eval_responses.jsonl"):
        assert digest(one / name) == digest(two / name)
    assert stage_files(one).keys() == stage_files(two).keys()
    assert any(step["pairs"] % 2 for step in read_jsonl(two / "M1/log.jsonl"))


def test_two_ranks_in_bfloat16(tmp_path):
    """Blocks put together in bf16, over weights in fp32: the same samples, and the loss of one
    process, which is a group of one."""
    how = [*SMALL, "--rounds", "1", "--dtype", "bfloat16", "--limit", "16", "--max-num-seqs", "16"]
    run(train, *how, "--out", tmp_path / "one")
    finish(launch(2, *how, "--out", tmp_path / "two"))
    logs = [read_jsonl(tmp_path / name / "M1/log.jsonl") for name in ("one", "two")]
    losses = [[step["loss"] for step in log] for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=2e-3)  # of the same weights
    for name in ("one", "two"):
        weights = load_file(tmp_path / name / "M1/model/model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        # and they hold more than bf16 could: updates smaller than its 8 bits are not lost
        assert any(not torch.equal(w, w.bfloat16().float()) for w in weights.values())
    responses = [tmp_path / name / "M1/responses.jsonl" for name in ("one", "two")]
    assert digest(responses[0]) == digest(responses[1])


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3"])
def test_two_ranks_train_qwen_as_one_does(finished, tmp_path, family):
    """With random weights, so on responses of another model. They lie where its own would be."""
    model = tmp_path / "model"
    hf_config = family_config(family, vocab_size=175, head_dim=8, tie_word_embeddings=True)
    random_llama(hf_config).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SHIPPED / name, model / name)
    how = [*SMALL, "--rounds", "1", "--no-eval", "--model", model]
    for out in (tmp_path / "one", tmp_path / "two"):
        run(train, *how, "--out", out, "--until", "M1/problems")
        shutil.copyfile(finished / "M1/responses.jsonl", out / "M1/responses.jsonl")
    run(train, *how, "--out", tmp_path / "one")
    finish(launch(2, *how, "--out", tmp_path / "two"))
    assert_alike(tmp_path / "one", tmp_path / "two", 1)
    before, after = (load_file(folder / "model.safetensors")
                     for folder in (model, tmp_path / "two/M1/model"))
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_stopped_on_two_ranks_and_continued_on_four_or_on_one(tmp_path):
    """SIGTERM while it trains: a checkpoint is kept, and another number of ranks ends with the
    weights of one process."""
    how = [*SMALL, "--rounds", "1", "--epochs", "12", "--micro-batch-size", "2", "--no-eval"]
    run(train, *how, "--out", tmp_path / "one")
    stopped = launch(2, *how, "--save-every", "5", "--out", tmp_path / "many")
    folder, deadline = tmp_path / "many/M1", time.time() + 120
    while not list(folder.glob("checkpoint-*[0-9]")) and time.time() < deadline:
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    assert "interrupted" in stopped.communicate(timeout=100)[0]

    [checkpoint] = [path for path in folder.glob("checkpoint-*") if path.suffix != ".part"]
    assert not (folder / "log.jsonl").exists()
    done = len(read_jsonl(checkpoint / "log.jsonl"))
    assert checkpoint.name == f"checkpoint-{done}" and 0 < done < 24
    shapes = {name: tensor.shape for name, tensor in load_file(SHIPPED_WEIGHTS).items()}
    for kind in ("weights", "exp_avg", "exp_avg_sq"):  # whole tensors, in fp32
        found = load_file(checkpoint / kind / "model.safetensors")
        assert {name: tensor.shape for name, tensor in found.items()} == shapes
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}

    shutil.copytree(tmp_path / "many", tmp_path / "alone")
    finish(launch(4, *how, "--out", tmp_path / "many"))
    run(train, *how, "--out", tmp_path / "alone")
    for name in ("many", "alone"):
        assert_alike(tmp_path / "one", tmp_path / name, 1)
        assert not list((tmp_path / name / "M1").glob("checkpoint-*"))


def test_two_ranks_use_what_one_had_sampled(tmp_path, monkeypatch):
    """Its finished batch is made unlike, to see it again in the end."""
    how = [*SMALL, "--rounds", "1", "--limit", "8", "--max-num-seqs", "8", "--extra", "0"]
    how += ["--no-eval", "--until", "M1/responses"]
    run(train, *how, "--out", tmp_path / "one")
    decode, made = sample.decode, []

    def fail_in_the_second_batch(*args):
        made.append(1)
        return decode(*args) if len(made) == 1 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(sample, "decode", fail_in_the_second_batch)
        with pytest.raises(ZeroDivisionError):
            run(train, *how, "--out", tmp_path / "two")
    [file] = (tmp_path / "two/M1").glob("responses.jsonl.batches-*")
    key, responses = json.loads(file.read_text())
    file.write_text(json.dumps([key, [[[], True] for _ in responses]]))
    finish(launch(2, *how, "--out", tmp_path / "two"))
    ours, theirs = ([text for row in read_jsonl(tmp_path / name / "M1/responses.jsonl")
                     for text in row["responses"]] for name in ("one", "two"))
    assert theirs.count("") == len(responses) == 8
    assert [text for text in theirs if text] == [a for a, b in zip(ours, theirs) if b]
    assert not list((tmp_path / "two/M1").glob("*.batches-*"))


@pytest.fixture
def order(monkeypatch) -> list:
    """What rank 0 of two does, in order."""
    done = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setattr(distributed, "all_gather_dict", lambda mine: done.append("all are here"))
    monkeypatch.setattr(distributed, "leave", done.append)
    monkeypatch.setattr(distributed.dist, "broadcast_object_list", lambda parts: None)
    return done


def test_rank_0_deletes_nothing_that_another_still_reads(order):
    distributed.on_main(order.append, "deleted")
    assert order == ["all are here", "deleted"]


def test_ranks_that_are_done_end_at_once_when_all_are(order):
    """A usual end has aborted one process in thirty runs, under load."""
    distributed.farewell()
    assert order == ["all are here", 0]


# The disk is full when a file of that name is written, by whichever rank.
FULL_DISK = """
import errno, os, sys
import common.checkpoint, common.files, common.journal, train
flush = common.files.flush
def full(file):
    if str(file.name).endswith(os.environ["FULL"]):
        raise OSError(errno.ENOSPC, "No space left on device")
    flush(file)
for module in (common.checkpoint, common.files, common.journal):
    module.flush = full
train.run_script(train.main, train.leave)
"""


def test_two_ranks_go_on_wherever_the_disk_was_full(tmp_path):
    """That of rank 1 within sampling, then that of rank 0 within a checkpoint."""
    how = [*SMALL, "--rounds", "1", "--limit", "16", "--max-num-seqs", "16", "--no-eval"]
    (tmp_path / "full.py").write_text(FULL_DISK)
    run(train, *how, "--out", tmp_path / "one")
    for file in ("M1/responses.jsonl.batches-1", "checkpoint-1.part/exp_avg/model.safetensors"):
        process = launch(2, *how, "--save-every", "1", "--out", tmp_path / "two",
                         script=tmp_path / "full.py", FULL=file, PYTHONPATH=str(ROOT))
        shown = process.communicate(timeout=200)[0]
        assert process.returncode == 1 and "(exitcode: 2)" in shown
        lines = {line for line in shown.splitlines() if line.startswith("error: ")}
        lines.discard("error: another process of this run has ended; what it says is the reason")
        [line] = lines
        assert f"{file}: cannot be written (No space left on device); free some space" in line
        assert 'common/cli.py", line' not in shown  # no traceback of the other rank
    finish(launch(2, *how, "--out", tmp_path / "two"))
    assert_alike(tmp_path / "one", tmp_path / "two", 1)
    assert stage_files(tmp_path / "one").keys() == stage_files(tmp_path / "two").keys()


def test_ranks_that_fail_say_so_and_leave(tmp_path):
    process = launch(2, "--model", tmp_path / "nowhere", "--out", tmp_path / "run")
    shown = process.communicate(timeout=100)[0]
    assert process.returncode == 1  # torchrun's own
    assert "(exitcode: 2)" in shown  # that of our processes
    assert f"error: --model {tmp_path / 'nowhere'}: no such folder" in shown
    assert 'train.py", line' not in shown  # no traceback


def test_a_mistake_that_rank_0_alone_sees_ends_all(finished):
    """Another option than that of a begun run: rank 1 waits for rank 0, in vain."""
    process = launch(2, *SMALL, "--beta", "0.1", "--out", finished)
    shown = process.communicate(timeout=100)[0]
    assert process.returncode == 1
    assert "M1/log.jsonl was made with beta 0.5, not 0.1" in shown
