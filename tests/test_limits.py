"""Problems that are too long for the model, and options at their edges."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SHIPPED, SMALL, TOY, random_llama, run, tiny_config, train_args

import eval as evaluation
import sample
import train
from common.files import read_jsonl, write_jsonl
from sample import SamplingParams, generate, write_problems
from tasks.chat import ChatTokenizer
from tasks.task import Task

SCRIPTS = pytest.mark.parametrize(
    "script", [train, sample, evaluation], ids=["train", "sample", "eval"])

# --------------------------------------------------------------------------------------------
# Too long for the context


@pytest.fixture
def model(tmp_path) -> Path:
    """The toy model with a context of 200 tokens."""
    shutil.copytree(SHIPPED, tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 200}))
    return tmp_path / "model"


@pytest.fixture
def problems(tmp_path) -> Path:
    """Six problems; the third, in line 4 after an empty one, has about 300 tokens."""
    rows = read_jsonl(TOY / "train-answers.jsonl")[:6]
    long = {**rows[2], "id": "the long one", "question": rows[2]["question"] * 10}
    lines = [json.dumps(row) for row in (*rows[:2], long, *rows[3:])]
    lines.insert(2, "")
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    return tmp_path / "p.jsonl"


@pytest.mark.parametrize("script, option", [
    (train, ["--test"]), (train, ["--select", "votes", "--dev"]), (sample, ["--problems"]),
    (evaluation, ["--problems"]),
], ids=["test", "dev", "sample", "eval"])
def test_a_problem_that_is_too_long_is_refused_by_line(
    model, problems, tmp_path, error_of, monkeypatch, script, option
):
    monkeypatch.setattr(sample, "generate", None)  # before any work
    argv = ["--model", model, *option, problems, "--max-new-tokens", "64", "--k", "2"]
    message = error_of(script, *argv, "--out", tmp_path / "out")
    assert f"{problems}, line 4: problem the long one and --max-new-tokens 64" in message
    assert str(model) in message and not (tmp_path / "out").exists()


def test_a_limit_in_front_of_it_is_enough(model, problems, tmp_path):
    argv = ["--model", model, "--problems", problems, "--max-new-tokens", "64", "--k", "2"]
    run(sample, *argv, "--limit", "2", "--out", tmp_path / "out")
    assert len(read_jsonl(tmp_path / "out")) == 2


def test_given_problems_that_are_too_long_are_left_out_and_counted(
    model, problems, tmp_path, capsys
):
    run(train, *SMALL, "--model", model, "--problems", problems, "--test", "", "--until",
        "M1/problems", "--out", tmp_path / "run")
    assert "M1 problems: 1 given ones are left out, too long" in capsys.readouterr().out
    ids = [row["id"] for row in read_jsonl(tmp_path / "run/M1/problems.jsonl")]
    assert len(ids) == 5 and "the long one" not in ids


def test_no_problem_that_fits_is_one_line(model, problems, tmp_path, error_of):
    write_jsonl(problems, [row for row in read_jsonl(problems) if row["id"] == "the long one"])
    message = error_of(train, *SMALL, "--model", model, "--problems", problems, "--test", "",
                       "--out", tmp_path / "run")
    assert f"{problems}: all problems are too long; lower --max-new-tokens" in message


def test_examples_that_are_too_long_for_the_writer_are_dropped_and_counted(monkeypatch):
    """Of two problems one fits: two of the pairs of examples are read, the other calls are not."""
    given = [{"question": "Tom has 3 apples?"}, {"question": "Tom has 3 apples? " * 30}]
    task = replace(Task.load("toy"), n_examples=1)
    read = []

    def count(model, prompts, *args, **more):
        read.extend(prompts)
        return generate(model, prompts, *args, **more)

    monkeypatch.setattr(sample, "generate", count)
    tokenizer, llama = ChatTokenizer(SHIPPED), sample.Llama.from_pretrained(SHIPPED)
    llama.hf_config["max_position_embeddings"] = 60
    params = SamplingParams(temperature=0.7, top_p=0.9, max_new_tokens=20)
    kept, dropped = write_problems(llama, tokenizer, task, given, 12, params, seed=[0])
    assert 0 < len(read) < 12 and dropped["too long"] == 12 - len(read)
    assert len(kept) + sum(dropped.values()) == 12


# --------------------------------------------------------------------------------------------
# Options at their edges


def values_of(*options: str):
    return pytest.mark.parametrize("option", options)


@SCRIPTS
@values_of("--model", "--problems", "--out")
@pytest.mark.parametrize("value", ["", " ", "\n", "a\nb", "a\x1b[2J", "\u202e"], ids=repr)
def test_a_files_name_is_one_that_can_be_shown(script, error_of, option, value):
    message = error_of(script, option, value)
    assert f"argument {option}: " in message and "must be the name of a file" in message


@SCRIPTS
@values_of("--k", "--max-new-tokens", "--max-num-seqs", "--limit", "--seed")
@pytest.mark.parametrize("value", [str(10**9 + 1), "9" * 5000, "1e3", "1.0", "nan", "--k"],
                         ids=lambda value: value[:6])
def test_a_count_is_a_whole_number_of_a_sensible_size(script, error_of, option, value):
    message = error_of(script, f"{option}={value}")
    assert f"argument {option}" in message and "must be at" in message


@values_of("--epochs", "--rounds", "--batch-size", "--micro-batch-size", "--save-every", "--extra",
           "--new-problems")
def test_a_count_of_training_has_a_sensible_size(error_of, option):
    for value in (10**18, 10**9):
        assert f"argument {option}: '{value}': must be at most" in error_of(train, option, value)


@pytest.mark.parametrize("option, most", [
    ("--k", 10**4), ("--extra", 10**4), ("--seed", 10**9), ("--max-num-seqs", 10**6),
    ("--new-problems", 10**6), ("--batch-size", 10**6), ("--epochs", 10**6), ("--limit", 10**6),
])
def test_the_largest_counts(error_of, option, most):
    """A thousand times what anyone uses; more would fill the memory, or never end."""
    assert train_args(option, most)
    assert f"must be at most {most:,}" in error_of(train, option, most + 1)


@pytest.mark.parametrize("option, value", [
    ("--temperature", "1e-45"), ("--temperature", "nan"), ("--temperature", "inf"),
    ("--extra-temperature", "0"), ("--extra-temperature", "1e-45"),
    ("--top-p", "1e-46"), ("--top-p", "nan"), ("--top-p", "1.0000001"),
    ("--lr", "3e38"), ("--lr", "nan"), ("--lr", "inf"), ("--lr", "1e400"), ("--beta", "3e38"),
    ("--alpha", "inf"), ("--max-grad-norm", "inf"), ("--warmup-ratio", "nan"), ("--tau", "1e400"),
])
def test_a_number_without_a_use_is_refused(error_of, option, value):
    assert f"argument {option}" in error_of(train, option, value)


@pytest.mark.parametrize("device", ["", "meta", "cpu:x", "cuda:99", "warp"], ids=repr)
def test_a_device_that_computes_nothing_is_refused(error_of, device):
    assert f"--device {device}: not usable here" in error_of(evaluation, "--device", device)


def test_the_smallest_numbers_still_sample(tmp_path):
    """The likeliest token is always in the nucleus, and no temperature divides by zero."""
    argv = ["--limit", "1", "--k", "2", "--max-new-tokens", "40", "--model", SHIPPED]
    for name, options in (("t", ["--temperature", "0.001", "--top-p", "1"]),
                          ("p", ["--temperature", "0.7", "--top-p", "0.001"]),
                          ("greedy", ["--temperature", "0"])):
        run(sample, *argv, *options, "--out", tmp_path / name)
    texts = {name: read_jsonl(tmp_path / name)[0]["responses"] for name in ("t", "p", "greedy")}
    assert texts["t"] == texts["p"] == texts["greedy"]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 100])
def test_k_above_the_rows_at_once_gives_the_same_samples(monkeypatch, most):
    llama, rows, decode = random_llama(tiny_config()), [], sample.decode

    def note(model, cache, logits, *args):
        rows.append(len(logits))
        return decode(model, cache, logits, *args)

    monkeypatch.setattr(sample, "decode", note)
    params = SamplingParams(temperature=1.0, top_p=0.9, max_new_tokens=8, max_num_seqs=most)
    prompts = [[0, 5, 9], [0, 7, 7, 30], [0, 8]]
    found = generate(llama, prompts, 5, params, seed=[0], stop_ids=range(1, 9))
    assert max(rows) <= most and sum(rows) == 15
    whole = generate(llama, prompts, 5, replace(params, max_num_seqs=512), seed=[0],
                     stop_ids=range(1, 9))
    assert found == whole
