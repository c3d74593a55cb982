"""bench/real.py: the numbers of a run on a real model, without anybody's texts."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT, TOY, run

from bench import real
from common.files import read_jsonl
from common.training import epoch_means


def pair(id: str, chosen: str, rejected: str | None, ended: bool = True) -> dict:
    return {"id": id, "weight": 0.5, "answer_chosen": chosen, "rejected": "text",
            "answer_rejected": rejected, "ended_rejected": ended}


def test_pairs_in_numbers():
    """What is rejected, by hand; the problem "new" was written by the model and has no gold."""
    pairs = [pair("a", "1", "2"), pair("a", "2", "1"), pair("b", "2", None),
             pair("b", "2", None, ended=False), pair("new", "5", "6"),
             pair("a", "1", None) | {"rejected": None}]  # as LMSI, which rejects nothing
    numbers = real.pair_numbers(pairs, {"a": "1", "b": "2"}, "toy")
    assert numbers == {
        "pairs": 6, "with_gold": 5, "mean_weight": 0.5, "chosen_accuracy": 0.8,
        "rejected": {"wrong": 1, "right": 1, "no answer": 1, "cut off": 1}}


def test_means_of_an_epoch_are_over_pairs():
    log = [{"epoch": 0, "pairs": 3, "loss": 1.0}, {"epoch": 0, "pairs": 1, "loss": 3.0},
           {"epoch": 1, "pairs": 3, "loss": 9.0}, {"epoch": 2, "pairs": 4, "loss": 0.5}]
    assert epoch_means(log, 0) == {"loss": 1.5} and epoch_means(log, 2) == {"loss": 0.5}


def test_differences_are_paired():
    """+1 on one of four problems and -1 on none: 25 points, and never below 0."""
    a = {"id": list("abcd"), "greedy": [1, 1, 0, 1]}
    b = {"id": list("abcd"), "greedy": [1, 0, 0, 1]}
    assert real.paired(a, b, "greedy") == "+25.0 [+0.0, +75.0]"
    with pytest.raises(real.InputError, match="different test problems"):
        real.paired(a, {**b, "id": list("abce")}, "greedy")


def test_a_finished_run_in_numbers(finished, tmp_path, capsys):
    problems = TOY / "train-answers.jsonl"
    shutil.copytree(finished, tmp_path / "twin")
    run(real, finished, tmp_path / "twin", "--problems", problems, "--out", tmp_path / "real.jsonl")
    text = (tmp_path / "real.jsonl").read_text()
    kept, twin = read_jsonl(tmp_path / "real.jsonl")
    assert {**kept, "name": "twin"} == twin and kept["name"] == finished.name
    assert kept["options"]["k"] == 4 and kept["options"]["model"] == "model"
    assert str(ROOT) not in text and str(tmp_path) not in text
    assert kept["hours"].keys() >= {"M1/responses.jsonl", "M2/log.jsonl"}
    for name, model in kept["models"].items():
        rows = read_jsonl(finished / name / "eval_responses.jsonl")
        assert [row["id"] for row in rows] == model["verdicts"]["id"]
        for score in ("greedy", "self_consistency"):
            assert np.mean(model["verdicts"][score]) == pytest.approx(model["scores"][score])
        for row in rows:
            for some_text in (row["question"], row["greedy"], *row["responses"]):
                assert json.dumps(some_text)[1:-1] not in text
    pairs = read_jsonl(finished / "M1/pairs.jsonl")
    made = kept["rounds"]["M1"]["pairs"]
    assert made["pairs"] == made["with_gold"] == sum(made["rejected"].values()) == len(pairs)
    shown = capsys.readouterr().out
    assert "| finished | M2 |" in shown and "| twin | M0 |" not in shown
    assert "M1 of finished less M1 of twin: greedy +0.0 [+0.0, +0.0]" in shown


def test_a_run_that_is_not_finished_is_refused(tmp_path, error_of):
    message = error_of(real, tmp_path, "--problems", TOY / "train-answers.jsonl")
    assert f"{tmp_path}: has no results.json with the scores of all models" in message


def test_two_runs_of_one_name_are_refused(finished, error_of):
    message = error_of(real, finished, finished, "--problems", TOY / "train-answers.jsonl")
    assert f"{finished}: two runs have this name" in message


def test_a_problem_without_an_answer_is_left_out():
    row = {"id": "a", "question": "Q", "responses": ["#### 1"], "ended": [True],
           "greedy": "#### 1", "greedy_ended": True, "gold": "1"}
    rows = [row, {**row, "id": "b", "gold": None}]
    assert real.verdicts(rows, "toy") == {
        "id": ["a"], "greedy": [1], "self_consistency": [1], "greedy_words": [2]}
