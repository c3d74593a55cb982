"""A run goes on with other options as long as nothing that is finished depends on them."""

import shutil
from pathlib import Path

import pytest
from conftest import (
    SHIPPED,
    SMALL,
    TOY,
    digest,
    run,
    run_interrupted,
    snapshot,
    stage_files,
    without_evaluation,
)

import train
from common.files import read_json, read_jsonl
from common.runs import FIRST_CHANGE, NO_CHANGE, differences

# Of options that change what is made, a value unlike that of the finished run, and the first of
# its files that depends on it.
CHANGES = [
    (["--model", TOY / "reward"], "M0/eval_responses.jsonl"),  # never read: refused before
    (["--temperature", "0.8"], "M0/eval_responses.jsonl"),
    (["--top-p", "0.8"], "M0/eval_responses.jsonl"),
    (["--max-new-tokens", "64"], "M0/eval_responses.jsonl"),
    (["--limit", "23"], "M0/eval_responses.jsonl"),
    (["--seed", "1"], "M0/eval_responses.jsonl"),
    (["--chat", "plain"], "M0/eval_responses.jsonl"),
    (["--system", ""], "M0/eval_responses.jsonl"),
    (["--dtype", "bfloat16"], "M0/eval_responses.jsonl"),
    (["--test", TOY / "dev.jsonl"], "M0/eval_responses.jsonl"),
    (["--k", "5"], "M0/eval_responses.jsonl"),
    (["--problems", TOY / "dev.jsonl"], "M1/problems.jsonl"),
    (["--new-problems", "1", "12"], "M1/problems.jsonl"),
    (["--new-problems", "0", "13"], "M2/problems.jsonl"),
    (["--extra", "7"], "M1/responses.jsonl"),
    (["--extra-temperature", "1.1"], "M1/responses.jsonl"),
    (["--method", "coin"], "M1/pairs.jsonl"),
    (["--tau", "0.6", "0.75"], "M1/pairs.jsonl"),
    (["--tau", "0.5", "0.8"], "M2/pairs.jsonl"),
    (["--unweighted"], "M1/pairs.jsonl"),
    (["--beta", "0.25"], "M1/log.jsonl"),
    (["--alpha", "4"], "M1/log.jsonl"),
    (["--lr", "1e-4"], "M1/log.jsonl"),
    (["--warmup-ratio", "0.1"], "M1/log.jsonl"),
    (["--epochs", "2"], "M1/log.jsonl"),
    (["--batch-size", "4"], "M1/log.jsonl"),
    (["--max-grad-norm", "0.5"], "M1/log.jsonl"),
    (["--select", "votes"], "M1/log.jsonl"),
]
CHANGES_OF_THE_MACHINE = [
    ["--device", "cpu"],
    ["--max-num-seqs", "40"],
    ["--micro-batch-size", "3"],
    ["--save-every", "1"],
    ["--activation-checkpointing"],
]


def option_of(change: list) -> str:
    return change[0].removeprefix("--").replace("-", "_")


# --------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize("change, first", CHANGES, ids=[change[0] for change, _ in CHANGES])
def test_a_finished_file_that_depends_on_it_refuses_a_change(finished, error_of, change, first):
    """The message names the option and the first such file; nothing is touched."""
    before = snapshot(finished)
    message = error_of(train, *SMALL, *change, "--out", finished)
    assert snapshot(finished) == before
    assert f"{first} was made with {option_of(change)} " in message
    assert f"perhaps with --from {finished}" in message


def test_every_option_is_tried_here():
    """All of train.py, but those that tell where from and how far to go."""
    known = {action.dest for action in train.options()._actions} - {"help"}
    tried = {option_of(change) for change, _ in CHANGES}
    tried |= {option_of(change) for change in CHANGES_OF_THE_MACHINE}
    elsewhere = {"out", "from", "until", "rounds", "no_eval", "dry_run"}  # do not change a file
    elsewhere |= {"task"}  # has other files, of other formats
    elsewhere |= {"dev", "answers", "reward_model", "writer"}  # not used by this run
    assert known - tried == elsewhere


