"""Stages that other code has made: one line names what changed, what is kept, and how to redo it.

A number must not come, unnoticed, from two versions of the code.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SMALL, run, snapshot, stage_files

import common.runs
import train
from common.files import read_json, read_jsonl, write_json
from common.runs import fingerprint, warn_of_other_code


def copy_code(target: Path) -> Path:
    """The scripts, common/ and tasks/, to be edited."""
    target.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copyfile(path, target / path.name)
    for folder in ("common", "tasks", "bench"):
        ignored = shutil.ignore_patterns("__pycache__", "figures")
        shutil.copytree(ROOT / folder, target / folder, ignore=ignored)
    return target


@pytest.fixture
def code(tmp_path, monkeypatch) -> Path:
    """A copy of the code, whose files are those that the runs of this process look at."""
    folder = copy_code(tmp_path / "code")
    monkeypatch.setattr(common.runs, "ROOT", folder)
    return folder


def edit(path: Path) -> None:
    path.write_text(path.read_text() + "\n")


def warnings(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if "WARNING" in line]


def command_of(warning: str) -> str:
    return warning.partition("To make them anew: ")[2]


def removed_by(warning: str) -> list[Path]:
    """The arguments of its `rm -r`, as a shell reads them."""
    command, option, *paths = shlex.split(command_of(warning))
    assert (command, option) == ("rm", "-r")
    return [Path(path) for path in paths]


# --------------------------------------------------------------------------------------------
# The whole story


def start(code: Path, *argv) -> str:
    """train.py of that code, as a process of its own; what it prints."""
    command = [sys.executable, "train.py", *SMALL, "--limit", "12", "--rounds", "1", "--no-eval"]
    process = subprocess.run([*command, *map(str, argv)], cwd=code, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""  # no progress bar either: this is no terminal
    return process.stdout


def test_editing_code_between_two_starts_warns_and_its_command_makes_the_stages_anew(tmp_path):
    """The edit doubles w(x). The folder's name has a space, which the command must survive."""
    code, folder = copy_code(tmp_path / "code"), tmp_path / "my runs/a b"
    assert warnings(start(code, "--until", "M1/pairs", "--out", folder)) == []
    before = stage_files(folder)
    old_pairs = read_jsonl(folder / "M1/pairs.jsonl")

    formula = "(votes_chosen - votes_rejected) / k"
    text = (code / "scpo.py").read_text()
    assert text.count(f"return {formula}") == 1
    (code / "scpo.py").write_text(text.replace(f"return {formula}", f"return 2 * {formula}"))
    [warning] = warnings(start(code, "--until", "M1/pairs", "--out", folder))
    assert warning.startswith("WARNING: scpo.py changed since ")
    assert " KEPT: M1." in warning
    assert stage_files(folder) == before  # kept indeed

    assert removed_by(warning) == [folder / "M1"]
    subprocess.run(["sh", "-c", command_of(warning)], check=True, cwd=code)
    assert list(folder.glob("M*")) == []
    assert warnings(start(code, "--until", "M1/pairs", "--out", folder)) == []
    old = {name: content for name, content in before.items() if name != "M1/pairs.jsonl"}
    new = stage_files(folder)
    assert new.items() >= old.items()
    weights = [pair["weight"] for pair in read_jsonl(folder / "M1/pairs.jsonl")]
    assert weights == [2 * pair["weight"] for pair in old_pairs]


# --------------------------------------------------------------------------------------------
# Which files


@pytest.mark.parametrize("file", [
    "scpo.py", "vote.py", "sample.py", "model.py", "eval.py", "train.py",
    "tasks/task.py", "tasks/chat.py", "tasks/gsm8k/number.py", "tasks/math/formula.py",
    "tasks/zebralogic/puzzle.py", "tasks/toy/task.json",
    # These make lines of rewards.jsonl, of epochs.jsonl, and the weights of a model.
    "common/reward_model.py", "common/selection.py", "common/training.py", "common/checkpoint.py",
])
def test_any_file_that_makes_results_is_named(finished, code, capsys, file):
    edit(code / file)
    before = snapshot(finished)
    run(train, *SMALL, "--out", finished)
    [warning] = warnings(capsys.readouterr().out)
    assert warning.startswith(f"WARNING: {file} changed since ")
    assert "KEPT: M0, M1, M2. " in warning
    assert removed_by(warning) == [finished / "M0", finished / "M1", finished / "M2"]
    assert snapshot(finished) == before


