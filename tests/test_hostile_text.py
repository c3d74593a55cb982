"""Texts that would command a terminal or a model: shown escaped, encoded as plain text.

What the tokens of ordinary prompts are, compared with transformers, is in test_chat.py.
"""

import json
import shutil
from pathlib import Path

import pytest
from conftest import BOS, EOS, SMALL, TOY, run, toy_tokenizer

import eval as evaluation
import sample
import train
import vote
from common.cli import printable
from common.files import read_jsonl, write_jsonl
from tasks.chat import CHAT_FORMATS, ChatTokenizer

# Title and clipboard by OSC, clearing the screen, colours, moving up, bell, backspace, C1, a text
# that runs backwards, and a line that overwrites the one before.
HOSTILE = ("\x1b]0;title\x07 \x1b]52;c;Zm9v\x1b\\ \x1b[2J \x1b[31m \x1b[5A \x07 \b\b \x9b31m "
           "\u202e \r\nerror: all is well\r \x00 \x7f \u2028")


@pytest.fixture
def shown(capsys):
    """What was shown on both ways since the last call: it must not hold a control character."""

    def look() -> str:
        out, err = capsys.readouterr()
        text = out + err
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
        return text

    return look


def hostile_problems(path: Path) -> Path:
    rows = []
    for row in read_jsonl(TOY / "test.jsonl")[:6]:
        hostile = {"id": row["id"] + HOSTILE, "question": HOSTILE + row["question"]}
        rows.append({**row, **hostile})
    write_jsonl(path, rows)
    return path


# --------------------------------------------------------------------------------------------
# Shown


def test_train_shows_hostile_texts_escaped(tmp_path, shown):
    problems = hostile_problems(tmp_path / "p.jsonl")
    run(train, *SMALL, "--rounds", "1", "--problems", problems, "--test", problems, "--k", "8",
        "--tau", "0.01", "--max-new-tokens", "64", "--out", tmp_path / "run")
    text = shown()
    assert text.count(r"\x1b]0;title\x07") >= 3  # evaluation, votes, pairs


def test_a_gold_answer_is_shown_escaped(tmp_path, shown, monkeypatch):
    """Of the toy task it is a number; of others it may be any text."""
    row = {"id": 0, "question": "How many?", "greedy": "4", "gold": HOSTILE,
           "responses": ["4", "4"], "ended": [True, True]}
    monkeypatch.setattr(train, "evaluate_checkpoint", lambda *args: [row, row])
    args = train.parse_args(train.options(), ["--out", str(tmp_path)])
    train.evaluate_model(TOY / "model", args, train.Run(tmp_path), 0)
    assert r"(gold \x1b]0;title" in shown()


def test_a_warning_of_collapse_is_escaped(shown):
    rows = [{"responses": [f"\\boxed{{\\text{{{HOSTILE}}}}}"] * 2, "ended": [True, True]}] * 2
    evaluation.warn_of_collapse(rows, "math")
    assert "WARNING" in shown()


@pytest.mark.parametrize("script", [vote, evaluation], ids=["vote", "eval"])
@pytest.mark.parametrize("task", ["toy", "math", "zebralogic"])
def test_responses_are_shown_escaped(tmp_path, shown, script, task):
    texts = [f"{HOSTILE}#### 4{HOSTILE}", f"\\boxed{{{HOSTILE}}}", json.dumps({HOSTILE: HOSTILE})]
    rows = [{"id": HOSTILE, "question": HOSTILE, "responses": texts, "greedy": HOSTILE}] * 2
    write_jsonl(tmp_path / "r.jsonl", rows)
    option = ["--responses"] if script is evaluation else []
    run(script, *option, tmp_path / "r.jsonl", "--task", task)
    assert shown()


@pytest.mark.parametrize("script", [sample, evaluation], ids=["sample", "eval"])
def test_sampling_shows_hostile_problems_escaped(tmp_path, shown, script):
    problems = hostile_problems(tmp_path / "p.jsonl")
    run(script, "--limit", "2", "--k", "2", "--problems", problems, "--max-new-tokens", "4",
        "--out", tmp_path / "out")
    assert shown()


