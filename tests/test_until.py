"""`--until` names the last stage to make; the same command without it makes the rest."""

import shutil
from pathlib import Path

import pytest
from conftest import SMALL, delete, run, snapshot, stage_files

import train

# In the order in which a run of two rounds makes them, with what --until calls them.
IN_ORDER = [
    ("M0/eval", ["M0/eval_responses.jsonl", "M0/eval.json"]),
    ("M1/problems", ["M1/problems.jsonl"]),
    ("M1/responses", ["M1/responses.jsonl"]),
    ("M1/pairs", ["M1/pairs.jsonl"]),
    ("M1/model", ["M1/reference.jsonl", "M1/log.jsonl", "M1/model"]),
    ("M1/eval", ["M1/eval_responses.jsonl", "M1/eval.json"]),
    ("M2/problems", ["M2/problems.jsonl"]),
    ("M2/responses", ["M2/responses.jsonl"]),
    ("M2/pairs", ["M2/pairs.jsonl"]),
    ("M2/model", ["M2/reference.jsonl", "M2/log.jsonl", "M2/model"]),
    ("M2/eval", ["M2/eval_responses.jsonl", "M2/eval.json"]),
]
NAMES = [name for name, _ in IN_ORDER]


def made_until(name: str) -> set[str]:
    expected = set()
    for _, files in IN_ORDER[: NAMES.index(name) + 1]:
        expected |= set(files)
    return expected


def stages_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("M*/*")}


@pytest.mark.parametrize("last", NAMES)
def test_until_makes_a_stage_and_none_behind_it(finished, tmp_path, capsys, last):
    """The stages before it are there from another run of the same options."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    for _, files in IN_ORDER[NAMES.index(last) :]:
        for file in files:
            delete(folder / file)
    run(train, *SMALL, "--until", last, "--out", folder)
    assert stages_of(folder) == made_until(last)
    assert f"--until {last}: done" in capsys.readouterr().out


def test_until_stage_after_stage_ends_with_the_files_of_one_run(finished, tmp_path):
    folder = tmp_path / "run"
    for last in NAMES:
        if not last.endswith("/eval"):
            run(train, *SMALL, "--until", last, "--out", folder)
            assert stages_of(folder) == made_until(last)
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


@pytest.mark.parametrize("last", ["M1/problems", "M1/pairs", "M1/model"])
def test_until_a_stage_of_a_finished_round_does_nothing(finished, tmp_path, last):
    """The round behind it is not begun, although nothing of the named round is left to make."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "M2")
    run(train, *SMALL, "--out", folder, "--until", last)  # notes --until in options.json
    before = snapshot(folder)
    run(train, *SMALL, "--out", folder, "--until", last)
    assert snapshot(folder) == before and not (folder / "M2").exists()


def test_until_the_rewards(tmp_path):
    small = [*SMALL, "--limit", "8", "--no-eval", "--method", "reward"]
    run(train, *small, "--until", "M1/rewards", "--out", tmp_path / "run")
    made = {"M1/problems.jsonl", "M1/responses.jsonl", "M1/rewards.jsonl"}
    assert stages_of(tmp_path / "run") == made


def test_until_rewards_that_this_method_has_not_makes_none_behind_them(tmp_path):
    """Votes need no rewards, so the last stage is the one before them."""
    small = [*SMALL, "--limit", "8", "--no-eval"]
    run(train, *small, "--until", "M1/rewards", "--out", tmp_path / "run")
    assert stages_of(tmp_path / "run") == {"M1/problems.jsonl", "M1/responses.jsonl"}


def test_until_an_evaluation_that_is_switched_off_begins_no_round_behind_it(tmp_path):
    small = [*SMALL, "--limit", "8", "--no-eval"]
    run(train, *small, "--until", "M1/eval", "--out", tmp_path / "run")
    assert (tmp_path / "run/M1/model").exists()
    assert not (tmp_path / "run/M2").exists()


@pytest.mark.parametrize("name", ["M1", "M1/", "M1/votes", "M0/model", "M1/pairs.jsonl", "pairs"])
def test_until_must_name_a_stage(error_of, tmp_path, name):
    message = error_of(train, *SMALL, "--until", name, "--out", tmp_path / "run")
    assert f"--until {name}: give a stage as M1/responses or M2/model" in message
    assert not (tmp_path / "run").exists()
