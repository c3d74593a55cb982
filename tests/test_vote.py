"""Extraction, normalisation before counting, and votes."""

import json
import sys
import time

import pytest

import vote
from vote import InputError, count_votes, extract_answer, read_jsonl, response_answers, same_answer


@pytest.mark.parametrize("text, answer", [
    ("so 4 + 14 = 18.\n#### 18", "18"), ("#### 1,000", "1000"), ("#### $18.00", "18"), ("#### -3", "-3"),
    ("#### -$5", "-5"), ("#### $-5", "-5"), ("#### 3/4", "0.75"), ("#### 0.750", "0.75"), ("#### .5", "0.5"),
    ("#### 1/3", "0.333333"), ("#### 0.3333333333333333", "0.333333"), ("#### 50%", "50"), ("#### 18.", "18"),
    (r"#### 1\frac{1}{2}", "1.5"), ("#### 3 1/2", "3.5"), (r"\boxed{\frac{-1}{2}}", "-0.5"), ("#### 20 / 4", "5"),
    ("#### Step 1: Add\n3+4=7\n#### Step 2: So\n\\boxed{7}", "7"), ("#### 5\n#### ", "5"),
    ("I have 3.\n#### many", None), ('{"answer": "\\ud800 5"}', "5"), ("#### –5", "-5"),
    ("#### 42 apples = 6*7", "42"), ("#### 42 (because 7 = 1 week)", "42"), (r"#### 10\,000", "10000"),
    ("The answer is 5. Check: 10-3 = 7", "5"), ('{"answer": "\\u20ac18"}', "18"),
    ("####18 apples", "18"), ("#### x = 3 + 4 = 7", "7"), ('{"reasoning": "5", "answer": "12 apples"}', "12"),
    ("A: 18", "18"), ("18", "18"), ("#### 5\nQ: Next?\nA: #### 6", "5"), (r"\boxed 7", "7"),
    ("#### 007", "7"), ("#### -0", "0"), ("#### 1,234,567.50", "1234567.5"), ("#### −4", "-4"),
    ("#### 3\nno, wait\n#### 5", "5"),  # the last one counts
    (r"thus \boxed{18}", "18"), (r"\boxed{1} or \boxed{2}", "2"), (r"\boxed{\$1{,}000}", "1000"),
    (r"\boxed{x = 5}", "5"),
    (r"\boxed{12\text{ apples}}", "12"), (r"\boxed{4} #### 5", "5"),  # the task's own mark comes first
    ("#### none, \\boxed{4}", "4"), ("The answer is 18.", "18"), ("", None), ("####", None), ("#### many", None),
    (r"\boxed{18", None), (r"\boxed{\text{eighteen}}", None), ("#### 1/0", None), ("#### 18/", "18"),
])
def test_number_answers(text, answer):
    assert extract_answer(text, "gsm8k") == answer
    assert extract_answer(text, "toy") == answer
    if answer is not None:  # a canonical answer is its own canonical answer
        assert extract_answer(f"#### {answer}", "gsm8k") == extract_answer(rf"\boxed{{{answer}}}", "gsm8k") == answer


@pytest.mark.parametrize("text", [
    "####" * 250_000, "####" + " " * 1_000_000, "#### " + "1" * 1_000_000, "#### -" * 200_000, r"\boxed{" * 150_000,
    r"\boxed{" + "{" * 1_000_000, "#### " + "111," * 250_000, "\\" * 1_000_000])
def test_a_megabyte_of_rubbish_takes_linear_time(text):
    started = time.time()
    assert extract_answer(text, "gsm8k") is None
    assert time.time() - started < 5  # quadratic time would be hours


def test_votes_are_counted_on_canonical_answers_and_none_never_votes():
    answers = [extract_answer(t, "toy") for t in ("#### 7", "#### 7.0", "#### $7", "#### 8", "none", "?", "", "x")]
    assert count_votes(answers, "toy") == [3, 3, 3, 1, 0, 0, 0, 0]  # four without an answer are more than three 7s
    assert not same_answer(None, None, "toy") and same_answer("7", "7", "toy") and not same_answer("7", None, "toy")


def test_votes_do_not_depend_on_the_order():
    answers = ["1", "2", None, "1", "3", "2", "1", None]
    rotated = answers[3:] + answers[:3]
    assert count_votes(rotated, "toy") == count_votes(answers, "toy")[3:] + count_votes(answers, "toy")[:3]


def test_a_response_that_was_cut_off_has_no_answer():
    row = {"responses": ["#### 1", "#### 1"], "ended": [True, False]}
    assert response_answers(row, "toy") == ["1", None]
    assert response_answers({"responses": ["#### 1"]}, "toy") == ["1"]  # files made elsewhere may not say


def test_unknown_task_is_named():
    with pytest.raises(InputError, match="'nope'"):
        extract_answer("#### 1", "nope")


def test_jsonl_errors_name_file_and_line(tmp_path):
    path = tmp_path / "p.jsonl"
    for content, needle in [('{"a": 1}\n{"a": \n', "line 2"), ("[1]\n", "line 1"), ('{"b": 1}\n', "'a'")]:
        path.write_text(content)
        with pytest.raises(InputError, match=needle) as error:
            read_jsonl(path, required=("a",))
        assert str(path) in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_jsonl(path)
    with pytest.raises(InputError, match="no such file"):
        read_jsonl(tmp_path / "absent")


def test_text_with_odd_line_breaks_survives_a_round_trip(tmp_path):
    rows = [{"text": "a\u2028b\x0bc\r\nd\x85"}, {"text": "é ∀ 😀"}]
    vote.write_jsonl(tmp_path / "x.jsonl", rows)
    assert read_jsonl(tmp_path / "x.jsonl") == rows


def test_the_script_shows_votes_problem_by_problem(tmp_path, monkeypatch, capsys):
    row = {"id": "a", "question": "How many?", "responses": ["#### 4", "#### 4.0", "#### 5", "hm"]}
    (tmp_path / "r.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(sys, "argv", ["vote.py", str(tmp_path / "r.jsonl")])
    vote.main()
    shown = capsys.readouterr().out
    assert "How many?" in shown and "2 × 4" in shown and "1 × no answer" in shown and "50.0 %" in shown