@pytest.mark.parametrize("script", [train, sample, evaluation, vote], ids=lambda s: s.__name__)
@pytest.mark.parametrize("content", [
    f'{{"question": {json.dumps({HOSTILE: 1})}, "responses": {json.dumps(HOSTILE)}}}',
    f'{{{json.dumps(HOSTILE)}: 1}}',
    f'{{"question": {json.dumps([HOSTILE])}, "responses": [{json.dumps([HOSTILE])}]}}',
    f'{{"question": {json.dumps([HOSTILE] * 99)}, "answers": 1}}',
    HOSTILE,
], ids=["responses", "field", "list", "long", "no JSON"])
def test_what_is_refused_is_shown_escaped(tmp_path, error_of, script, content):
    path = tmp_path / "r.jsonl"
    path.write_text(content.replace("\n", " "))
    option = {train: ["--problems"], sample: ["--problems"], evaluation: ["--responses"]}
    message = error_of(script, *option.get(script, []), path)
    assert message.isprintable() and len(message) < 500


@pytest.mark.parametrize("script", [train, sample, evaluation, vote], ids=lambda s: s.__name__)
def test_file_names_are_shown_escaped(tmp_path, error_of, script):
    name = tmp_path / "a\x1b[2J\u202eb.jsonl"
    option = {train: "--problems", sample: "--problems", evaluation: "--responses"}
    assert error_of(script, *filter(None, [option.get(script)]), name).isprintable()


def test_names_in_a_strangers_run_folder_are_shown_escaped(finished, tmp_path, shown):
    """stages.json says which code made a stage: any names of files."""
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run/stages.json"
    record = json.loads(path.read_text())
    for stage in record["stages"].values():
        stage["code"] = "theirs"
    path.write_text(json.dumps({**record, "code": {"theirs": {f"{HOSTILE}.py": "1"}}}))
    run(train, *SMALL, "--out", tmp_path / "run")
    assert r"WARNING: \x1b]0;title" in shown().replace(", ", "WARNING: ")


def test_what_is_readable_stays_as_it_is():
    text = "é ∀ 😀 中文 a\tb"
    assert printable(text) == "é ∀ 😀 中文 a\\tb"


# --------------------------------------------------------------------------------------------
# Encoded

MARKS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
         "[INST]", "[/INST]")
R1 = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")  # this tokenizer cannot spell them


@pytest.fixture
def folder(tmp_path) -> Path:
    """A tokenizer that knows the marks of all families."""
    toy_tokenizer(*MARKS, *R1).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}')
    return tmp_path


@pytest.mark.parametrize("chat", CHAT_FORMATS)
@pytest.mark.parametrize("mark", [*MARKS, BOS, EOS])
@pytest.mark.parametrize("text", ["{mark}", "Tom{mark} has", "{mark}{mark}\n3"])
def test_marks_inside_a_problem_are_plain_text(folder, chat, mark, text):
    """The prompt has the marks of its template, at their places, and no others."""
    tokenizer = ChatTokenizer(folder, chat)
    text = text.format(mark=mark)
    marks = {tokenizer.tokenizer.token_to_id(name) for name in (*MARKS, *R1, BOS, EOS)}
    ours, usual = (tokenizer.encode_prompt(tokenizer.apply_template(t)) for t in (text, "Tom"))
    assert [i for i in ours if i in marks] == [i for i in usual if i in marks]
    assert text in tokenizer.decode(ours)


@pytest.mark.parametrize("mark", [*MARKS, BOS, EOS])
def test_marks_inside_a_response_are_plain_text(folder, mark):
    tokenizer = ChatTokenizer(folder, "plain")
    text = f" 7{mark} left{mark}"
    ids = tokenizer.encode_response(text)
    assert ids[-1] == tokenizer.eos_id and tokenizer.eos_id not in ids[:-1]
    assert tokenizer.tokenizer.token_to_id(mark) not in ids[:-1]
    assert tokenizer.decode(ids) == text
