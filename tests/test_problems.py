"""Problems: read from files, answered as text, and new ones that a model writes."""

from argparse import Namespace
from dataclasses import replace

import pytest

import sample
from common.cli import InputError
from common.options import load_checkpoint
from sample import Response, SamplingParams, answer_problems, write_problems
from tasks.chat import ChatTokenizer
from tasks.task import Task, read_problems, unlabeled

TASK = Task(name="toy", prompt="Q: {question}\nA:", chat_prompt="{question}",
            example_template="Q: {question}\n", writer_template="{examples}Q:", defaults={},
            runs_on=True)
PUZZLES = Task(name="zebralogic", prompt="{question}\n{skeleton}",
               chat_prompt="{question}\n{skeleton}", example_template='"""{question}"""',
               writer_template="{examples} {attributes}", defaults={}, question_field="puzzle",
               n_examples=1, puzzle=True)
PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=8)
WRITER = Namespace(context_length=10**6)  # of the model only its context is looked at
GIVEN = [{"question": f"Tom has {n} apples?"} for n in range(6)]


# --------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("lines, named", [
    (None, "p.jsonl: no such file"),
    ("", "p.jsonl: holds no problem"),
    ('{"question": "a"}\n{', "p.jsonl, line 2: not valid JSON"),
    ('{"question": "a"}\n\n{"text": "b"}', "p.jsonl, line 3: has no 'question'"),
])
def test_unusable_files_are_refused_by_line(lines, named, tmp_path):
    path = tmp_path / "p.jsonl"
    if lines is not None:
        path.write_text(lines)
    with pytest.raises(InputError, match=named):
        read_problems(path, TASK)


