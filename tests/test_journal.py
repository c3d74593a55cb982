"""A stop while it samples loses one batch at most, and ends with the files of no stop at all."""

import json
import os
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, digest, random_llama, run, stage_files, tiny_config

import common.journal
import eval as evaluation
import sample
import train
from common.files import read_jsonl
from common.journal import Journal, code_and_weights
from sample import SamplingParams, generate

QUICK = "--limit 6 --k 2 --max-new-tokens 16 --max-num-seqs 4".split()  # three batches of samples


@contextmanager
def batches(stop_in: int | str = 0, stop: Callable = lambda: 1 / 0) -> Iterator[list[int]]:
    """Counts the batches that are sampled meanwhile; in one of them, or in all, it may stop."""
    decode, made = sample.decode, []

    def count(*args):
        made.append(len(made) + 1)
        if stop_in in (made[-1], "all"):
            stop()
        return decode(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "decode", count)
        yield made


def journals(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.batches-*"))


def interrupt() -> None:
    """As Ctrl-C does, also where the tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


# --------------------------------------------------------------------------------------------
# The scripts


@pytest.mark.parametrize("script, n_batches", [(sample, 3), (evaluation, 6)],
                         ids=["sample", "eval"])
@pytest.mark.parametrize("stop, error", [
    (lambda: 1 / 0, ZeroDivisionError),
    (interrupt, SystemExit),
], ids=["defect", "SIGINT"])
def test_finished_batches_are_not_sampled_again(tmp_path, script, n_batches, stop, error):
    with batches() as made:
        run(script, *QUICK, "--out", tmp_path / "whole.jsonl")
    assert len(made) == n_batches
    with batches(3, stop), pytest.raises(error):
        run(script, *QUICK, "--out", tmp_path / "parts.jsonl")
    assert len(journals(tmp_path)) == 1 and not (tmp_path / "parts.jsonl").exists()
    with batches() as made:
        run(script, *QUICK, "--out", tmp_path / "parts.jsonl")
    assert len(made) == n_batches - 2
    assert digest(tmp_path / "parts.jsonl") == digest(tmp_path / "whole.jsonl")
    assert journals(tmp_path) == []


def test_kill_minus_nine_loses_one_batch(tmp_path):
    code = (
        "import os, signal, sys, sample\n"
        "decode, made = sample.decode, []\n"
        "def die(*args):\n"
        "    made.append(1)\n"
        "    if len(made) == 3:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return decode(*args)\n"
        "sample.decode = die\n"
        "sample.main()\n"
    )
    argv = [*QUICK, "--out", str(tmp_path / "parts.jsonl")]
    process = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT)
    assert process.returncode == -signal.SIGKILL
    with batches() as made:
        run(sample, *argv)
    assert len(made) == 1
    run(sample, *QUICK, "--out", tmp_path / "whole.jsonl")
    assert digest(tmp_path / "parts.jsonl") == digest(tmp_path / "whole.jsonl")


def test_every_stage_that_samples_goes_on(tmp_path):
    """Evaluation, written problems, responses, votes on epochs: each is stopped in its second
    batch, and just this one is begun again."""
    how = [*SMALL, "--rounds", "1", "--limit", "7", "--new-problems", "6", "--select", "votes",
           "--k", "2", "--max-num-seqs", "4"]
    with batches() as made:
        run(train, *how, "--out", tmp_path / "whole")
    stages, n_batches = set(), 0

    def stop_where_none_was() -> None:
        begun = {path.name.partition(".batches")[0] for path in journals(tmp_path)}
        if begun - stages:
            stages.update(begun)
            raise ZeroDivisionError

    while not (tmp_path / "parts/results.json").exists():
        try:
            with batches("all", stop_where_none_was) as again:
                run(train, *how, "--out", tmp_path / "parts")
        except ZeroDivisionError:
            pass
        n_batches += len(again)
    assert stages == {"problems.jsonl", "responses.jsonl", "epochs.jsonl", "eval_responses.jsonl"}
    assert n_batches == len(made) + len(stages)
    assert stage_files(tmp_path / "parts") == stage_files(tmp_path / "whole")
    assert journals(tmp_path) == []


def test_stopped_between_a_file_and_the_end_of_its_stage(finished, tmp_path):
    """The next start clears up."""
    folder = tmp_path / "run/M1"
    folder.mkdir(parents=True)
    for name in ("options.json", "stages.json", "M1/problems.jsonl"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    (folder / "problems.jsonl.batches-0").write_text("left")
    run(train, *SMALL, "--no-eval", "--until", "M1/problems", "--out", tmp_path / "run")
    assert journals(tmp_path) == []


def test_files_of_others_beside_it_are_left_alone(tmp_path):
    """Its own name may hold what is a pattern elsewhere."""
    theirs = [tmp_path / "r1.jsonl.batches-0", tmp_path / "r[1].jsonl.batches-mine"]
    for path in theirs:
        path.write_text("theirs")
    with batches(3), pytest.raises(ZeroDivisionError):
        run(sample, *QUICK, "--out", tmp_path / "r[1].jsonl")
    with batches() as made:
        run(sample, *QUICK, "--out", tmp_path / "r[1].jsonl")
    assert len(made) == 1
    assert journals(tmp_path) == theirs


@pytest.mark.parametrize("script", [sample, evaluation], ids=["sample", "eval"])
def test_an_out_that_appears_meanwhile_is_left_alone(tmp_path, error_of, script):
    """What was sampled for hours is in another file, and the line says in which."""
    out = tmp_path / "r.jsonl"
    (tmp_path / "r-1.jsonl").write_text("theirs too")
    with batches(2, lambda: out.write_text("theirs")):
        message = error_of(script, *QUICK, "--out", out)
    assert f"--out {out}: has appeared meanwhile" in message
    assert f"the lines are in {tmp_path / 'r-2.jsonl'}" in message
    assert out.read_text() == "theirs" and (tmp_path / "r-1.jsonl").read_text() == "theirs too"
    assert len(read_jsonl(tmp_path / "r-2.jsonl")) == 6 and journals(tmp_path) == []


@pytest.mark.parametrize("script", [sample, evaluation], ids=["sample", "eval"])
@pytest.mark.parametrize("name, advice", [
    ("r.jsonl", "choose another name"),
    ("r.jsonl.part", "delete it if a stop has left it, or choose another name"),
], ids=["out", "part"])
def test_an_out_that_is_taken_is_refused_before_the_work(tmp_path, error_of, script, name, advice):
    (tmp_path / name).write_text("theirs")
    with batches() as made:
        message = error_of(script, *QUICK, "--out", tmp_path / "r.jsonl")
    assert made == [] and f"{tmp_path / name} exists already; {advice}" in message
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


# --------------------------------------------------------------------------------------------
# Which batches are used

PROMPTS = [[0, 5, 9], [0, 7, 7, 30], [0, 8]]
PARAMS = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=6, max_num_seqs=2)


@pytest.fixture
def model(tmp_path):
    llama = random_llama(tiny_config())
    llama.save_pretrained(tmp_path / "model")
    return llama


def sampled(model, folder: Path, dtype="float32", prompts=PROMPTS, params=PARAMS, seed=(0,)):
    """How many batches had to be sampled, and what they are."""
    journal = Journal(folder / "r.jsonl", folder / "model", Namespace(dtype=dtype))
    with batches() as made:
        responses = generate(model, prompts, 2, params, seed=seed, stop_ids=[1], journal=journal)
    return len(made), responses


def test_the_same_call_samples_nothing_again(model, tmp_path):
    n_batches, responses = sampled(model, tmp_path)
    assert n_batches == 3
    assert sampled(model, tmp_path) == (0, responses)


def test_ranks_look_for_the_batches_that_rank_0_looks_for(model, tmp_path, monkeypatch):
    """On another machine the copy of the model has another date."""
    where = (tmp_path / "r.jsonl", tmp_path / "model", Namespace(dtype="float32"))
    answers = {"code_and_weights": code_and_weights(tmp_path / "model"), "read": {}}
    key = Journal(*where).key("x")
    os.utime(tmp_path / "model/config.json", (1, 1))
    assert Journal(*where).key("x") != key
    on_main = lambda function, *args: answers[function.__name__]  # noqa: E731
    monkeypatch.setattr(common.journal, "on_main", on_main)
    assert Journal(*where).key("x") == key


@pytest.mark.parametrize("changed", [
    {"seed": (1,)}, {"dtype": "bfloat16"}, {"params": replace(PARAMS, temperature=0.9)},
    {"params": replace(PARAMS, top_p=0.8)}, {"params": replace(PARAMS, max_new_tokens=7)},
    {"prompts": [[0, 5, 8], [0, 7, 7, 31], [0, 9]]},
], ids=str)
def test_batches_of_another_call_are_not_used(model, tmp_path, changed):
    sampled(model, tmp_path)
    n_batches, responses = sampled(model, tmp_path, **changed)
    assert n_batches == 3
    (tmp_path / "r.jsonl.batches-0").unlink()
    assert sampled(model, tmp_path, **changed) == (3, responses)


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "code"])
def test_batches_of_other_weights_or_other_code_are_not_used(
    model, tmp_path, monkeypatch, changed
):
    sampled(model, tmp_path)
    if changed == "code":
        monkeypatch.setattr(common.journal, "fingerprint", lambda: ("other", {}))
    else:
        other = random_llama(tiny_config(rope_theta=5e5), seed=1)
        other.save_pretrained(tmp_path / "other")
        (tmp_path / "other" / changed).replace(tmp_path / "model" / changed)
    assert sampled(model, tmp_path)[0] == 3


def test_what_is_no_whole_batch_is_not_used(model, tmp_path):
    """The process died in the last line; the next batch begins a line of its own."""
    _, responses = sampled(model, tmp_path)
    file = tmp_path / "r.jsonl.batches-0"
    first, second, third = file.read_text().split("\n")[1:]
    torn = [first, "null", '"ab"', "[[1], 2]", "{}", "[" * 10**5, "\udcff", third[:-1]]
    file.write_text("\n".join(torn), errors="surrogateescape")
    assert sampled(model, tmp_path) == (2, responses)
    assert sampled(model, tmp_path) == (0, responses)


def test_a_line_is_a_key_and_its_responses(model, tmp_path):
    """So one can look into a file that was left behind."""
    _, responses = sampled(model, tmp_path)
    lines = (tmp_path / "r.jsonl.batches-0").read_text().split("\n")[1:]
    tokens = [response[0] for line in lines for response in json.loads(line)[1]]
    assert sorted(tokens) == sorted(one.tokens for both in responses for one in both)