def test_every_changed_file_is_named_in_one_line(finished, code, capsys):
    """Edited, added and removed ones."""
    edit(code / "vote.py")
    edit(code / "tasks/toy/task.json")
    (code / "tasks/zebralogic/puzzle.py").unlink()
    (code / "tasks/new").mkdir()
    (code / "tasks/new/sums.py").write_text("pass\n")
    run(train, *SMALL, "--out", finished)
    [warning] = warnings(capsys.readouterr().out)
    named = "tasks/new/sums.py, tasks/toy/task.json, tasks/zebralogic/puzzle.py, vote.py"
    assert warning.startswith(f"WARNING: {named} changed since ")


@pytest.mark.parametrize("file", ["bench/study.py", "README.md", "tests/test_run.py"])
def test_files_that_make_no_results_do_not_warn(finished, code, capsys, file):
    (code / file).parent.mkdir(exist_ok=True)
    (code / file).write_text("other\n")
    run(train, *SMALL, "--out", finished)
    assert warnings(capsys.readouterr().out) == []


def test_code_that_is_as_it_was_again_does_not_warn(finished, code, capsys):
    before = (code / "vote.py").read_bytes()
    edit(code / "vote.py")
    run(train, *SMALL, "--out", finished)
    assert len(warnings(capsys.readouterr().out)) == 1
    (code / "vote.py").write_bytes(before)
    run(train, *SMALL, "--out", finished)
    assert warnings(capsys.readouterr().out) == []


# --------------------------------------------------------------------------------------------
# Which stages


def test_a_stage_that_new_code_made_from_old_files_is_made_anew_with_them(tmp_path, code, capsys):
    """Round 1 by one version of the code, round 2 by another: both must go."""
    folder, small = tmp_path / "run", [*SMALL, "--limit", "12", "--no-eval"]
    run(train, *small, "--until", "M1/model", "--out", folder)
    edit(code / "vote.py")
    run(train, *small, "--until", "M2/responses", "--out", folder)
    capsys.readouterr()
    run(train, *small, "--until", "M2/responses", "--out", folder)
    [warning] = warnings(capsys.readouterr().out)
    assert "KEPT: M1. " in warning
    assert removed_by(warning) == [folder / "M1", folder / "M2"]


def test_stages_of_one_round_are_told_apart(tmp_path, code, capsys):
    """Responses by the first version; pairs, by a second one, have been made anew."""
    folder, small = tmp_path / "run", [*SMALL, "--limit", "12", "--no-eval"]
    run(train, *small, "--until", "M1/responses", "--out", folder)
    edit(code / "vote.py")
    run(train, *small, "--until", "M1/pairs", "--out", folder)
    edit(code / "scpo.py")
    record = read_json(folder / "stages.json")
    record["stages"]["M1/problems.jsonl"]["code"] = fingerprint()[0]  # as if made just now
    write_json(folder / "stages.json", record)
    capsys.readouterr()
    warn_of_other_code(folder)
    [warning] = warnings(capsys.readouterr().out)
    assert warning.startswith("WARNING: scpo.py, vote.py changed since ")
    assert "KEPT: M1/responses.jsonl, M1/pairs.jsonl. " in warning
    assert removed_by(warning) == [folder / "M1/responses.jsonl", folder / "M1/pairs.jsonl"]


