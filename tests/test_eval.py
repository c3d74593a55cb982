"""Scores, worked by hand."""

import math
import random

import pytest
from conftest import SHIPPED, TOY

import scpo
from common.options import load_checkpoint
from eval import COLUMNS, evaluate, majority_vote, score, score_row, table
from sample import SamplingParams
from tasks.task import Task, gold_answer, read_problems

# Of five responses one has no answer, and the 9 was cut off.
ROW = {"id": "a", "responses": ["#### 4", "#### 4", "#### 5", "no", "#### 9"],
       "ended": [True, True, True, True, False],
       "greedy": "#### 5", "greedy_ended": True, "gold": "4"}


# --------------------------------------------------------------------------------------------
# One problem


def test_one_problem_by_hand():
    assert score_row(ROW, "toy") == {
        "greedy": 0.0,  # 5
        "self_consistency": 1.0,  # 4, by two votes of five
        "vote_share": 0.4,
        "sample_accuracy": 0.4,
        "unparsed": 0.2,  # the "no"
        "truncated": pytest.approx(0.2),  # the 9
    }


def test_another_gold_answer_turns_the_accuracies():
    scores = score_row({**ROW, "gold": "5"}, "toy")
    assert scores["greedy"] == 1.0 and scores["self_consistency"] == 0.0
    assert scores["sample_accuracy"] == 0.2


def test_a_greedy_response_that_was_cut_off_has_no_answer():
    assert score_row({**ROW, "gold": "5", "greedy_ended": False}, "toy")["greedy"] == 0.0


def test_what_was_cut_off_is_not_counted_as_unparsed_too():
    row = {"id": "a", "responses": ["no", "no", "no", "#### 4"],
           "ended": [True, False, False, True]}
    scores = score_row(row, "toy")
    assert (scores["unparsed"], scores["truncated"]) == (0.25, 0.5)


def test_nobody_answered_is_wrong_not_right():
    row = {"id": "a", "responses": ["?"], "greedy": "?", "gold": "4"}
    scores = score_row(row, "toy")
    assert scores["self_consistency"] == scores["greedy"] == scores["vote_share"] == 0.0


def test_without_gold_there_is_consistency_but_no_accuracy():
    scores = score_row({"id": "a", "responses": ["#### 4", "#### 4"]}, "toy")
    assert scores["greedy"] is scores["self_consistency"] is scores["sample_accuracy"] is None
    assert scores["vote_share"] == 1.0


@pytest.mark.parametrize("answer, gold", [
    ("3 + 4 = 7\n#### 7", "7"), ("7.0", "7"), (7, "7"), ("#### 1,234", "1234"), ("1,234", "1234"),
    (None, None), ("none", None),
])
def test_gold_is_a_worked_solution_or_a_bare_answer(answer, gold):
    assert gold_answer({"answer": answer}, "gsm8k") == gold


# --------------------------------------------------------------------------------------------
# Many problems


def test_means_and_standard_errors():
    others = [{**ROW, "id": name, "gold": "5"} for name in "bcd"]
    result = score([ROW, *others], "toy")
    assert result["problems"] == 4 and result["k"] == 5
    assert result["greedy"] == 0.75 and result["self_consistency"] == 0.25
    assert result["sample_accuracy"] == pytest.approx((0.4 + 3 * 0.2) / 4)
    for name in ("greedy", "self_consistency"):
        assert result[f"{name}_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_accuracy_is_the_mean_over_the_problems_with_gold():
    result = score([ROW, {**ROW, "id": "b", "gold": None}], "toy")
    assert result["self_consistency"] == 1.0 and result["vote_share"] == 0.4


def test_no_gold_at_all_is_none_not_zero():
    result = score([{"id": "a", "responses": ["#### 4", "#### 4"]}], "toy")
    for name in ("greedy", "self_consistency"):
        assert result[name] is result[f"{name}_se"] is None
    assert result["sample_accuracy"] is None
    assert result["vote_share"] == 1.0


def test_the_table_shows_shares_in_percent_and_a_dash_for_what_is_unknown():
    without_gold = score([{"id": "a", "responses": ["#### 4", "no"]}], "toy")
    with_gold = {**score([ROW, {**ROW, "gold": "5"}], "toy"), "pairs": 12, "seconds": 3.4}
    header, first, second = table({"M0": without_gold, "M1": with_gold}).splitlines()
    for name in ("greedy", "self_consistency", "vote_share", "unparsed", "truncated"):
        assert COLUMNS[name] in header
    assert "cells" not in header  # those are of puzzles
    assert first.split() == ["M0", "–", "–", "50.0", "50.0", "0.0", "–", "–"]
    assert second.split() == ["M1", "50.0", "±", "35.4", "50.0", "±", "35.4", "40.0", "20.0",
                              "20.0", "12", "3"]
    assert len(header) == len(first) == len(second)


# --------------------------------------------------------------------------------------------
# Self-consistency


def test_majority_vote_counts_answers():
    assert majority_vote(["1", "2", None, "2"], random.Random(0)) == ("2", 2)


def test_a_tie_is_drawn_and_none_never_wins():
    votes = [majority_vote(["1", "2", None, None, None], random.Random(s)) for s in range(30)]
    assert set(votes) == {("1", 1), ("2", 1)}


def test_no_answer_has_no_votes():
    assert majority_vote([None, None], random.Random(0)) == (None, 0)


def test_self_consistency_does_not_use_the_method_that_it_measures(monkeypatch):
    """Whoever changes the choice of pairs in scpo.py must not move the scale beside it."""

    def changed(*args):
        raise AssertionError("a function of scpo.py was called")

    before = score([ROW], "toy")
    for function in (scpo.most_consistent, scpo.draw_response, scpo.scpo_pair, scpo.is_unanimous):
        monkeypatch.setattr(function, "__code__", changed.__code__)  # under whatever name it has
    with pytest.raises(AssertionError, match="scpo.py"):
        scpo.most_consistent(["4"], [1], 1, 0.5, random.Random(0))
    assert score([ROW], "toy") == before
    assert majority_vote(["1", "2", None, "2"], random.Random(0)) == ("2", 2)


# --------------------------------------------------------------------------------------------
# A model


def test_a_model_is_evaluated_by_one_greedy_response_and_k_samples():
    model, tokenizer = load_checkpoint(SHIPPED)
    task = Task.load("toy")
    problems = read_problems(TOY / "test.jsonl", task, 3)
    params = SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=96)
    rows = evaluate(model, tokenizer, task, problems, 4, params, seed=0)
    assert [row["id"] for row in rows] == [problem["id"] for problem in problems]
    for row, problem in zip(rows, problems):
        assert len(row["responses"]) == len(row["ended"]) == 4
        assert isinstance(row["greedy"], str) and row["greedy_ended"] is True
        assert row["gold"] == gold_answer(problem, "toy")
    other = evaluate(model, tokenizer, task, problems, 4, params, seed=1)
    assert [row["greedy"] for row in other] == [row["greedy"] for row in rows]
    assert [row["responses"] for row in other] != [row["responses"] for row in rows]
