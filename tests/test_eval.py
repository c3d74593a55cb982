"""Scores worked by hand, and the paired comparison."""

import math
import random

import pytest

from eval import gold_answer, majority, paired_difference, score, score_row, table
from vote import InputError

ROW = {"id": "a", "responses": ["#### 4", "#### 4", "#### 5", "no", "#### 9"], "ended": [True, True, True, True, False],
       "greedy": "#### 5", "greedy_ended": True, "gold": "4"}


def test_one_problem_by_hand():
    assert score_row(ROW, "toy") == {"greedy": 0.0, "self_consistency": 1.0, "vote_share": 0.4, "sample_accuracy": 0.4,
                                     "unparsed": 0.2, "truncated": pytest.approx(0.2)}
    assert score_row(ROW | {"gold": "5"}, "toy")["greedy"] == 1.0
    assert score_row(ROW | {"gold": "5", "greedy_ended": False}, "toy")["greedy"] == 0.0  # cut off: no answer


def test_without_gold_there_is_consistency_but_no_accuracy():
    result = score([{"id": "a", "responses": ["#### 4", "#### 4"]}], "toy")
    assert result["greedy"] is result["self_consistency"] is result["sample_accuracy"] is None
    assert result["vote_share"] == 1.0 and "–" in table({"x": result})


def test_means_and_standard_errors():
    result = score([ROW, ROW | {"gold": "5"}, ROW | {"gold": "5"}, ROW | {"gold": "5"}], "toy")
    assert result["greedy"] == 0.75 and result["self_consistency"] == 0.25
    assert result["problems"] == 4 and result["k"] == 5
    assert result["greedy_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_majority_ties_are_drawn_and_none_never_wins():
    drawn = {majority(["1", "2", None, None, None], "toy", random.Random(s))[0] for s in range(30)}
    assert drawn == {"1", "2"}
    assert majority([None, None], "toy", random.Random(0)) == (None, 0)


def test_nobody_answered_is_wrong_not_right():
    assert score_row({"id": "a", "responses": ["?"], "gold": "4"}, "toy")["self_consistency"] == 0.0


def test_paired_difference_uses_the_shared_problems():
    a = [ROW | {"id": str(i), "greedy": "#### 4"} for i in range(50)]
    b = [ROW | {"id": str(i), "greedy": "#### 4" if i % 2 else "#### 5"} for i in range(25, 75)]
    mean, low, high = paired_difference(a, b, "toy", "greedy")
    assert mean == 12 / 25 and low < mean < high and 0.2 < low and high < 0.75
    assert paired_difference(a, a, "toy", "greedy") == (0.0, 0.0, 0.0)
    with pytest.raises(InputError, match="share no problem"):
        paired_difference(a, [ROW | {"id": "elsewhere"}], "toy", "greedy")


@pytest.mark.parametrize("answer, gold", [("3 + 4 = 7\n#### 7", "7"), ("7.0", "7"), (7, "7"), ("#### 1,234", "1234"),
                                          (None, None), ("none", None)])
def test_gold_is_a_worked_solution_or_a_bare_answer(answer, gold):
    assert gold_answer({"answer": answer}, "gsm8k") == gold
