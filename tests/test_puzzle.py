"""ZebraLogic: the table in an answer, its votes, its cells, and rephrased puzzles."""

import ast
import json

import pytest
from conftest import DATA, needs_data
from hypothesis import given, settings
from hypothesis import strategies as st

from common.files import read_jsonl
from eval import score, table
from tasks.task import gold_answer
from tasks.zebralogic.puzzle import json_form, rephrased_puzzle, right_cells
from vote import count_votes, extract_answer, response_answers

SOLVED = {"solution": {"House 1": {"Name": "eric", "Drink": "root beer"},
                       "House 2": {"Name": "arnold", "Drink": "tea"}}}
GOLD = json.dumps(SOLVED, sort_keys=True)
AS_PUBLISHED = {"header": ["House", "Name", "Drink"],
                "rows": [["1", "Eric", "root beer"], ["2", "Arnold", "Tea"]]}
BLANK = json.dumps({"solution": {"House 1": {"Name": "___"}}})
# One cell of four is right: Eric in House 1. What it has beside them is free.
HALF = json.dumps({"solution": {
    "House 1": {"Name": "eric", "Drink": "tea", "Pet": "cat"}, "House 2": "arnold"}})


# --------------------------------------------------------------------------------------------
# The table in a response


@pytest.mark.parametrize("text, answer", [
    (f"First … {json.dumps(SOLVED)} done", GOLD),
    (json.dumps(SOLVED["solution"]), GOLD),  # a bare grid
    ('{"solution": {"House 1": {"Name": " ERIC ", "Drink": ["root beer", "tea"]}, '
     '"House 2":\n {"Name": "Arnold", "Drink": "TEA"}}}', GOLD),
    (f'{{"a": 1}} {json.dumps(SOLVED)} {{"solution": null}}', None),  # the last object counts
    (json.dumps(SOLVED)[:-1], None),
    ('"solution": ' + json.dumps(SOLVED["solution"]) + "}", None),  # a piece of something broken
    ('{"solution": {"House 1": {"Name": null, "Drink": []}}}',
     '{"solution": {"House 1": {"Drink": null, "Name": null}}}'),
    ('{"solution": NaN}', '{"solution": "nan"}'),
    ('{"reasoning": "…"}', None), ("{}", None), ("", None), ("{{{", None),
])
def test_the_last_whole_object_is_the_answer(text, answer):
    assert extract_answer(text, "zebralogic") == answer
    if answer is not None:  # an answer is its own spelling
        assert extract_answer(answer, "zebralogic") == answer


PIECES = ["{", "}", '"', '"solution"', ":", "[", "]", "null", "1", ",", "\n", '"House 1"', "NaN",
          "\\"]
any_text = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@pytest.mark.parametrize("task", ["zebralogic", "gsm8k"])
@given(text=any_text)
@settings(max_examples=500, deadline=None)
def test_any_text_is_read_and_an_answer_is_its_own_spelling(task, text):
    answer = extract_answer(text, task)
    if answer is not None:
        assert extract_answer(answer, task) == answer


def test_votes_are_on_the_whole_table():
    milk = {"solution": {**SOLVED["solution"], "House 2": {"Name": "arnold", "Drink": "milk"}}}
    answers = [extract_answer(json.dumps(table), "zebralogic") for table in (SOLVED, milk, SOLVED)]
    assert count_votes([*answers, None]) == [2, 1, 2, 0]


def test_copies_of_the_blank_form_do_not_vote():
    answers = response_answers({"responses": [BLANK, BLANK, GOLD]}, "zebralogic")
    assert answers == [None, None, GOLD]
    assert count_votes(answers) == [0, 0, 1]


# --------------------------------------------------------------------------------------------
# Scores


def test_right_cells():
    assert right_cells(HALF, GOLD) == (1, 4)
    assert right_cells(None, GOLD) == (0, 4)
    assert right_cells(GOLD, GOLD) == (4, 4)


