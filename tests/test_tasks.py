"""The benchmarks as their publishers ship them: loaders, gold answers, prompts, puzzles and their metrics."""

import ast
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sample
from eval import gold_answer, score, table
from sample import CHATS, Task, Text, read_problems
from tasks.zebralogic.puzzle import json_form, rephrased_puzzle, right_cells
from vote import InputError, count_votes, extract_answer, read_jsonl, response_answers

DATA = Path(os.environ.get("SCPO_DATA", "/no/such/folder"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="SCPO_DATA does not name the folder of benchmark data")
PUZZLE = {"id": "lgp-1", "size": "2*2", "puzzle": "Two houses …", "solution": {
    "header": ["House", "Name", "Drink"], "rows": [["1", "Eric", "root beer"], ["2", "Arnold", "Tea"]]}}
SOLVED = {"solution": {"House 1": {"Name": "eric", "Drink": "root beer"},
                       "House 2": {"Name": "arnold", "Drink": "tea"}}}
GOLD = json.dumps(SOLVED, sort_keys=True)


def write(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- tables


@pytest.mark.parametrize("text, answer", [
    (f"First … {json.dumps(SOLVED)} done", GOLD), (json.dumps(SOLVED["solution"]), GOLD),  # a bare grid
    ('{"solution": {"House 1": {"Name": " ERIC ", "Drink": ["root beer", "tea"]}, '
     '"House 2":\n {"Name": "Arnold", "Drink": "TEA"}}}', GOLD),
    (f'{{"a": 1}} {json.dumps(SOLVED)} {{"solution": null}}', None),  # the last object counts
    (json.dumps(SOLVED)[:-1], None), ('{"reasoning": "…"}', None), ("{}", None), ("", None), ("{{{", None),
    ('"solution": ' + json.dumps(SOLVED["solution"]) + "}", None),  # a piece of something broken
    ('{"solution": {"House 1": {"Name": null, "Drink": []}}}',
     '{"solution": {"House 1": {"Drink": null, "Name": null}}}'), ('{"solution": NaN}', '{"solution": "nan"}')])
def test_the_last_whole_object_is_the_answer(text, answer):
    assert extract_answer(text, "zebralogic") == answer
    assert answer is None or extract_answer(answer, "zebralogic") == answer


@given(st.one_of(st.text(), st.lists(st.sampled_from(
    ['{', '}', '"', '"solution"', ':', '[', ']', 'null', '1', ',', '\n', '"House 1"', "NaN", "\\"])).map("".join)))
@settings(max_examples=500, deadline=None)
def test_any_text_is_read(text):
    for task in ("zebralogic", "gsm8k"):
        answer = extract_answer(text, task)
        assert answer is None or extract_answer(answer, task) == answer


def test_votes_are_on_the_whole_table():
    other = {"solution": {**SOLVED["solution"], "House 2": {"Name": "arnold", "Drink": "milk"}}}
    answers = [extract_answer(json.dumps(t), "zebralogic") for t in (SOLVED, other, SOLVED)] + [None]
    assert count_votes(answers, "zebralogic") == [2, 1, 2, 0]


def test_cells_and_the_four_metrics_by_hand():
    half = json.dumps({"solution": {"House 1": {"Name": "eric", "Drink": "tea", "Pet": "cat"}, "House 2": "arnold"}})
    assert right_cells(half, GOLD) == (1, 4) and right_cells(None, GOLD) == (0, 4) and right_cells(GOLD, GOLD) == (4, 4)
    hard = {"solution": {f"House {i}": dict.fromkeys(("Name", "Pet", "Hat", "Car"), str(i)) for i in (1, 2, 3)}}
    rows = [{"id": "a", "responses": [GOLD, half], "greedy": GOLD, "gold": GOLD},
            {"id": "b", "responses": [half, half], "greedy": half, "gold": PUZZLE["solution"]},
            {"id": "c", "responses": ["?", "?"], "greedy": "?", "gold": json.dumps(hard)}]
    result = score(rows, "zebralogic")
    assert result["greedy"] == pytest.approx(1 / 3) and result["greedy_cells"] == pytest.approx(5 / 20)
    assert result["greedy_easy"] == 0.5 and result["greedy_hard"] == 0.0 and result["unparsed"] == pytest.approx(1 / 3)
    assert "33.3" in table({"x": result})


def test_gold_tables_may_be_absent_or_blanked():
    blanked = {"header": ["House", "Name"], "rows": [["1", "___"]]}
    assert gold_answer(PUZZLE, "zebralogic") == GOLD
    assert gold_answer({"solution": blanked}, "zebralogic") is gold_answer({}, "zebralogic") is None
    result = score([{"id": "a", "responses": [GOLD, GOLD]}], "zebralogic")
    assert result["greedy"] is None and result["vote_share"] == 1.0


@needs_data
def test_zeroeval_verdicts_cell_by_cell():
    rows = read_jsonl(DATA / "dev/zebra_outputs_dev.jsonl")
    for row in rows:
        answer = extract_answer(row["output"], "zebralogic")
        gold = row["gold"] if isinstance(row["gold"], dict) else ast.literal_eval(row["gold"])
        right, cells = right_cells(answer, gold_answer({"solution": gold}, "zebralogic"))
        assert (answer is None) == row["no_answer"], row["id"]
        assert (right, cells, right == cells) == (row["correct_cells"], row["total_cells"], row["solved"]), row["id"]
    assert len(rows) > 400


# --- loaders and prompts


@needs_data
@pytest.mark.parametrize("name, task, rows, golds", [
    ("gsm8k/test.jsonl", "gsm8k", 1319, 1319), ("gsm8k/train.jsonl", "gsm8k", 7473, 7473),
    ("math/test.jsonl", "math", 5000, 5000), ("math/train.jsonl.gz", "math", 7500, 7498),
    ("zebralogic/puzzles.jsonl", "zebralogic", 1000, 0),
    *[(f"wordproblems/{name}.jsonl", "wordproblems", rows, rows) for name, rows in (
        ("svamp", 1000), ("multiarith", 600), ("addsub", 395), ("singleeq", 508), ("singleop", 562))]])
def test_public_files_load_as_they_are(name, task, rows, golds, tmp_path):
    problems = read_problems(DATA / name, Task.load(task))
    assert len(problems) == rows == len({p["id"] for p in problems})
    assert sum(gold_answer(p, task) is not None for p in problems) == golds
    if name.startswith("gsm8k"):
        assert all(gold_answer(p, task) == p["answer"].split("####")[1].replace(",", "").strip() for p in problems)


def test_every_task_loads_and_fills_its_prompts(toy_checkpoint):
    text = Text(toy_checkpoint)
    for path in sample.TASKS.glob("*/task.json"):
        task = Task.load(path.parent.name)
        problem = {"question": "How many?", "size": "2*3", "header": ["House", "Name", "Drink", "Pet"]}
        for chat in CHATS:
            text.chat, text.frame = chat, CHATS[chat][0]
            prompt = text.prompt(task, problem)
            assert "How many?" in prompt and "{question}" not in prompt and "{skeleton}" not in prompt
            assert prompt.count("<|begin_of_text|>") == (chat == "llama3")
            written = text.writer_prompt(task, [problem], ["Name", "Pet"])
            assert "How many?" in written and "{examples}" not in written and "{attributes}" not in written


def test_the_skeleton_has_the_puzzles_own_attributes(tmp_path):
    [problem] = read_problems(write(tmp_path / "p.jsonl", PUZZLE), Task.load("zebralogic"))
    blanks = json.loads(json_form(problem))
    assert blanks == {"reasoning": "___", "solution": {f"House {i}": {"Name": "___", "Drink": "___"} for i in (1, 2)}}
    assert "Eric" not in json.dumps(sample.unlabelled(problem)) and sample.unlabelled(problem)["size"] == "2*2"


@pytest.mark.parametrize("written, header", [
    ('New Attribute Map: {"Name": "Name", "Drink": "Food"}\n"""\nTwo houses\n"""', ["House", "Name", "Food"]),
    ("New Attribute Map: {'Drink': 'Food'}\n```\n\"\"\"Two houses\"\"\" ok", ["House", "Name", "Food"]),
    ('New Attribute Map: {"Drink": "Name"}\n"""\nTwo houses\n"""', None),  # two columns of one name
    ('New Attribute Map: {"Car": "Bike"}\n"""\nTwo houses\n"""', None), ('"""\nTwo houses\n"""', None),
    ('New Attribute Map: {"Drink": "Food"}\nTwo houses', None), ('New Attribute Map: {"Drink": 3}\n"""a"""', None),
    ("New Attribute Map: {oops}\n\"\"\"a\"\"\"", None), ("", None)])
def test_a_rephrased_puzzle_brings_its_new_shape(written, header):
    puzzle = rephrased_puzzle(written, {"size": "2*2", "header": ["House", "Name", "Drink"]})
    assert puzzle == (header and {"question": "Two houses", "size": "2*2", "header": header})


@pytest.mark.parametrize("task, rows, needle", [
    ("gsm8k", [{"problem": "x"}], "has no 'question'; it has problem"),
    ("math", [{"question": "x"}], "'problem'"),
    ("zebralogic", [{"puzzle": "x", "size": "2*2"}], "header"), ("gsm8k", [], "holds no problem"),
    ("zebralogic", [{**PUZZLE, "size": "2"}], "size"), ("gsm8k", [{"question": 3}], "must be a text"),
    ("gsm8k", [{"question": " "}], "line 1"), ("gsm8k", [{"question": "\ud800"}], "line 1"),
    ("zebralogic", [PUZZLE, {**PUZZLE, "header": "House"}], "line 2"),
    ("zebralogic", [{"puzzle": "x", "size": "2*2", "solution": "blank"}], "header"),
    ("gsm8k", [{"question": "x", "id": 1}, {"question": "y", "id": 1}], "same id")])
def test_every_dataset_error_has_its_line(task, rows, needle, tmp_path):
    with pytest.raises(InputError) as error:
        read_problems(write(tmp_path / "p.jsonl", *rows), Task.load(task))
    assert needle in str(error.value) and "\n" not in str(error.value)


def test_an_untidy_table_neither_votes_nor_raises():
    blank = json.dumps({"solution": {"House 1": {"Name": "___"}}})
    answers = response_answers({"responses": [blank, blank, GOLD]}, "zebralogic")
    assert answers[:2] == [None, None] and count_votes(answers, "zebralogic") == [0, 0, 1]  # k copies of the form
    for gold in (5, {"a": 1}, '{"solution": "x"}', '{"solution": {}}', {"header": ["House"], "rows": [1]}, "no"):
        assert score([{"id": "a", "responses": [GOLD], "greedy": GOLD, "gold": gold}], "zebralogic")["greedy"] is None
    for text in ('{"solution": "x"}', '{"solution": {"House 1": "x"}}', '{"solution": []}', "?"):
        assert score([{"id": "a", "responses": [text], "greedy": text, "gold": GOLD}], "zebralogic")["greedy"] == 0.0


def test_ids_are_texts_or_numbers_and_differ(tmp_path):
    for rows, needle in (([{"id": 1}, {"id": 1}], "same id"), ([{"id": [1]}], "line 1: `id`")):
        with pytest.raises(InputError, match=needle):
            read_problems(write(tmp_path / "p.jsonl", *[{"question": "x", **row} for row in rows]), Task.load("gsm8k"))


def test_a_cut_gzip_file_is_named(tmp_path):
    (tmp_path / "p.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00 not gzip")
    with pytest.raises(InputError, match="p.jsonl.gz"):
        read_problems(tmp_path / "p.jsonl.gz", Task.load("gsm8k"))
