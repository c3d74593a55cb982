"""Tasks: their task.json, their prompts, and the benchmarks as their publishers ship them."""

import json
from pathlib import Path

import pytest
from conftest import DATA, needs_data

from common.cli import InputError
from common.files import write_jsonl
from tasks import task as task_file
from tasks.chat import CHAT_FORMATS, ChatTokenizer, turns_around_prompt
from tasks.task import Task, gold_answer, read_golds, read_problems, task_names, unlabeled

PUZZLE = {
    "id": "lgp-1", "size": "2*2", "puzzle": "Two houses …",
    "solution": {"header": ["House", "Name", "Drink"],
                 "rows": [["1", "Eric", "root beer"], ["2", "Arnold", "Tea"]]},
}


def problems_of(tmp_path: Path, task: str, *rows: dict) -> list[dict]:
    write_jsonl(tmp_path / "p.jsonl", list(rows))
    return read_problems(tmp_path / "p.jsonl", Task.load(task))


# --------------------------------------------------------------------------------------------
# task.json

FIELDS = {
    "prompt": "{question}", "chat_prompt": "{question}", "example_template": "Q: {question}\n",
    "writer_template": "{examples}Q:",
    "defaults": {"k": 8, "tau": 0.5, "temperature": 0.7, "top_p": 0.9, "new_problems": 0,
                 "beta": 0.5, "alpha": 1.0, "lr": 5e-6, "epochs": 1, "batch_size": 16,
                 "max_new_tokens": 512},
}


@pytest.fixture
def gsm8k(tmp_path, monkeypatch):
    """Writes the task.json of a task, and loads it."""
    monkeypatch.setattr(task_file, "TASKS", tmp_path)
    (tmp_path / "gsm8k").mkdir()

    def load(**changes) -> Task:
        fields = {**FIELDS, **changes}
        kept = {name: value for name, value in fields.items() if value is not None}
        (tmp_path / "gsm8k/task.json").write_text(json.dumps(kept))
        return Task.load("gsm8k")

    return load


def test_what_a_task_does_not_say_has_a_default(gsm8k):
    task = gsm8k()
    assert (task.name, task.question_field) == ("gsm8k", "question")
    assert (task.n_examples, task.puzzle) == (4, False)
    assert task.runs_on is False


def test_a_text_may_be_given_as_its_lines(gsm8k):
    assert gsm8k(prompt=["Q: {question}", "A:"]).prompt == "Q: {question}\nA:"


def test_one_example_does_not_make_a_puzzle(gsm8k):
    """Its examples are shown in one line each, and its prompt has no table to fill in."""
    task = gsm8k(n_examples=1, prompt="{question} {skeleton}")
    assert task.n_examples == 1 and not task.puzzle
    assert task.writer_prompt([{"question": "Tom has\n3 apples?"}]) == "Q: Tom has 3 apples?\nQ:"
    problem = {"question": "How many?"}  # without the size of a table
    assert task.prompt_for(problem, is_chat=False) == "How many? {skeleton}"


def test_a_puzzle_says_that_it_is_one(gsm8k, tmp_path):
    """Whatever number of examples is shown: it has a table, and keeps its line breaks."""
    task = gsm8k(puzzle=True, prompt="{question} {skeleton}", question_field="puzzle")
    assert task.n_examples == 4 and task.puzzle
    assert task.writer_prompt([{"question": "Two\nhouses"}]) == "Q: Two\nhouses\nQ:"
    write_jsonl(tmp_path / "p.jsonl", [PUZZLE])
    [problem] = read_problems(tmp_path / "p.jsonl", task)
    assert '"Drink": "___"' in task.prompt_for(problem, is_chat=False)
    write_jsonl(tmp_path / "p.jsonl", [{"puzzle": "no table"}])
    with pytest.raises(InputError, match="a puzzle needs the `size`"):
        read_problems(tmp_path / "p.jsonl", task)


@pytest.mark.parametrize("changes, named", [
    ({"prompt": None}, "`prompt` is missing"),
    ({"puzle": True}, "`puzle` is no field of a task"),
    ({"prompt": 3}, "`prompt` must be a JSON str"),
    ({"n_examples": "1"}, "`n_examples` must be a JSON int"),
    ({"n_examples": True}, "`n_examples` must be a JSON int"),
    ({"puzzle": 1}, "`puzzle` must be a JSON bool"),
    ({"runs_on": "yes"}, "`runs_on` must be a JSON bool"),
    ({"defaults": {"k": 8}}, "`defaults` has no tau, temperature, top_p, new_problems, beta"),
])
def test_a_mistake_in_task_json_is_named(changes, named, gsm8k, tmp_path):
    with pytest.raises(InputError) as error:
        gsm8k(**changes)
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'gsm8k/task.json'}: {named}") and "\n" not in line


def test_an_unknown_task_is_told_which_there_are():
    with pytest.raises(InputError, match="--task nope: .* gsm8k, math, toy, wordproblems, zebra"):
        Task.load("nope")


def test_which_tasks_are_of_puzzles():
    assert [name for name in task_names() if Task.load(name).puzzle] == ["zebralogic"]


# --------------------------------------------------------------------------------------------
# Prompts


