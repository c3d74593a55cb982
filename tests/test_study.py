"""The study's bookkeeping: its runs, what they share, what is noted of them."""

import sys
from pathlib import Path

import pytest
from conftest import TOY, digest

import train
from bench import study
from common.cli import InputError, run_script
from common.files import read_jsonl
from common.options import parse_args

SMALL = ["--limit", "24", "--k", "4", "--epochs", "1", "--batch-size", "8", "--rounds", "1"]


def run_train(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
    run_script(train.main)


def files(folder: Path) -> dict[str, str]:
    """The digests of the files of a run's rounds."""
    found = {}
    for path in sorted(folder.glob("M*/**/*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = digest(path)
    return found


def test_a_setting_is_known_or_moves_one_option():
    assert study.describe("coin")[1] == ["--method", "coin"]
    assert study.describe("lr-1e-4") == ("--lr 1e-4", ["--lr", "1e-4"], 2)
    for setting in ("nope", "lr-", "seed-3"):
        with pytest.raises(InputError, match=setting):
            study.describe(setting)


@pytest.mark.parametrize("setting", study.SETTINGS)
def test_every_setting_is_a_command_line_of_train(setting):
    args = study.options().parse_args(["--out", "OUT"])
    parsed = parse_args(train.options(), study.arguments(args, setting, 3))
    assert (parsed.seed, parsed.out) == (3, f"OUT/{setting}-3")
    assert parsed.rounds == study.SETTINGS[setting][2]
    model = "OUT/scpo-3/M2/model" if setting == "test-queries" else str(TOY / "model")
    assert parsed.model == model


def test_a_run_that_goes_on_from_scpo_is_the_run_it_would_have_been(tmp_path, monkeypatch):
    args = study.options().parse_args(["--out", str(tmp_path), "--settings", "scpo", "gold"])
    study.prepare(args)
    run_train(monkeypatch, *study.arguments(args, "scpo", 0), *SMALL)
    gold = [*study.arguments(args, "gold", 0), *SMALL]
    run_train(monkeypatch, *gold)
    assert {path.name for path in (tmp_path / "gold-0/M1").iterdir()} > {"responses.jsonl"}
    alone = ["--from", "", "--out", str(tmp_path / "alone")]
    run_train(monkeypatch, *gold, *alone)
    assert files(tmp_path / "gold-0") == files(tmp_path / "alone")
    responses = "M1/responses.jsonl"
    assert files(tmp_path / "gold-0")[responses] == files(tmp_path / "scpo-0")[responses]


def test_a_line_of_the_study_has_what_the_solver_says(tmp_path, monkeypatch):
    args = study.options().parse_args(["--out", str(tmp_path), "--settings", "gold"])
    study.prepare(args)
    run_train(monkeypatch, *study.arguments(args, "gold", 0), *SMALL, "--new-problems", "6")
    line = study.describe_run(args, "gold", 0)
    assert (line["setting"], line["seed"]) == ("gold", 0)
    pairs = read_jsonl(tmp_path / "gold-0/M1/pairs.jsonl")
    quality = line["results"]["M1"]["quality"]
    assert quality["pairs"] == quality["with_gold"] == len(pairs)
    assert (quality["chosen_accuracy"], quality["rejected_accuracy"]) == (1.0, 0.0)
    frequent = [pair for pair in pairs if pair["votes_rejected"] > 1]
    assert quality["rejects_frequent"] == len(frequent) / len(pairs)
    written = line["results"]["M1"]["written"]
    assert 0 < written["right_vote"] <= written["answerable"] <= written["written"] <= 6


def test_sums_of_m0_are_right_but_for_those_its_teacher_got_wrong(tmp_path, monkeypatch):
    args = study.options().parse_args(["--out", str(tmp_path), "--settings", "scpo"])
    study.prepare(args)
    run_train(monkeypatch, *study.arguments(args, "scpo", 0), *SMALL, "--until", "M0/eval")
    sums = study.sums(tmp_path / "scpo-0/M0")
    share = {kind: right / total for kind, (right, total) in sums.items()}
    assert share["doubtful"] < 0.5 < 0.95 < share["others"]


def test_right_votes_are_the_problems_whose_majority_is_right(tmp_path):
    question = "Tom has 31 apples. Tom finds 6. Tom loses 3. How many does Tom have now?"
    rows = [{"id": "a", "question": question, "responses": ["#### 34", "#### 34", "#### 1"]},
            {"id": "b", "question": question, "responses": ["#### 34", "#### 1", "#### 1"]}]
    study.write_jsonl(tmp_path / "scpo-0/M1/responses.jsonl", rows)
    study.write_right_votes(tmp_path, 0)
    kept = read_jsonl(tmp_path / "right-votes-0.jsonl")
    assert kept == [{"id": "a", "question": question, "answer": "#### 34"}]


def test_runs_of_another_m0_are_not_mixed_in(tmp_path):
    common = ["--out", str(tmp_path), "--settings", "scpo"]
    study.prepare(study.options().parse_args(common))
    with pytest.raises(InputError, match="choose another folder"):
        study.prepare(study.options().parse_args([*common, "--problems", "dev"]))


@pytest.mark.parametrize("argv, needle", [
    (["--seeds", "0"], "--seeds"), (["--problems", "tset"], "--problems"),
    (["--settings", "nope"], "--settings nope"),
])
def test_a_mistake_shows_before_the_runs(argv, needle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study.py", *argv, "--out", str(tmp_path / "study")])
    with pytest.raises(SystemExit) as exit_:
        run_script(study.main)
    assert exit_.value.code == 2
    assert needle in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
