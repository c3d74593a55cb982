"""What a task is: how its problems are read from a file, shown to a model, and graded.

A task is a folder of tasks/ with a `task.json`: its prompts, and the defaults of the scripts'
options. The function that extracts its answers is named in `vote.EXTRACTORS`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from common.cli import InputError
from common.files import read_json, read_jsonl
from tasks.math.answer import boxed_answers
from tasks.zebralogic.puzzle import gold_table, json_form, table_header
from vote import EXTRACTORS, extract_answer

TASKS = Path(__file__).parent
NEEDED_DEFAULTS = (
    "k tau temperature top_p new_problems beta alpha lr epochs batch_size max_new_tokens".split()
)
# Options that name files: a default is a path from the task's folder.
SHIPPED_FILES = ("model", "problems", "answers", "test", "dev", "reward_model")


@dataclass(frozen=True)
class Task:
    """The fields of a `task.json`. A text may be given there as a list of its lines."""

    name: str  # of the folder
    prompt: str  # what a base model reads, with {question}; of a puzzle also {skeleton}
    chat_prompt: str  # what a chat model is asked, likewise
    example_template: str  # one problem among those shown to the problem writer, with {question}
    writer_template: str  # what the writer reads, with {examples}; of a puzzle also {attributes}
    defaults: dict  # option → value; a list where each round has its own
    question_field: str = "question"  # the field of a row that holds its problem
    n_examples: int = 4  # problems shown to the problem writer
    puzzle: bool = False  # it has a table to fill in; a new one is rephrased from one example
    runs_on: bool = False  # a base model goes on with another question: vote.NEXT_QUESTION ends it

    @classmethod
    def load(cls, name: str) -> "Task":
        """Read tasks/NAME/task.json. Raises InputError naming the file and the field."""
        path = TASKS / name / "task.json"
        if not path.exists() or name not in EXTRACTORS:
            raise InputError(f"--task {name}: no such task; there are {', '.join(task_names())}")
        raw = read_json(path)
        known = {f.name: f for f in fields(cls) if f.name != "name"}
        for key in raw:
            if key not in known:
                raise InputError(f"{path}: `{key}` is no field of a task")
            if known[key].type is str and isinstance(raw[key], list):
                raw[key] = "\n".join(map(str, raw[key]))
        for field in known.values():
            if field.name not in raw and field.default is MISSING:
                raise InputError(f"{path}: `{field.name}` is missing")
            if field.name in raw and type(raw[field.name]) is not field.type:
                raise InputError(f"{path}: `{field.name}` must be a JSON {field.type.__name__}")
        missing = [key for key in NEEDED_DEFAULTS if key not in raw["defaults"]]
        if missing:
            raise InputError(f"{path}: `defaults` has no {', '.join(missing)}")
        for option in SHIPPED_FILES:
            if option in raw["defaults"]:
                raw["defaults"][option] = str(path.parent / raw["defaults"][option])
        return cls(name=name, **raw)

    def prompt_for(self, problem: dict, is_chat: bool) -> str:
        """What a model is asked to solve."""
        filled = self.chat_prompt if is_chat else self.prompt
        if self.puzzle:
            filled = filled.replace("{skeleton}", json_form(problem))
        return filled.replace("{question}", problem["question"])

    def writer_prompt(self, examples: Sequence[dict], attributes: Sequence[str] = ()) -> str:
        """What the problem writer reads. attributes: those of a puzzle that it is to change."""
        shown = ""
        for problem in examples:
            question = problem["question"].strip()
            if not self.puzzle:
                question = " ".join(question.split())  # a new problem is one line
            shown += self.example_template.replace("{question}", question)
        filled = self.writer_template.replace("{examples}", shown)
        return filled.replace("{attributes}", json.dumps(list(attributes)))


def task_names() -> list[str]:
    found = (path.parent.name for path in TASKS.glob("*/task.json"))
    return sorted(name for name in found if name in EXTRACTORS)


# --------------------------------------------------------------------------------------------
# Problems


def read_problems(path: str | Path | None, task: Task, limit: int | None = None) -> list[dict]:
    """The first `limit` problems of a JSON-lines file (or .gz), as its publisher ships it.

    Each gets an `id` and a `question`. Raises InputError for a missing or empty file, and naming
    the line for broken JSON and for a row that is no problem.
    """
    field = task.question_field
    if path is None:
        advice = f"give JSON lines with a `{field}` each"
        raise InputError(f"--problems: task {task.name} ships none; {advice}")
    rows = read_jsonl(path, (field,), lambda row: wrong_with_problem(row, task))[:limit]
    if not rows:
        raise InputError(f"{path}: holds no problem")
    stem = Path(path).stem.removesuffix(".jsonl")
    problems = []
    for number, row in enumerate(rows):
        name = row.get("id", row.get("unique_id"))
        if name is None:
            name = f"{stem}-{number}"
        problem = {**row, "id": str(name), "question": row[field]}  # one type in every file
        if task.puzzle:
            problem["header"] = table_header(row)
        problems.append(problem)
    if len({problem["id"] for problem in problems}) < len(problems):
        advice = "make the ids differ, or leave them out"
        raise InputError(f"{path}: two problems have the same id; {advice}")
    return problems


def wrong_with_problem(row: dict, task: Task) -> str | None:
    """What is wrong with a row of a problem file, or None."""
    if not isinstance(row.get("id", ""), (str, int, type(None))):
        return "`id` must be a text or a number"
    question = row[task.question_field]
    if not isinstance(question, str) or not question.strip():
        return f"`{task.question_field}` must be a text, found {repr(question)[:40]}"
    if not task.puzzle:
        return None
    header = table_header(row)
    names = isinstance(header, list) and all(isinstance(name, str) for name in header)
    if not names or len(header) < 3 or not re.fullmatch(r"[1-9]\*[1-9]", str(row.get("size"))):
        return (
            "a puzzle needs the `size` of its table, as 3*4 (houses * attributes), "
            "and its `header`, of texts"
        )
    return None


def unlabeled(problem: dict) -> dict:
    """What a model may be shown of a problem: no answer, but the shape of a puzzle's table."""
    return {key: problem[key] for key in ("id", "question", "size", "header") if key in problem}


