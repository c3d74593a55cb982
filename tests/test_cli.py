"""The command lines: a mistake is one line that says what to do, and exit code 2, before any work.

Mistakes that only some methods can meet are in test_labels.py.
"""

import json

import pytest
import torch
from conftest import TOY

import eval as evaluation
import sample
import train
import vote
from common.cli import InputError, run_script
from common.files import read_json, write_jsonl
from common.options import parse_args
from tasks import task as task_file
from tasks.task import Task
from tasks.toy import make, reward

SCRIPTS = [train, sample, evaluation, vote, make, reward]

# --------------------------------------------------------------------------------------------
# Mistakes


@pytest.mark.parametrize("argv, needle", [
    (["--task", "nope"], "'nope' (choose from 'gsm8k', 'math', 'toy'"),
    (["--task"], "argument --task: expected one argument"),
    (["--task", "gsm8k"], "--problems: task gsm8k ships none"),
    (["--task", "gsm8k", "--problems", TOY / "dev.jsonl"], "--model: this task ships none"),
    (["--model", "/no/such/folder"], "--model /no/such/folder: no such folder"),
    (["--model", TOY], "tokenizer.json"),
    (["--problems", "/no/such/file.jsonl"], "/no/such/file.jsonl: no such file"),
    (["--problems", TOY / "task.json"], "task.json, line 1"),
    (["--k", "1"], "argument --k: '1': must be at least 2"),
    (["--k", "four"], "argument --k: 'four': must be at least 2"),
    (["--tau", "1.5"], "argument --tau: '1.5'"),
    (["--tau", "0"], "argument --tau: '0'"),
    (["--tau", "0.5", "nan"], "argument --tau: 'nan'"),
    (["--lr", "-1"], "argument --lr: '-1'"),
    (["--lr", "inf"], "argument --lr: 'inf'"),
    (["--beta", "0"], "argument --beta: '0'"),
    (["--alpha", "-1"], "argument --alpha: '-1'"),
    (["--warmup-ratio", "1.1"], "argument --warmup-ratio"),
    (["--rounds", "0"], "argument --rounds: '0'"),
    (["--epochs", "0"], "argument --epochs: '0'"),
    (["--batch-size", "0"], "argument --batch-size: '0'"),
    (["--micro-batch-size", "0"], "argument --micro-batch-size"),
    (["--max-grad-norm", "0"], "argument --max-grad-norm"),
    (["--save-every", "0"], "argument --save-every"),
    (["--extra", "-1"], "argument --extra: '-1'"),
    (["--extra-temperature", "-1"], "argument --extra-temperature: '-1'"),
    (["--new-problems", "-1"], "argument --new-problems: '-1'"),
    (["--temperature", "0"], "--temperature 0: k greedy responses would all be the same"),
    (["--limit", "0"], "argument --limit: '0'"),
    (["--top-p", "0"], "argument --top-p: '0'"),
    (["--device", "warp"], "--device warp: not usable here"),
    (["--dtype", "int3"], "argument --dtype: invalid choice: 'int3'"),
    (["--chat", "klingon"], "argument --chat: invalid choice: 'klingon'"),
    (["--chat", "llama3"], "has no <|eot_id|> token; try --chat plain"),
    (["--max-new-tokens", "1", "--limit", "3"], "no pair left of 3 problems"),
    (["--max-new-tokens", "100000", "--limit", "3"], "lower --max-new-tokens"),
])
def test_a_mistake_is_one_line(tmp_path, error_of, argv, needle):
    assert needle in error_of(train, *argv, "--out", tmp_path / "run")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("argv, needle", [
    (["--sead", "1"], "--sead"),
    (["--see", "1"], "--see"),  # no abbreviations: a later option could make them ambiguous
])
def test_an_unknown_option_is_one_line_in_every_script(script, error_of, argv, needle):
    argv = ["responses.jsonl", *argv] if script is vote else argv
    assert f"unrecognized arguments: {needle}" in error_of(script, *argv)


@pytest.mark.parametrize("script", [evaluation, sample], ids=["eval", "sample"])
@pytest.mark.parametrize("argv, needle", [
    (["--top-p", "0"], "--top-p: '0'"),
    (["--max-new-tokens", "0"], "--max-new-tokens: '0'"),
    (["--k", "0"], "--k: '0'"),
    (["--temperature", "-1"], "--temperature: '-1'"),
    (["--max-num-seqs", "0"], "--max-num-seqs: '0'"),
    (["--seed", "-1"], "--seed: '-1'"),
    (["--limit", "0"], "--limit: '0'"),
    (["--chat", "klingon"], "--chat: invalid choice: 'klingon'"),
    (["--task", "nope"], "--task: invalid choice: 'nope'"),
    (["--out", TOY / "task.json/x"], f"--out {TOY / 'task.json/x'}: cannot be written"),
    (["--out", TOY / "task.json"], "exists already; choose another name"),
])
def test_options_are_checked_before_the_work(script, monkeypatch, error_of, argv, needle):
    monkeypatch.setattr(sample, "answer_problems", None)
    monkeypatch.setattr(evaluation, "answer_problems", None)
    assert needle in error_of(script, *argv)


