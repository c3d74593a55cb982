"""The scripts themselves: their help, their options, what they write, how they run as processes."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, SHIPPED, SMALL, TOY, run, train_args

import eval as evaluation
import sample
import train
import vote
from common.cli import ArgumentParser, InputError
from common.files import read_jsonl, write_jsonl
from tasks.task import Task
from tasks.toy import make, reward

SCRIPTS = [train, sample, evaluation, vote, make, reward]

# --------------------------------------------------------------------------------------------
# Help, and spellings


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_help_names_every_option_with_its_reason_and_default(script, monkeypatch, capsys):
    parsers, print_help = [], ArgumentParser.print_help

    def spy(parser, file=None):
        parsers.append(parser)
        print_help(parser, file)

    monkeypatch.setattr(ArgumentParser, "print_help", spy)
    with pytest.raises(SystemExit) as exit_:
        run(script, "--help")
    assert exit_.value.code == 0
    shown = "".join(capsys.readouterr().out.split())  # argparse wraps lines anywhere
    [parser] = parsers
    assert "".join(script.__doc__.split()) in shown
    assert len(parser._actions) > 3
    for action in parser._actions:
        assert action.help, action.dest
        assert "".join((action.help % vars(action)).split()) in shown
        for name in action.option_strings:
            assert name in shown
        if action.option_strings and action.default not in (None, False, "==SUPPRESS=="):
            assert "".join(f"(default: {action.default})".split()) in shown


def test_defaults_are_those_of_the_task_and_what_is_given_goes_before_them():
    args = train_args("--task", "gsm8k")
    defaults = Task.load("gsm8k").defaults
    for name in ("k", "tau", "lr", "beta", "alpha", "max_new_tokens", "new_problems"):
        assert getattr(args, name) == defaults[name]
    assert args.problems is None and args.model is None  # it ships none
    assert train_args("--k", "3", "--task=gsm8k").k == 3
    toy = train_args()
    assert toy.problems == str(TOY / "train.jsonl") and toy.test == str(TOY / "test.jsonl")
    assert toy.model == str(SHIPPED) and toy.tau == [0.5, 0.7]


def test_eval_has_the_test_problems_by_default(monkeypatch):
    seen = []
    parse = evaluation.parse_args

    def spy(*args, **kwargs):
        seen.append(parse(*args, **kwargs))
        raise InputError("enough")

    monkeypatch.setattr(evaluation, "parse_args", spy)
    with pytest.raises(SystemExit):
        run(evaluation)
    assert seen[0].problems == str(TOY / "test.jsonl")


# --------------------------------------------------------------------------------------------
# The other scripts


def test_sample_writes_responses_once(tmp_path, capsys, error_of):
    argv = ["--limit", "3", "--k", "2", "--out", tmp_path / "r.jsonl"]
    run(sample, *argv)
    rows = read_jsonl(tmp_path / "r.jsonl")
    assert [len(row["responses"]) for row in rows] == [2, 2, 2]
    assert "3 problems" in capsys.readouterr().out
    before = (tmp_path / "r.jsonl").read_bytes()
    assert "exists already" in error_of(sample, *argv)
    assert (tmp_path / "r.jsonl").read_bytes() == before


def test_eval_scores_a_model_and_a_file_of_its_responses_alike(tmp_path, capsys):
    run(evaluation, "--limit", "6", "--k", "4", "--out", tmp_path / "r.jsonl")
    of_model = json.loads(capsys.readouterr().out.splitlines()[-1])
    run(evaluation, "--responses", tmp_path / "r.jsonl")
    of_file = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert of_file == of_model
    assert of_model["problems"] == 6 and of_model["k"] == 4 and of_model["greedy"] is not None


def test_files_made_elsewhere_are_scored_as_far_as_they_go(tmp_path, capsys):
    """No greedy response, no ids, one row without gold."""
    rows = [{"responses": ["#### 4"], "gold": "4"}, {"responses": ["#### 5"]}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    run(evaluation, "--responses", tmp_path / "a.jsonl")
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert scores["self_consistency"] == 1.0 and scores["greedy"] is None
    assert scores["problems"] == 2 and scores["vote_share"] == 1.0


# --------------------------------------------------------------------------------------------
# As processes


def test_no_progress_bar_where_stderr_is_no_terminal(tmp_path):
    """A whole round of train.py has them all: sampling, rewards, reference, training, epochs."""
    command = [sys.executable, "train.py", *SMALL, "--limit", "6", "--rounds", "1"]
    command += ["--method", "reward", "--select", "votes", "--out", tmp_path / "run"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert "\r" not in process.stdout and process.stdout


def test_a_progress_bar_on_a_terminal(tmp_path):
    """So that the test above is not passed by scripts that never show one."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "sample.py", "--limit", "6", "--k", "2", "--out", tmp_path / "r"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 1000):
                shown += part
        except OSError:  # as Linux says that the other end is closed
            pass
    os.close(ours)
    assert process.returncode == 0
    assert b"sampling: " in shown and b"tok/s" in shown


def test_train_can_be_imported_without_fcntl():
    """Windows has none."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import train, eval, sample, vote\n"
        "from common.files import fcntl, locked\n"
        "assert fcntl is None\n"
        "from pathlib import Path; import tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with locked(Path(folder)):\n"
        "        print('works')\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout == "works\n", process.stderr


def test_vote_needs_no_package_to_look_at_votes(tmp_path):
    """Only the standard library: it runs where no PyTorch is installed."""
    write_jsonl(tmp_path / "r.jsonl", [{"responses": ["#### 4", "#### 4", "#### 5"]}])
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'tokenizers', 'safetensors', 'tqdm'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['vote.py', {str(tmp_path / 'r.jsonl')!r}]\n"
        "import vote\n"
        "vote.main()\n"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "2 × 4" in process.stdout and "66.7 %" in process.stdout
