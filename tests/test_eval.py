"""Scores worked by hand, and the paired comparison."""

import math
import random

import numpy as np
import pytest

from eval import (gold_answer, majority, order_shares, pair_quality, paired_difference, score, score_row, somers_d,
                  table, votes_and_accuracy)
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


def test_order_of_correct_and_wrong_responses_by_hand():
    """Right: 0 and 1, wrong: 2, 3 and 4. Of the six pairs, scores order two right, tie one, order three wrong."""
    assert order_shares([ROW], "toy", [[5.0, 1.0, 1.0, 2.0, 6.0]]) == {"right": 2 / 6, "tied": 1 / 6, "wrong": 3 / 6}
    assert order_shares([ROW | {"gold": "77"}], "toy", [[1, 2, 3, 4, 5]]) == {"right": 0, "tied": 0, "wrong": 0}


@pytest.mark.parametrize("seed", range(4))
def test_somers_d_equals_scipys_in_both_directions(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    votes, right = rng.integers(0, 9, 200), rng.integers(0, 2, 200)
    assert somers_d(votes, right) == pytest.approx(stats.somersd(right, votes).statistic)  # scipy: given first
    assert somers_d(right, votes) == pytest.approx(stats.somersd(votes, right).statistic)
    assert somers_d([1, 2, 3], [0, 0, 0]) == 0.0 and somers_d([1, 2, 3], [0, 0, 1]) == 1.0


def test_votes_and_accuracy_look_at_the_first_k_alone():
    """k = 3: the most voted is right with 2 votes, the least voted wrong with 1. k = 4 adds a response of 0 votes."""
    rows = [ROW | {"id": i} for i in range(3)]
    assert votes_and_accuracy(rows, "toy", 3) == votes_and_accuracy(rows, "toy", 4) == (1.0, 1.0)
    split = [ROW | {"id": i, "gold": g} for i, g in enumerate("4455")]  # votes say nothing of who is right
    assert votes_and_accuracy(split, "toy", 3) == (0.0, 0.0)


def test_pair_quality_counts_pairs_with_a_known_answer():
    pair = {"chosen": "x", "rejected": "y", "answer_chosen": "4", "answer_rejected": "5"}
    pairs = [{"id": 0, **pair}, {"id": 1, **pair}, {"id": 2, **pair}, {"id": 3, **pair}]
    quality = pair_quality(pairs, {0: "4", 1: "5", 2: "6", 3: None}, "toy")
    assert quality == {"pairs": 4, "with_gold": 3, "chosen_accuracy": 1 / 3, "rejected_accuracy": 1 / 3, "margin": 0.0}
    assert pair_quality(pairs, {0: "4"}, "toy")["margin"] == 1.0 and pair_quality(pairs, {}, "toy")["margin"] is None
