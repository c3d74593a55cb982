"""Step 3: the votes. Which responses agree, and which have no answer."""

import json
import sys

import pytest

import vote
from common.cli import InputError
from vote import (count_votes, extract_answer, is_equiv, normalize, response_answers,
                  show_votes)

ROW = {"id": "a", "question": "How many?", "responses": ["#### 4", "#### 4.0", "#### 5", "hm"]}


def test_votes_are_counted_on_values_not_on_spellings():
    texts = ("#### 7", "#### 7.0", "#### $7", "#### 8")
    answers = [extract_answer(text, "toy") for text in texts]
    assert count_votes(answers) == [3, 3, 3, 1]


def test_no_answer_never_votes():
    """Four responses without an answer are more than the three 7s."""
    texts = ("#### 7", "#### 7.0", "#### $7", "#### 8", "none", "?", "", "x")
    answers = [extract_answer(text, "toy") for text in texts]
    assert count_votes(answers) == [3, 3, 3, 1, 0, 0, 0, 0]


def test_the_first_k_vote_for_all():
    assert count_votes(["1", "1", "2", "1", "2", "3", None], k=3) == [2, 2, 1, 2, 1, 0, 0]


def test_votes_do_not_depend_on_the_order():
    answers = ["1", "2", None, "1", "3", "2", "1", None]
    votes = count_votes(answers)
    assert votes == [3, 2, 0, 3, 1, 2, 3, 0]
    assert count_votes(answers[3:] + answers[:3]) == votes[3:] + votes[:3]


def test_a_response_that_was_cut_off_has_no_answer():
    row = {"responses": ["#### 1", "#### 1"], "ended": [True, False]}
    assert response_answers(row, "toy") == ["1", None]


def test_files_made_elsewhere_may_not_say_what_was_cut_off():
    assert response_answers({"responses": ["#### 1"]}, "toy") == ["1"]


def test_none_equals_nothing():
    assert not is_equiv(None, None, "toy")
    assert not is_equiv("7", None, "toy")
    assert not is_equiv(None, "7", "toy")


def test_answers_are_equal_however_they_are_spelled():
    assert is_equiv("7", "7", "toy") and not is_equiv("7", "8", "toy")
    assert is_equiv("$1,000.00", "1000", "gsm8k")
    assert is_equiv(r"\dfrac12", "0.5", "math") and not is_equiv("1/2", "2/1", "math")


@pytest.mark.parametrize("answer, task, spelling", [
    ("$1,000", "gsm8k", "1000"), ("many", "gsm8k", "many"), (r"\frac12", "math", "1/2"),
    ('{"solution": "X"}', "zebralogic", '{"solution": "X"}'), (None, "gsm8k", None),
])
def test_what_is_no_answer_keeps_its_spelling(answer, task, spelling):
    assert normalize(answer, task) == spelling


def test_unknown_task_is_named():
    with pytest.raises(InputError, match="'nope'"):
        extract_answer("#### 1", "nope")


def test_show_votes():
    assert show_votes(ROW, "toy").splitlines() == [
        "How many?",
        "    2 × 4            #### 4",
        "    1 × 5            #### 5",
        "    1 × no answer    hm",
    ]


def test_the_script_shows_votes_problem_by_problem(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(ROW) + "\n")
    monkeypatch.setattr(sys, "argv", ["vote.py", str(path)])
    vote.main()
    shown = capsys.readouterr().out
    assert show_votes(ROW, "toy") in shown
    assert shown.splitlines()[-1] == "1 problems, mean share of the most voted answer 50.0 %"
