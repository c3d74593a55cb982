"""The paper's analyses: orders of responses, Somers' D, accuracy of pairs, the paired bootstrap."""

import json
import sys

import numpy as np
import pytest

from bench import analyse
from bench.analyse import (order_shares, pair_quality, paired_difference, somers_d,
                           votes_and_accuracy)
from common.cli import InputError, run_script
from common.files import write_jsonl

ROW = {"id": "a", "responses": ["#### 4", "#### 4", "#### 5", "no", "#### 9"],
       "ended": [True, True, True, True, False], "greedy": "#### 5", "gold": "4"}


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", ["analyse.py", *map(str, argv)])
    run_script(analyse.main)


# Orders of a correct and a wrong response (Figure 3)


def test_order_of_correct_and_wrong_responses_by_hand():
    """Right: 0 and 1, wrong: 2, 3 and 4. Of the six pairs two are in order, one tied, three not."""
    shares = order_shares([ROW], "toy", [[5.0, 1.0, 1.0, 2.0, 6.0]])
    assert shares == {"right": 2 / 6, "tied": 1 / 6, "wrong": 3 / 6}


def test_problems_without_a_correct_response_have_no_order():
    row = ROW | {"gold": "77"}
    assert order_shares([row], "toy", [[1, 2, 3, 4, 5]]) == {"right": 0, "tied": 0, "wrong": 0}


# Somers' D (Tables 6 and 7)


@pytest.mark.parametrize("seed", range(4))
def test_somers_d_equals_scipys_in_both_directions(seed):
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(seed)
    votes, right = rng.integers(0, 9, 200), rng.integers(0, 2, 200)
    of_votes = stats.somersd(right, votes).statistic  # scipy has the given one first
    of_accuracy = stats.somersd(votes, right).statistic
    assert somers_d(votes, right) == pytest.approx(of_votes)
    assert somers_d(right, votes) == pytest.approx(of_accuracy)


def test_somers_d_by_hand():
    assert somers_d([1, 2, 3], [0, 0, 1]) == 1.0  # two pairs untied on the given, both concordant
    assert somers_d([1, 2, 3], [0, 0, 0]) == 0.0  # none untied


def test_votes_and_accuracy_look_at_the_first_k_alone():
    """At k = 3 the most voted is right with 2 votes, the least voted wrong with 1; 4 adds a 0."""
    rows = [ROW | {"id": i} for i in range(3)]
    assert votes_and_accuracy(rows, "toy", 3) == (1.0, 1.0)
    assert votes_and_accuracy(rows, "toy", 4) == (1.0, 1.0)


def test_votes_that_say_nothing_of_who_is_right():
    split = [ROW | {"id": i, "gold": gold} for i, gold in enumerate("4455")]
    assert votes_and_accuracy(split, "toy", 3) == (0.0, 0.0)


# Accuracy of pairs (Table 5)

PAIR = {"chosen": "x", "rejected": "y", "answer_chosen": "4", "answer_rejected": "5"}


def test_pair_quality_counts_pairs_with_a_known_answer():
    pairs = [{"id": i, **PAIR} for i in range(4)]
    quality = pair_quality(pairs, {0: "4", 1: "5", 2: "6", 3: None}, "toy")
    assert quality == {"pairs": 4, "with_gold": 3, "chosen_accuracy": 1 / 3,
                       "rejected_accuracy": 1 / 3, "margin": 0.0}


def test_margin_of_pairs_that_are_all_right_and_of_none():
    pairs = [{"id": 0, **PAIR}]
    assert pair_quality(pairs, {0: "4"}, "toy")["margin"] == 1.0
    assert pair_quality(pairs, {}, "toy")["margin"] is None


# The paired bootstrap


def test_paired_difference_uses_the_shared_problems():
    """Problems 25 to 49 are in both; of these 12 are right in a alone."""
    a = [ROW | {"id": str(i), "greedy": "#### 4"} for i in range(50)]
    b = [ROW | {"id": str(i), "greedy": f"#### {4 if i % 2 else 5}"} for i in range(25, 75)]
    mean, low, high = paired_difference(a, b, "toy", "greedy")
    assert mean == 12 / 25
    assert 0.2 < low < mean < high < 0.75
    assert paired_difference(a, a, "toy", "greedy") == (0.0, 0.0, 0.0)


def test_files_without_a_shared_problem_are_refused():
    with pytest.raises(InputError, match="share no problem"):
        paired_difference([ROW], [ROW | {"id": "elsewhere"}], "toy", "greedy")


# As a script


def test_files_made_elsewhere_are_compared_where_they_can_be(tmp_path, monkeypatch, capsys):
    """No greedy response, no ids, one row without gold."""
    write_jsonl(tmp_path / "a.jsonl", [{"responses": ["#### 4"], "gold": "4"},
                                       {"responses": ["#### 5"]}])
    write_jsonl(tmp_path / "b.jsonl", [{"responses": ["#### 5"], "gold": "4"},
                                       {"responses": ["#### 5"]}])
    run(monkeypatch, tmp_path / "a.jsonl", "--against", tmp_path / "b.jsonl")
    shown = capsys.readouterr().out
    assert "self_consistency minus" in shown and "+100.0 points" in shown
    assert "greedy minus" not in shown


def test_judges_are_shown_and_printed_as_json(tmp_path, monkeypatch, capsys):
    row = ROW | {"question": "How many?"}
    write_jsonl(tmp_path / "r.jsonl", [row])
    run(monkeypatch, tmp_path / "r.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert set(json.loads(lines[-1])["order"]) == {"votes", "reward"}  # the toy task has a judge
    assert "Somers' D at k = 4" in "\n".join(lines) and "k = 8" not in "\n".join(lines)


def test_pairs_are_judged_by_the_tasks_own_answers(tmp_path, monkeypatch, capsys):
    write_jsonl(tmp_path / "pairs.jsonl", [{"id": "train-0", **PAIR}])
    run(monkeypatch, "--pairs", tmp_path / "pairs.jsonl")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["with_gold"] == 1 and result["chosen_accuracy"] == 0.0


@pytest.mark.parametrize("argv, needle", [
    ([], "give a file of responses"),
    (["--pairs", "p.jsonl", "--task", "gsm8k"], "--pairs: needs --problems"),
    (["r.jsonl"], "no line has a `gold`"),
])
def test_what_an_analysis_needs_is_named(argv, needle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "r.jsonl", [{"responses": ["#### 4"]}])
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, *argv)
    assert exit_.value.code == 2
    assert needle in capsys.readouterr().err