def test_eval_keeps_no_responses_that_it_did_not_make(tmp_path, error_of):
    write_jsonl(tmp_path / "r.jsonl", [{"responses": ["#### 4"]}])
    argv = ["--responses", tmp_path / "r.jsonl", "--out", tmp_path / "x"]
    assert "--out: keeps a model's responses" in error_of(evaluation, *argv)


@pytest.mark.parametrize("script", [train, sample, evaluation], ids=["train", "sample", "eval"])
def test_a_models_name_is_no_folder_but_says_how_to_get_one(
    tmp_path, monkeypatch, error_of, script
):
    monkeypatch.chdir(tmp_path)
    message = error_of(script, "--model", "meta-llama/Llama-3.1-8B", "--out", tmp_path / "out")
    assert message == (
        "error: --model meta-llama/Llama-3.1-8B: no such folder; to get it from Hugging Face: "
        "hf download meta-llama/Llama-3.1-8B --local-dir DIR"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/no/such", "no/such/folder", "./folder", "folder"])
def test_a_mistyped_folder_is_no_models_name(tmp_path, monkeypatch, error_of, folder):
    monkeypatch.chdir(tmp_path)
    message = error_of(train, "--model", folder, "--out", tmp_path / "run")
    assert message == f"error: --model {folder}: no such folder"


def test_out_of_memory_names_what_to_lower(capsys):
    def hungry():
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB\nmore lines")

    with pytest.raises(SystemExit) as exit_:
        run_script(hungry)
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    for option in ("--max-num-seqs", "--micro-batch-size", "--max-new-tokens"):
        assert option in line
        assert option in {name for action in train.options()._actions
                          for name in action.option_strings}


def test_a_process_that_is_left_alone_names_the_reason(capsys):
    def left_alone():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]")

    with pytest.raises(SystemExit) as exit_:
        run_script(left_alone)
    assert exit_.value.code == 2
    reason = "another process of this run has ended; what it says is the reason"
    assert capsys.readouterr().err == f"error: {reason}\n"


def test_a_defect_of_the_program_is_not_taken_for_a_mistake():
    """Its traceback is what a developer needs."""
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)


@pytest.mark.parametrize("change, needle", [
    ({"prompt": 3}, "`prompt`"),
    ({"runs_on": "x"}, "`runs_on`"),
    ({"odd": 1}, "`odd`"),
    ({"defaults": {}}, "no k, tau"),
])
def test_a_broken_task_is_named(tmp_path, monkeypatch, change, needle):
    (tmp_path / "toy").mkdir()
    raw = {**read_json(TOY / "task.json"), **change}
    (tmp_path / "toy/task.json").write_text(json.dumps(raw))
    monkeypatch.setattr(task_file, "TASKS", tmp_path)
    with pytest.raises(InputError, match="task.json") as error:
        Task.load("toy")
    assert needle in str(error.value)


# --------------------------------------------------------------------------------------------
# Untidy files


@pytest.mark.parametrize("script", [evaluation, vote], ids=["eval", "vote"])
@pytest.mark.parametrize("row, needle", [
    ({"responses": []}, "line 1: `responses`"),
    ({"responses": "#### 4"}, "line 1: `responses`"),
    ({"responses": [4]}, "line 1: `responses`"),
    ({"responses": ["a"], "ended": [True, False]}, "line 1: `ended`"),
    ({"responses": ["a"], "ended": ["false"]}, "line 1: `ended`"),
    ({"responses": ["a"], "greedy": None}, "line 1: `greedy`"),
    ({"responses": ["a"], "id": [1]}, "line 1: `id`"),
    ({"answers": ["a"]}, "line 1: has no 'responses'"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_an_untidy_responses_file_is_refused_by_line(tmp_path, error_of, script, row, needle):
    write_jsonl(tmp_path / "r.jsonl", [row])
    option = ["--responses"] if script is evaluation else []
    assert needle in error_of(script, *option, tmp_path / "r.jsonl")


def test_the_line_is_counted_from_one_with_the_empty_ones(tmp_path, error_of):
    (tmp_path / "r.jsonl").write_text('{"responses": ["a"]}\n\n{"responses": []}\n')
    message = error_of(vote, tmp_path / "r.jsonl")
    assert f"{tmp_path / 'r.jsonl'}, line 3: `responses`" in message


# --------------------------------------------------------------------------------------------
# A default that depends on the machine


@pytest.mark.parametrize("hidden_size, device, given, pairs", [
    (128, "cpu", [], 8), (576, "cpu", [], 2), (576, "meta", [], 8),
    (576, "cpu", ["--dtype", "bfloat16"], 4), (576, "cpu", ["--micro-batch-size", "3"], 3),
])
def test_pairs_at_once_are_few_for_a_real_model_on_a_cpu(
    tmp_path, monkeypatch, hidden_size, device, given, pairs
):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": hidden_size}))
    monkeypatch.setattr("common.options.usable_device", torch.device)
    argv = ["--model", str(tmp_path), "--device", device, *given]
    assert parse_args(train.options(), argv).micro_batch_size == pairs


def test_pairs_at_once_of_the_toy():
    assert parse_args(train.options(), []).micro_batch_size == 8
