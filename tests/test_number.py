"""The number in the final answer of a word problem, in one spelling per value."""

import time

import pytest

from tasks.gsm8k.number import first_number, normalize_number
from vote import MAX_MARKS, extract_answer


@pytest.mark.parametrize("text, answer", [
    # the task's own mark
    ("so 4 + 14 = 18.\n#### 18", "18"), ("####18 apples", "18"), ("#### 18.", "18"),
    ("#### many", None), ("####", None), ("I have 3.\n#### many", None),
    # spellings of a value
    ("#### 1,000", "1000"), ("#### 1,234,567.50", "1234567.5"), (r"#### 10\,000", "10000"),
    ("#### $18.00", "18"), ("#### 50%", "50"), ("#### 007", "7"), ("#### .5", "0.5"),
    ("#### 0.750", "0.75"), ("#### 0.3333333333333333", "0.333333"),
    # signs
    ("#### -3", "-3"), ("#### -$5", "-5"), ("#### $-5", "-5"), ("#### -0", "0"),
    ("#### −4", "-4"), ("#### –5", "-5"),
    # fractions
    ("#### 3/4", "0.75"), ("#### 1/3", "0.333333"), ("#### 20 / 4", "5"), ("#### 18/", "18"),
    (r"#### 1\frac{1}{2}", "1.5"), ("#### 3 1/2", "3.5"), (r"\boxed{\frac{-1}{2}}", "-0.5"),
    ("#### 1/0", None),
    # calculations
    ("#### x = 3 + 4 = 7", "7"), ("#### 42 apples = 6*7", "42"),
    ("#### 42 (because 7 = 1 week)", "42"),
    # of several marks the last one that has a number
    ("#### 3\nno, wait\n#### 5", "5"), ("#### 5\n#### ", "5"),
    # a base model runs on with another problem
    ("#### 5\nQ: Next?\nA: #### 6", "5"),
    # boxes
    (r"thus \boxed{18}", "18"), (r"\boxed{1} or \boxed{2}", "2"), (r"\boxed 7", "7"),
    (r"\boxed{\$1{,}000}", "1000"), (r"\boxed{x = 5}", "5"), (r"\boxed{12\text{ apples}}", "12"),
    (r"\boxed{18", None), (r"\boxed{\text{eighteen}}", None),
    # a mark and a box: the later one counts, for #### is also a heading
    ("#### Step 1: Add\n3+4=7\n#### Step 2: So\n\\boxed{7}", "7"), (r"\boxed{4} #### 5", "5"),
    ("#### none, \\boxed{4}", "4"),
    # no mark at all
    ("The answer is 18.", "18"), ("The answer is 5. Check: 10-3 = 7", "5"), ("A: 18", "18"),
    ("18", "18"), ("", None),
    # JSON
    ('{"reasoning": "5", "answer": "12 apples"}', "12"), ('{"answer": "\\u20ac18"}', "18"),
    ('{"answer": "\\ud800 5"}', "5"),  # half a surrogate pair is no text
])
def test_number_of_a_response(text, answer):
    assert extract_answer(text, "gsm8k") == answer
    assert extract_answer(text, "toy") == answer
    assert extract_answer(text, "wordproblems") == answer
    if answer is not None:  # an answer is its own spelling
        assert extract_answer(f"#### {answer}", "gsm8k") == answer
        assert extract_answer(rf"\boxed{{{answer}}}", "gsm8k") == answer
        assert normalize_number(answer) == answer


def test_a_number_is_looked_for_in_exactly_the_last_marks():
    """The number stands in the tenth mark from the end, then in the eleventh."""
    assert MAX_MARKS == 10
    text = "#### 7\n"
    assert extract_answer(text + "#### none\n" * 9, "gsm8k") == "7"
    assert extract_answer(text + "#### none\n" * 10, "gsm8k") is None


@pytest.mark.parametrize("text, number", [
    ("$1,000.50", "1000.5"), ("3/4", "0.75"), ("18.00", "18"), ("- 5", "-5"), ("+5", "5"),
    ("1" * 40, "1" * 40), ("1" * 41, None), ("", None), ("many", None), ("1/0", None),
])
def test_normalize_number(text, number):
    assert normalize_number(text) == number


@pytest.mark.parametrize("statement, number", [
    ("12 * 6 = 72", "72"), ("72 = 12 * 6", "72"), ("5. Check: 10 - 3 = 7", "5"),
    ("7 5/2", None),  # no mixed number: 5/2 is above 1
    ("no number", None),
])
def test_first_number_of_a_statement(statement, number):
    assert first_number(statement) == number


@pytest.mark.parametrize("text", [
    "####" * 250_000, "####" + " " * 1_000_000, "#### " + "1" * 1_000_000, "#### -" * 200_000,
    "#### " + "111," * 250_000, r"\boxed{" * 150_000, r"\boxed{" + "{" * 1_000_000,
    "\\" * 1_000_000,
], ids=["marks", "blanks", "digits", "signs", "thousands", "boxes", "braces", "backslashes"])
def test_a_megabyte_of_rubbish_takes_linear_time(text):
    started = time.time()
    assert extract_answer(text, "gsm8k") is None
    assert time.time() - started < 5  # quadratic time would be hours