# --------------------------------------------------------------------------------------------
# Gold answers


def gold_answer(problem: dict, task: str) -> str | None:
    """The normalized gold answer of a problem as its publisher ships it; None without one."""
    if task == "zebralogic":
        return normalize_gold(problem.get("solution"), task)
    answer = problem.get("answer")
    if task == "math" and answer is None:  # the benchmark's own rule: the last box alone
        boxes = boxed_answers(str(problem.get("solution") or "")) or [""]
        answer = boxes[-1]
    return normalize_gold(answer, task)


def normalize_gold(gold: Any, task: str) -> str | None:
    """A gold answer, in the spelling that `extract_answer` gives to a response's."""
    if gold is None:
        return None
    if task == "zebralogic":
        return gold_table(gold)
    if task == "math":
        return extract_answer(rf"\boxed{{{gold}}}", task)
    return extract_answer(str(gold), task) or extract_answer(f"#### {gold}", task)


def read_golds(
    problems: list[dict], task: Task, answers: str | None, asked_by: str
) -> dict[str, str]:
    """Gold answers by id: a problem's own or, if it has none, that of the file `answers`.

    Raises InputError, naming the option that asked for them, if not one problem has an answer.
    """
    golds = {}
    given = {}
    if answers:
        given = {row["id"]: gold_answer(row, task.name) for row in read_problems(answers, task)}
    for problem in problems:
        gold = gold_answer(problem, task.name) or given.get(problem["id"])
        if gold is not None:
            golds[problem["id"]] = gold
    if not golds:
        raise InputError(f"{asked_by}: not one of the problems has an answer")
    return golds