def test_a_new_option_counts_as_changing_everything(finished, tmp_path, monkeypatch, error_of):
    """Whoever adds one and forgets common/runs.py gets no mixed files."""
    options = train.options

    def with_a_new_one():
        parser = options()
        parser.add_argument("--novelty", type=float, default=1.0, help="not in common/runs.py")
        return parser

    monkeypatch.setattr(train, "options", with_a_new_one)
    message = error_of(train, *SMALL, "--out", finished)
    assert "M0/eval_responses.jsonl was made with novelty None, not 1.0" in message

    run(train, *SMALL, "--until", "M1/problems", "--no-eval", "--out", tmp_path / "run")
    run(train, *SMALL, "--until", "M1/problems", "--no-eval", "--out", tmp_path / "run")
    message = error_of(train, *SMALL, "--novelty", "2", "--out", tmp_path / "run")
    assert "M1/problems.jsonl was made with novelty 1.0, not 2.0" in message

    changed = dict(differences({"rounds": 1, "novelty": 1.0}, {**all_equal(), "novelty": 2.0}))
    assert len(changed) == 10 and all(("novelty", 1.0, 2.0) in found for found in changed.values())


def all_equal() -> dict:
    """Options of a run whose every value is None, in one round."""
    names = {action.dest for action in train.options()._actions} - {"help"}
    return {**dict.fromkeys(names), "rounds": 1}


def test_options_named_in_runs_exist():
    """A misspelled or removed one would be a rule without effect."""
    known = {action.dest for action in train.options()._actions}
    named = {*NO_CHANGE, *(name for names in FIRST_CHANGE.values() for name in names)}
    assert named <= known


# --------------------------------------------------------------------------------------------
# Accepted


