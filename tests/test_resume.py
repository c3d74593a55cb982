"""A run that was stopped, wherever, ends with the files of one that was not."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import (ROOT, SMALL, delete, interrupted_at, run, run_interrupted, snapshot,
                      stage_files)

import common.files
import train
from common.files import locked, read_json, read_jsonl, write_jsonl
from common.training import remove

ROUND = [
    "problems.jsonl", "responses.jsonl", "pairs.jsonl", "reference.jsonl", "log.jsonl", "model",
    "eval_responses.jsonl", "eval.json",
]


@pytest.mark.parametrize("lost", ROUND)
def test_stopped_in_a_stage_a_run_ends_with_the_same_files(finished, tmp_path, lost):
    """Of round 2 everything from a stage on is missing, and half-written files lie about."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ROUND[ROUND.index(lost) :]:
        path = folder / "M2" / name
        delete(path)
        if path.suffix:
            path.with_name(name + ".part").write_text('{"half')
    if lost == "log.jsonl":  # an epoch was saved, and then it stopped
        shutil.copytree(finished / "M2/model", folder / "M2/epochs/1")
    if not lost.startswith("eval"):
        half = folder / "M2/epochs/1.part/model.safetensors"
        half.parent.mkdir(parents=True)
        half.write_bytes(b"half")
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