def test_the_four_scores_by_hand():
    """Puzzles a, b of 2 · 2 cells are easy, c of 3 · 4 is hard: 4, 1 and 0 of 20 are right."""
    attributes = ("Name", "Pet", "Hat", "Car")
    hard = {"solution": {f"House {i}": dict.fromkeys(attributes, str(i)) for i in (1, 2, 3)}}
    result = score([
        {"id": "a", "responses": [GOLD, HALF], "greedy": GOLD, "gold": GOLD},
        {"id": "b", "responses": [HALF, HALF], "greedy": HALF, "gold": AS_PUBLISHED},
        {"id": "c", "responses": ["?", "?"], "greedy": "?", "gold": json.dumps(hard)},
    ], "zebralogic")
    assert result["greedy"] == pytest.approx(1 / 3)
    assert result["greedy_cells"] == pytest.approx(5 / 20)
    assert result["greedy_easy"] == 0.5 and result["greedy_hard"] == 0.0
    assert result["unparsed"] == pytest.approx(1 / 3)
    header, row = table({"x": result}).splitlines()
    assert header.split()[:4] == ["greedy", "cells", "easy", "hard"]
    assert row.split()[:7] == ["x", "33.3", "±", "27.2", "25.0", "50.0", "0.0"]


def test_gold_tables_may_be_absent_or_blanked():
    assert gold_answer({"solution": AS_PUBLISHED}, "zebralogic") == GOLD
    blanked = {"header": ["House", "Name"], "rows": [["1", "___"]]}
    assert gold_answer({"solution": blanked}, "zebralogic") is None
    assert gold_answer({}, "zebralogic") is None


def test_without_gold_there_is_consistency_but_no_accuracy():
    result = score([{"id": "a", "responses": [GOLD, GOLD]}], "zebralogic")
    assert result["greedy"] is None and result["vote_share"] == 1.0


@pytest.mark.parametrize("gold", [
    5, {"a": 1}, '{"solution": "x"}', '{"solution": {}}', {"header": ["House"], "rows": [1]}, "no",
], ids=str)
def test_what_is_no_gold_table_is_none(gold):
    row = {"id": "a", "responses": [GOLD], "greedy": GOLD, "gold": gold}
    assert score([row], "zebralogic")["greedy"] is None


@pytest.mark.parametrize("text", [
    '{"solution": "x"}', '{"solution": {"House 1": "x"}}', '{"solution": []}', "?"])
def test_an_untidy_table_is_wrong(text):
    row = {"id": "a", "responses": [text], "greedy": text, "gold": GOLD}
    assert score([row], "zebralogic")["greedy"] == 0.0


@needs_data
def test_zeroeval_verdicts_cell_by_cell():
    rows = read_jsonl(DATA / "dev/zebra_outputs_dev.jsonl")
    for row in rows:
        answer = extract_answer(row["output"], "zebralogic")
        solution = row["gold"]
        if not isinstance(solution, dict):
            solution = ast.literal_eval(solution)
        right, cells = right_cells(answer, gold_answer({"solution": solution}, "zebralogic"))
        assert (answer is None) == row["no_answer"], row["id"]
        assert (right, cells) == (row["correct_cells"], row["total_cells"]), row["id"]
        assert (right == cells) == row["solved"], row["id"]
    assert len(rows) > 400


# --------------------------------------------------------------------------------------------
# The form to fill in, and new puzzles


def test_the_form_has_the_puzzles_own_attributes():
    form = json_form({"size": "2*2", "header": ["House", "Name", "Drink"]})
    blanks = {"Name": "___", "Drink": "___"}
    assert json.loads(form) == {
        "reasoning": "___", "solution": {"House 1": blanks, "House 2": blanks}}


@pytest.mark.parametrize("written", [
    'New Attribute Map: {"Name": "Name", "Drink": "Food"}\n"""\nTwo houses\n"""',
    "New Attribute Map: {'Drink': 'Food'}\n```\n\"\"\"Two houses\"\"\" ok",
])
def test_a_rephrased_puzzle_brings_its_new_shape(written):
    source = {"size": "2*2", "header": ["House", "Name", "Drink"]}
    assert rephrased_puzzle(written, source) == {
        "question": "Two houses", "size": "2*2", "header": ["House", "Name", "Food"]}


@pytest.mark.parametrize("written", [
    'New Attribute Map: {"Drink": "Name"}\n"""\nTwo houses\n"""',  # two columns of one name
    'New Attribute Map: {"Car": "Bike"}\n"""\nTwo houses\n"""',  # no such column
    '"""\nTwo houses\n"""',
    'New Attribute Map: {"Drink": "Food"}\nTwo houses',
    'New Attribute Map: {"Drink": 3}\n"""a"""',
    'New Attribute Map: {oops}\n"""a"""',
    "",
])
def test_a_malformed_puzzle_is_none(written):
    source = {"size": "2*2", "header": ["House", "Name", "Drink"]}
    assert rephrased_puzzle(written, source) is None