def test_problems_are_numbered_from_the_files_name(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a"}\n{"question": "b", "id": "mine"}\n{"question": "c"}\n')
    assert [problem["id"] for problem in read_problems(path, TASK)] == ["p-0", "mine", "p-2"]


def test_the_first_problems_are_enough_for_a_quick_look(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "a"}\n{"question": "b"}\n{"question": "c"}\n')
    assert [problem["question"] for problem in read_problems(path, TASK, 2)] == ["a", "b"]


def test_unlabeled_problems_have_no_answer():
    problem = {"id": "a", "question": "?", "answer": "7", "solution": "7", "more": 1}
    assert unlabeled(problem) == {"id": "a", "question": "?"}


# --------------------------------------------------------------------------------------------
# Answering


class Script:
    """In place of sample.generate: it replies with given texts, in turn, and notes its calls."""

    def __init__(self, tokenizer: ChatTokenizer, replies: list[tuple[str, bool]]):
        self.tokenizer, self.replies, self.calls = tokenizer, replies, []

    def __call__(self, model, prompts, k, params, **more) -> list[list[Response]]:
        texts = [self.tokenizer.decode(prompt) for prompt in prompts]
        self.calls.append({"prompts": texts, "params": params, **more})
        queue = []
        for text, ended in self.replies:
            queue.append(Response(self.tokenizer.encode_response(text, ended=False), ended))
        return [queue[i * k : (i + 1) * k] for i in range(len(prompts))]


@pytest.fixture
def tokenizer(toy_checkpoint) -> ChatTokenizer:
    return ChatTokenizer(toy_checkpoint)


def test_answers_are_cut_at_the_stop_string(tokenizer, monkeypatch):
    """Then they count as ended, even if the model ran on to the token limit."""
    script = Script(tokenizer, [(" 3\n#### 3\nQ: How", False), (" 3", True), (" 3\n", False)])
    monkeypatch.setattr(sample, "generate", script)
    problem = {"id": "a", "question": "Tom has 3 apples?", "answer": "#### 77"}
    [row] = answer_problems(None, tokenizer, TASK, [problem], 3, PARAMS, seed=[0])
    assert row == {  # the gold answer is not copied
        "id": "a", "question": "Tom has 3 apples?", "prompt": "Q: Tom has 3 apples?\nA:",
        "responses": [" 3\n#### 3", " 3", " 3\n"], "ended": [True, True, False],
        "response_ids": [tokenizer.encode_plain(text) for text in (" 3\n#### 3", " 3", " 3\n")]}


def test_generation_stops_at_the_stop_string(tokenizer, monkeypatch):
    script = Script(tokenizer, [(" 3", True)])
    monkeypatch.setattr(sample, "generate", script)
    problem = {"id": "a", "question": "Tom has 3 apples?"}
    answer_problems(None, tokenizer, TASK, [problem], 1, PARAMS, seed=[0])
    stop_fn = script.calls[0]["stop_fn"]
    assert stop_fn(tokenizer.encode_response(" 3\nQ: H"))
    assert not stop_fn(tokenizer.encode_response(" 3\nQ"))
    assert script.calls[0]["stop_ids"] == tokenizer.stop_ids


def test_a_chat_model_ends_its_turn_itself(tokenizer, monkeypatch):
    script = Script(tokenizer, [(" 3\nQ: How", True)])
    monkeypatch.setattr(sample, "generate", script)
    tokenizer.chat = "chatml"
    problem = {"id": "a", "question": "Tom has 3 apples?"}
    [row] = answer_problems(None, tokenizer, TASK, [problem], 1, PARAMS, seed=[0])
    assert row["responses"] == [" 3\nQ: How"] and script.calls[0]["stop_fn"] is None


def test_a_model_answers_every_problem_k_times(toy_checkpoint):
    model, tokenizer = load_checkpoint(toy_checkpoint)
    problems = [{"id": name, "question": f"Tom has {name} apples?"} for name in "ab"]
    rows = answer_problems(model, tokenizer, TASK, problems, 2, PARAMS, seed=[0])
    assert [row["id"] for row in rows] == ["a", "b"]
    assert [len(row["responses"]) for row in rows] == [len(row["ended"]) for row in rows] == [2, 2]


# --------------------------------------------------------------------------------------------
# Writing new ones

WRITTEN = [" Ann buys 3?", " Ann buys 4?", " ann  buys 3", " tom has 5 apples", " She has 1?", " "]


@pytest.fixture
def writer(tokenizer, monkeypatch) -> Script:
    """Writes the six texts, and a seventh that is cut off."""
    script = Script(tokenizer, [(text, True) for text in WRITTEN] + [(" Ann bu", False)])
    monkeypatch.setattr(sample, "generate", script)
    return script


def write_seven(tokenizer, seed=(0,), **more) -> tuple[list[dict], dict[str, int]]:
    return write_problems(
        WRITER, tokenizer, TASK, GIVEN, 7, PARAMS, seed=seed, name="n", **more)


def test_written_problems_are_new_and_whole(tokenizer, writer):
    """Seen before: one of the new ones, one of the given ones, and the known "She has 1"."""
    kept, dropped = write_seven(tokenizer, known=["She has 1"])
    assert kept == [
        {"id": "n-0", "question": "Ann buys 3?"},
        {"id": "n-1", "question": "Ann buys 4?"},
    ]
    assert dropped == {"cut off": 1, "malformed": 1, "too long": 0, "seen before": 3}


def test_written_problems_must_leave_room_for_an_answer(tokenizer, writer):
    """Of the six whole texts one is a given problem and one is empty, the others do not fit."""
    kept, dropped = write_seven(tokenizer, fits=lambda problem: False)
    assert kept == [] and dropped["too long"] == 4


def test_the_writer_reads_four_different_given_problems(tokenizer, writer):
    write_seven(tokenizer)
    examples = {f"Q: {problem['question']}" for problem in GIVEN}
    different = set()
    for prompt in writer.calls[0]["prompts"]:
        shown = prompt.removesuffix("Q:").splitlines()
        assert len(shown) == len(set(shown)) == 4 and set(shown) <= examples
        different.add(tuple(shown))
    assert len(different) > 3


def test_the_examples_depend_on_the_seed(tokenizer, writer):
    for seed in ((0,), (0,), (1,)):
        write_seven(tokenizer, seed=seed)
    first, again, other = (call["prompts"] for call in writer.calls)
    assert first == again != other


def test_a_new_problem_is_one_line(tokenizer, writer):
    write_seven(tokenizer)
    stop_ids = set(writer.calls[0]["stop_ids"])
    assert stop_ids == set(tokenizer.newline_ids() + tokenizer.stop_ids)


def test_a_new_puzzle_is_rephrased_from_one_and_has_many_lines(tokenizer, monkeypatch):
    """Two attributes of the shown puzzle are named; its text keeps its line breaks."""
    written = 'New Attribute Map: {"Drink": "Food"}\n"""\nTwo\nhouses\n"""'
    script = Script(tokenizer, [(written, True)])
    monkeypatch.setattr(sample, "generate", script)
    header = ["House", "Name", "Drink"]
    given = [{"question": "Two houses\nof old", "size": "2*2", "header": header}]
    kept, _ = write_problems(WRITER, tokenizer, PUZZLES, given, 1, PARAMS, seed=[0], name="n")
    assert kept == [{"id": "n-0", "question": "Two\nhouses", "size": "2*2",
                     "header": ["House", "Name", "Food"]}]
    assert script.calls[0]["stop_ids"] == tokenizer.stop_ids
    [prompt] = script.calls[0]["prompts"]
    assert prompt in ('"""Two houses\nof old""" ["Name", "Drink"]',
                      '"""Two houses\nof old""" ["Drink", "Name"]')


def test_one_example_does_not_make_a_task_of_puzzles(tokenizer, monkeypatch):
    """Its new problem is one line, and nothing asks for a table."""
    script = Script(tokenizer, [(" Ann buys 3?", True)])
    monkeypatch.setattr(sample, "generate", script)
    one_example = replace(TASK, n_examples=1)
    given = [{"question": "Tom has\n3 apples?"}]
    kept, _ = write_problems(WRITER, tokenizer, one_example, given, 1, PARAMS, seed=[0], name="n")
    assert kept == [{"id": "n-0", "question": "Ann buys 3?"}]
    assert script.calls[0]["prompts"] == ["Q: Tom has 3 apples?\nQ:"]
    assert set(tokenizer.newline_ids()) <= set(script.calls[0]["stop_ids"])