@pytest.mark.parametrize("chat", CHAT_FORMATS)
@pytest.mark.parametrize("name", task_names())
def test_every_task_fills_its_prompts(name, chat, toy_checkpoint):
    tokenizer = ChatTokenizer(toy_checkpoint, "plain")
    tokenizer.chat, tokenizer.format = chat, CHAT_FORMATS[chat]
    tokenizer.before, tokenizer.after = turns_around_prompt(CHAT_FORMATS[chat], "Be brief.", "")
    problem = {"question": "How many?", "size": "2*3", "header": ["House", "Name", "Drink", "Pet"]}
    task = Task.load(name)
    asked = tokenizer.prompt_for(task, problem)
    assert "How many?" in asked and "{question}" not in asked and "{skeleton}" not in asked
    assert "{prompt}" not in asked
    assert asked.count("Be brief.") == (chat != "plain") and "{system}" not in asked
    written = tokenizer.apply_template(task.writer_prompt([problem], ["Name", "Pet"]))
    assert "How many?" in written and "{question}" not in written
    assert "{examples}" not in written and "{attributes}" not in written
    assert ('["Name", "Pet"]' in written) == task.puzzle


# --------------------------------------------------------------------------------------------
# Problem files


@needs_data
@pytest.mark.parametrize("name, task, n_rows, n_golds", [
    ("gsm8k/test.jsonl", "gsm8k", 1319, 1319),
    ("gsm8k/train.jsonl", "gsm8k", 7473, 7473),
    ("math/test.jsonl", "math", 5000, 5000),
    ("math/train.jsonl.gz", "math", 7500, 7498),
    ("zebralogic/puzzles.jsonl", "zebralogic", 1000, 0),
    ("wordproblems/svamp.jsonl", "wordproblems", 1000, 1000),
    ("wordproblems/multiarith.jsonl", "wordproblems", 600, 600),
    ("wordproblems/addsub.jsonl", "wordproblems", 395, 395),
    ("wordproblems/singleeq.jsonl", "wordproblems", 508, 508),
    ("wordproblems/singleop.jsonl", "wordproblems", 562, 562),
])
def test_public_files_load_as_they_are(name, task, n_rows, n_golds):
    problems = read_problems(DATA / name, Task.load(task))
    assert len(problems) == n_rows == len({problem["id"] for problem in problems})
    golds = [gold_answer(problem, task) for problem in problems]
    assert sum(gold is not None for gold in golds) == n_golds


@needs_data
@pytest.mark.parametrize("name", ["gsm8k/test.jsonl", "gsm8k/train.jsonl"])
def test_gold_answers_of_gsm8k_stand_behind_its_mark(name):
    for problem in read_problems(DATA / name, Task.load("gsm8k")):
        marked = problem["answer"].split("####")[1].replace(",", "").strip()
        assert gold_answer(problem, "gsm8k") == marked


@pytest.mark.parametrize("task, rows, named", [
    ("gsm8k", [{"problem": "x"}], "line 1: has no 'question'; it has problem"),
    ("math", [{"question": "x"}], "line 1: has no 'problem'"),
    ("gsm8k", [], "holds no problem"),
    ("gsm8k", [{"question": 3}], "line 1: `question` must be a text, found 3"),
    ("gsm8k", [{"question": " "}], "line 1: `question` must be a text"),
    ("gsm8k", [{"question": "x", "id": 1}, {"question": "y", "id": 1}], "the same id"),
    ("gsm8k", [{"question": "x", "id": [1]}], "line 1: `id` must be a text or a number"),
    ("zebralogic", [{"puzzle": "x", "size": "2*2"}], "line 1: a puzzle needs"),
    ("zebralogic", [{**PUZZLE, "size": "2"}], "line 1: a puzzle needs the `size`"),
    ("zebralogic", [PUZZLE, {**PUZZLE, "header": "House"}], "line 2: a puzzle needs"),
    ("zebralogic", [{"puzzle": "x", "size": "2*2", "solution": "blank"}], "its `header`"),
])
def test_a_row_that_is_no_problem_has_its_line(task, rows, named, tmp_path):
    with pytest.raises(InputError) as error:
        problems_of(tmp_path, task, *rows)
    line = str(error.value)
    assert line.startswith(str(tmp_path / "p.jsonl")) and named in line and "\n" not in line


def test_half_a_surrogate_pair_is_no_question(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"question": "\\ud800"}\n')
    with pytest.raises(InputError, match="line 1"):
        read_problems(tmp_path / "p.jsonl", Task.load("gsm8k"))


def test_a_cut_gzip_file_is_named(tmp_path):
    (tmp_path / "p.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00 not gzip")
    with pytest.raises(InputError, match="p.jsonl.gz"):
        read_problems(tmp_path / "p.jsonl.gz", Task.load("gsm8k"))


def test_a_puzzle_that_is_shown_has_its_shape_but_no_answer(tmp_path):
    [problem] = problems_of(tmp_path, "zebralogic", PUZZLE)
    assert unlabeled(problem) == {"id": "lgp-1", "question": "Two houses …", "size": "2*2",
                                  "header": ["House", "Name", "Drink"]}


# --------------------------------------------------------------------------------------------
# Gold answers from two files


def test_answers_may_stand_in_a_file_of_their_own(tmp_path):
    """A problem's own answer counts before that of the other file; "c" has none in either."""
    problems = problems_of(
        tmp_path, "gsm8k", {"id": "a", "question": "x", "answer": "#### 1"},
        {"id": "b", "question": "x"}, {"id": "c", "question": "x"})
    answers = tmp_path / "answers.jsonl"
    write_jsonl(answers, [{"id": "a", "question": "x", "answer": "#### 9"},
                          {"id": "b", "question": "x", "answer": "#### 2"}])
    golds = read_golds(problems, Task.load("gsm8k"), str(answers), "--method gold")
    assert golds == {"a": "1", "b": "2"}


def test_no_answer_at_all_is_refused(tmp_path):
    problems = problems_of(tmp_path, "gsm8k", {"id": "b", "question": "x"})
    with pytest.raises(InputError, match="^--method gold: not one of the problems has an answer"):
        read_golds(problems, Task.load("gsm8k"), None, "--method gold")