def test_options_of_the_machine_may_change_and_more_rounds_may_follow(finished, tmp_path):
    """One round, moved elsewhere, goes on to two: the same samples and pairs."""
    run(train, *SMALL, "--rounds", "1", "--no-eval", "--out", tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    changes = [word for change in CHANGES_OF_THE_MACHINE for word in change]
    run(train, *SMALL, *changes, "--rounds", "2", "--no-eval", "--out", tmp_path / "b")
    for name in ("problems.jsonl", "responses.jsonl", "pairs.jsonl"):
        assert digest(tmp_path / "b/M2" / name) == digest(finished / "M2" / name)
    logs = [read_jsonl(folder / "M2/log.jsonl") for folder in (tmp_path / "b", finished)]
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("change", CHANGES_OF_THE_MACHINE, ids=" ".join)
def test_a_finished_run_takes_any_option_of_the_machine(finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "run")
    run(train, *SMALL, *change, "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)


def test_a_finished_run_takes_fewer_rounds(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run(train, *SMALL, "--rounds", "1", "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)


def test_tau_of_a_later_round_may_change(tmp_path):
    """Of round 2 there are responses, but no pairs yet."""
    small = [*SMALL, "--limit", "12", "--no-eval"]
    run(train, *small, "--until", "M2/responses", "--out", tmp_path / "run")
    other = [*small, "--tau", "0.5", "0.5"]
    run(train, *other, "--out", tmp_path / "run")
    run(train, *other, "--out", tmp_path / "alone")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "alone")
    votes = [pair["votes_chosen"] for pair in read_jsonl(tmp_path / "run/M2/pairs.jsonl")]
    assert min(votes) == 2
    assert read_json(tmp_path / "run/options.json")["tau"] == [0.5, 0.5]


@pytest.mark.parametrize("change", [
    ["--beta", "0.25"],
    ["--epochs", "2"],
    ["--select", "votes", "--dev", TOY / "test.jsonl"],
], ids=lambda change: change[0])
def test_how_to_train_may_change_until_it_is_trained(tmp_path, change):
    small = [*SMALL, "--limit", "12", "--rounds", "1", "--no-eval"]
    run(train, *small, "--until", "M1/pairs", "--out", tmp_path / "run")
    run(train, *small, *change, "--out", tmp_path / "run")
    run(train, *small, *change, "--out", tmp_path / "alone")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "alone")


def test_test_may_change_until_something_is_evaluated(finished, tmp_path):
    """No problem is written in round 1, so none of its files depends on --test."""
    small = [*SMALL, "--rounds", "1"]
    run(train, *small, "--no-eval", "--out", tmp_path / "run")
    run(train, *small, "--test", TOY / "dev.jsonl", "--out", tmp_path / "run")
    ours, theirs = stage_files(tmp_path / "run"), stage_files(finished)
    trained = {name: content for name, content in theirs.items() if name.startswith("M1")}
    assert without_evaluation(ours) == without_evaluation(trained)
    assert [row["id"] for row in read_jsonl(tmp_path / "run/M0/eval_responses.jsonl")] == [
        f"dev-{i}" for i in range(24)]


def test_test_may_not_change_once_problems_are_written(tmp_path, error_of):
    """Which of them were dropped depends on --test."""
    small = [*SMALL, "--limit", "8", "--new-problems", "4", "--no-eval"]
    run(train, *small, "--until", "M1/problems", "--out", tmp_path / "run")
    message = error_of(train, *small, "--test", TOY / "dev.jsonl", "--out", tmp_path / "run")
    assert "M1/problems.jsonl was made with test " in message


@pytest.mark.parametrize("change", [
    ["--dev", TOY / "test.jsonl"],  # --select last looks at none
    ["--answers", TOY / "dev.jsonl"],  # --method scpo reads none
    ["--reward-model", SHIPPED],  # nor does it ask a judge
], ids=lambda change: change[0])
def test_an_option_that_this_run_does_not_use_may_change(finished, tmp_path, change):
    shutil.copytree(finished, tmp_path / "run")
    run(train, *SMALL, *change, "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)


def test_the_writer_may_change_until_problems_are_written(tmp_path):
    """In round 1 none are."""
    small = [*SMALL, "--limit", "12", "--no-eval"]
    run(train, *small, "--until", "M1/model", "--out", tmp_path / "run")
    run(train, *small, "--writer", SHIPPED, "--until", "M2/problems", "--out", tmp_path / "run")
    run(train, *small, "--writer", SHIPPED, "--until", "M2/problems", "--out", tmp_path / "alone")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "alone")


# --------------------------------------------------------------------------------------------
# In the middle of training

FOUR_STEPS = [*SMALL, "--limit", "12", "--rounds", "1", "--no-eval", "--epochs", "2",
              "--batch-size", "4"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A run that was stopped in the second epoch."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    run_interrupted(3, *FOUR_STEPS, "--out", folder)
    assert (folder / "M1/checkpoint-3").exists()
    return folder


def assert_refused_or_as_alone(folder: Path, options: list, changed: str, capsys) -> None:
    """Either the change is refused, or the round is trained as if it had had these options from
    the first step."""
    capsys.readouterr()
    try:
        run(train, *options, "--out", folder)
    except SystemExit:
        assert f"made with {changed} " in capsys.readouterr().err
    else:
        alone = folder.parent / "alone"
        run(train, *options, "--out", alone)
        assert stage_files(folder) == stage_files(alone)


@pytest.mark.parametrize("change", [
    ["--lr", "1e-3"],
    ["--batch-size", "2"],
    ["--select", "votes"],
], ids=" ".join)
def test_a_checkpoint_is_not_continued_with_other_options(checkpoint, tmp_path, capsys, change):
    shutil.copytree(checkpoint, tmp_path / "run")
    options = [*FOUR_STEPS, *change]
    assert_refused_or_as_alone(tmp_path / "run", options, option_of(change), capsys)


def test_a_saved_epoch_is_not_continued_with_other_options(tmp_path, monkeypatch, capsys):
    """Killed in the second epoch, without a checkpoint; the model of the first one was saved."""
    options = [*FOUR_STEPS, "--select", "votes"]
    forward_backward, steps = train.forward_backward, []

    def fail_in_the_third_step(*args):
        steps.append(1)
        return forward_backward(*args) if len(steps) < 3 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(train, "forward_backward", fail_in_the_third_step)
        with pytest.raises(ZeroDivisionError):
            run(train, *options, "--out", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/M1/epochs").iterdir()] == ["1"]
    assert_refused_or_as_alone(tmp_path / "run", [*options, "--lr", "1e-3"], "lr", capsys)


def test_a_checkpoint_is_continued_with_other_options_of_the_machine(checkpoint, tmp_path):
    """--save-every and --device change no bit of it."""
    shutil.copytree(checkpoint, tmp_path / "run")
    run(train, *FOUR_STEPS, "--save-every", "1", "--device", "cpu", "--out", tmp_path / "run")
    run(train, *FOUR_STEPS, "--out", tmp_path / "alone")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "alone")