def test_stages_that_are_there_are_kept_and_named(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for name in ROUND[ROUND.index("log.jsonl") :]:
        delete(folder / "M2" / name)
    before = snapshot(folder)
    run(train, *SMALL, "--out", folder)
    shown = capsys.readouterr().out
    kept = ["M0/eval_responses.jsonl", "M1/model", "M1/eval_responses.jsonl"]
    kept += [f"M2/{name}" for name in ROUND[: ROUND.index("log.jsonl")]]
    for name in kept:
        assert f"{folder / name}: kept" in shown
        assert snapshot(folder)[folder / name] == before[folder / name]
    assert "M2/log.jsonl: kept" not in shown


def test_kill_minus_nine_while_it_samples(finished, tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "train.py", *SMALL, "--out", folder], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (folder / "M1/problems.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "M1/problems.jsonl").exists() and not (folder / "M2/model").exists()
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


def test_stopped_between_the_model_and_its_evaluation(finished, tmp_path):
    """results.json tells then of M2 without scores; they are added, and its pairs stay."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    delete(folder / "M2/eval.json")
    delete(folder / "M2/eval_responses.jsonl")
    run(train, *SMALL, "--no-eval", "--out", folder)
    assert set(read_json(folder / "results.json")["M2"]) == {"seconds", "pairs"}
    run(train, *SMALL, "--out", folder)
    now, before = read_json(folder / "results.json"), read_json(finished / "results.json")
    assert {**now["M2"], "seconds": 0} == {**before["M2"], "seconds": 0}
    assert now["M2"]["seconds"] > 0


def test_stopped_between_the_stages_that_not_every_run_has(tmp_path, monkeypatch):
    """One run is stopped three times: after its rewards, its log and its scores of the epochs."""
    small = [*SMALL, "--rounds", "1", "--epochs", "2", "--limit", "12"]
    small += ["--select", "votes", "--method", "reward"]
    for stopped_in, made in (("make_pairs", "rewards.jsonl"), ("score_epochs", "log.jsonl"),
                             ("best_epoch", "epochs.jsonl")):
        with monkeypatch.context() as patch:
            patch.setattr(train, stopped_in, lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run(train, *small, "--out", tmp_path / "stopped")
        assert (tmp_path / "stopped/M1" / made).exists()
        assert not (tmp_path / "stopped/M1/model").exists()
    for name in ("stopped", "whole"):
        run(train, *small, "--out", tmp_path / name)
    assert stage_files(tmp_path / "stopped") == stage_files(tmp_path / "whole")
    assert (tmp_path / "whole/M1/epochs.jsonl").exists()
    assert not (tmp_path / "whole/M1/epochs").exists()


# --------------------------------------------------------------------------------------------
# Stopped while it trains


FOUR_STEPS = [*SMALL, "--rounds", "1", "--epochs", "2", "--limit", "20", "--no-eval"]


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory) -> Path:
    """A round of four optimizer steps, trained without a stop."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(train, *FOUR_STEPS, "--out", folder)
    assert len(read_jsonl(folder / "M1/log.jsonl")) == 4
    return folder


@pytest.mark.parametrize("step", [1, 2, 4])
def test_resume_is_bit_identical(four_steps, tmp_path, step):
    """Stopped by SIGINT, one process goes on after the step that it was in, with its moments."""
    run_interrupted(step, *FOUR_STEPS, "--out", tmp_path / "parts")
    assert (tmp_path / f"parts/M1/checkpoint-{step}").exists()
    assert not (tmp_path / "parts/M1/log.jsonl").exists()
    with interrupted_at(0) as steps:  # counts only
        run(train, *FOUR_STEPS, "--out", tmp_path / "parts")
    assert len(steps) == 4 - step  # no step was made twice
    assert stage_files(tmp_path / "parts") == stage_files(four_steps)


def test_resume_from_a_checkpoint_that_no_signal_asked_for(four_steps, tmp_path, monkeypatch):
    """--save-every 1, then an end without a farewell in the third step."""
    forward_backward, steps = train.forward_backward, []

    def fail_in_the_third_step(*args):
        steps.append(1)
        return forward_backward(*args) if len(steps) < 3 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(train, "forward_backward", fail_in_the_third_step)
        with pytest.raises(ZeroDivisionError):
            run(train, *FOUR_STEPS, "--save-every", "1", "--out", tmp_path / "parts")
    found = [path.name for path in (tmp_path / "parts/M1").glob("checkpoint-*")]
    assert found == ["checkpoint-2"]  # the one before it is gone
    (tmp_path / "parts/M1/checkpoint-3.part").mkdir()  # half a checkpoint counts for nothing
    run(train, *FOUR_STEPS, "--out", tmp_path / "parts")
    assert stage_files(tmp_path / "parts") == stage_files(four_steps)


def test_pairs_that_are_made_anew_are_trained_from_the_first_step(four_steps, tmp_path):
    """Reference and checkpoint may be of other pairs. They are made unlike, to see them go."""
    folder = tmp_path / "run"
    run_interrupted(2, *FOUR_STEPS, "--out", folder)
    delete(folder / "M1/pairs.jsonl")
    for path in (folder / "M1/reference.jsonl", folder / "M1/checkpoint-2/log.jsonl"):
        changed = []
        for row in read_jsonl(path):
            changed.append({**row, "reference_chosen_logp": -99.0, "loss": 99.0})
        write_jsonl(path, changed)
    with interrupted_at(0) as steps:  # counts only
        run(train, *FOUR_STEPS, "--out", folder)
    assert len(steps) == 4
    assert stage_files(folder) == stage_files(four_steps)


def test_a_log_without_its_model_is_trained_again(finished, tmp_path):
    """A deleted model is not what the log tells of until it is made anew."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    delete(folder / "M2/model")
    (folder / "M2/log.jsonl").write_text("")
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


def test_what_a_round_leaves_behind_is_cleared_away_later(four_steps, tmp_path, monkeypatch):
    """The model has its name already, and then the process dies: the next one clears up."""
    folder = tmp_path / "run"
    small = [*FOUR_STEPS, "--save-every", "1", "--out", folder]

    def die(place, *patterns):
        if (place / "model").exists():
            raise ZeroDivisionError
        remove(place, *patterns)

    with monkeypatch.context() as patch:
        patch.setattr(train, "remove", die)
        with pytest.raises(ZeroDivisionError):
            run(train, *small)
    assert (folder / "M1/model").exists() and list((folder / "M1").glob("checkpoint-*"))
    run(train, *small)
    assert stage_files(folder) == stage_files(four_steps)
    assert not (folder / "M1/epochs").exists()


# --------------------------------------------------------------------------------------------
# The disk, and other processes


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path, monkeypatch, error_of):
    fsync, folder = os.fsync, tmp_path / "run"

    def full(descriptor):
        if next(folder.rglob("problems.jsonl.part"), None):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(common.files.os, "fsync", full)
    message = error_of(train, *SMALL, "--limit", "4", "--out", folder)
    assert "No space left" in message
    assert (folder / "M0/eval.json").exists()
    assert list((folder / "M1").iterdir()) == []


def test_a_second_process_is_kept_out_of_the_folder(tmp_path, error_of):
    folder = tmp_path / "run"
    folder.mkdir()
    with locked(folder):
        message = error_of(train, *SMALL, "--out", folder)
        assert "another process is at work there" in message
        assert [path.name for path in folder.iterdir()] == ["lock"]
    run(train, *SMALL, "--rounds", "1", "--limit", "8", "--until", "M1/problems", "--out", folder)


@pytest.mark.parametrize("mistake", [
    ["--device", "warp"],
    ["--dtype", "int3"],
    ["--model", "/no/such/folder"],
])
def test_a_mistake_does_not_begin_the_folder(tmp_path, error_of, mistake):
    folder = tmp_path / "run"
    assert mistake[0] in error_of(train, *SMALL, *mistake, "--out", folder)
    run(train, *SMALL, "--limit", "8", "--until", "M1/problems", "--out", folder)
    assert (folder / "M1/problems.jsonl").exists()


def test_a_file_is_no_run_folder(finished, error_of):
    message = error_of(train, *SMALL, "--out", finished / "options.json")
    assert "is a file; choose another name" in message