def make_stages(folder: Path, *stale: str) -> None:
    """A finished run of two rounds as far as stages.json tells; some stages by older code."""
    digest, now = fingerprint()
    older = {**now, "vote.py": "0" * 12}
    record = {"stages": {}, "code": {digest: now, "older": older}}
    names = ["M0/eval_responses.jsonl"]
    for t in (1, 2):
        names += [f"M{t}/pairs.jsonl", f"M{t}/model", f"M{t}/eval_responses.jsonl"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        code = "older" if name in stale else digest
        record["stages"][name] = {"seconds": 1.0, "code": code}
    write_json(folder / "stages.json", record)


@pytest.mark.parametrize("stale, removed", [
    ("M1/pairs.jsonl", ["M1", "M2"]),
    ("M1/model", ["M1/model", "M1/eval_responses.jsonl", "M2"]),
    ("M2/pairs.jsonl", ["M2"]),
    ("M2/eval_responses.jsonl", ["M2/eval_responses.jsonl"]),
    # An evaluation is what nothing else is made from: training need not be repeated for it.
    ("M0/eval_responses.jsonl", ["M0"]),
    ("M1/eval_responses.jsonl", ["M1/eval_responses.jsonl"]),
])
def test_the_command_removes_what_was_made_from_it_and_nothing_else(
    tmp_path, capsys, stale, removed
):
    make_stages(tmp_path, stale)
    warn_of_other_code(tmp_path)
    [warning] = warnings(capsys.readouterr().out)
    assert removed_by(warning) == [tmp_path / name for name in removed]
    assert warning.startswith("WARNING: vote.py changed since ")


def test_a_deleted_stage_is_none_that_is_kept(tmp_path, capsys):
    make_stages(tmp_path, "M2/pairs.jsonl")
    shutil.rmtree(tmp_path / "M2")
    warn_of_other_code(tmp_path)
    assert capsys.readouterr().out == ""


def test_stages_that_were_taken_over_warn_too(finished, tmp_path, code, capsys):
    edit(code / "vote.py")
    run(train, *SMALL, "--beta", "0.1", "--from", finished, "--until", "M1/pairs",
        "--out", tmp_path / "run")
    [warning] = warnings(capsys.readouterr().out)
    assert warning.startswith("WARNING: vote.py changed since ")
    assert " KEPT: M0, M1. " in warning
    assert removed_by(warning) == [tmp_path / "run/M0", tmp_path / "run/M1"]


def test_the_command_leaves_nothing_of_a_training_that_is_to_be_made_anew(
    tmp_path, code, monkeypatch, capsys
):
    """Pairs by the first version; a log and models of epochs by a second, which had another
    learning rate and was stopped before M1; then the first version again."""
    folder, small = tmp_path / "run", [*SMALL, "--limit", "12", "--rounds", "1", "--no-eval"]
    small += ["--epochs", "2", "--select", "votes", "--save-every", "1"]
    run(train, *small, "--until", "M1/pairs", "--out", folder)
    first_version = (code / "train.py").read_bytes()
    edit(code / "train.py")
    with monkeypatch.context() as patch:
        patch.setattr(train, "learning_rate", lambda *args: 1e-3)
        patch.setattr(train, "score_epochs", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(train, *small, "--out", folder)
    (code / "train.py").write_bytes(first_version)
    capsys.readouterr()
    warn_of_other_code(folder)
    [warning] = warnings(capsys.readouterr().out)
    stale = [folder / "M1/reference.jsonl", folder / "M1/log.jsonl"]
    assert removed_by(warning)[:2] == stale
    subprocess.run(["sh", "-c", command_of(warning)], check=True)
    run(train, *small, "--out", folder)
    run(train, *small, "--out", tmp_path / "alone")
    assert stage_files(folder) == stage_files(tmp_path / "alone")


# --------------------------------------------------------------------------------------------
# The fingerprint


def test_the_fingerprint_is_of_contents_and_names(code):
    before = fingerprint()
    assert set(before[1]) >= {"scpo.py", "tasks/gsm8k/number.py", "tasks/toy/task.json"}
    os.utime(code / "scpo.py", (0, 0))
    assert fingerprint() == before
    edit(code / "scpo.py")
    after = fingerprint()
    assert after[0] != before[0]
    different = [name for name in after[1] if after[1][name] != before[1][name]]
    assert different == ["scpo.py"]


def test_each_stage_has_the_fingerprint_of_the_code_that_made_it(finished):
    record, (digest, code) = read_json(finished / "stages.json"), fingerprint()
    assert {stage["code"] for stage in record["stages"].values()} == {digest}
    assert record["code"] == {digest: code}
