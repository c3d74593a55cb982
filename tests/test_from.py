"""`--from` takes over the stages of another run, up to the first that would be made differently.

What is taken over is exactly what agrees, and the run ends as one that was made alone.
"""

import shutil
from pathlib import Path

import pytest
from conftest import SMALL, TOY, delete, run, snapshot, stage_files, train_args

import common.runs
import train
from common.files import read_json
from common.runs import STAGES, portable

ROUND = ["problems.jsonl", "responses.jsonl", "pairs.jsonl", "reference.jsonl", "log.jsonl",
         "model", "eval_responses.jsonl"]
EVERYTHING = ["M0/eval_responses.jsonl"] + [f"M{t}/{name}" for t in (1, 2) for name in ROUND]


def up_to(last: str) -> list[str]:
    return EVERYTHING[: EVERYTHING.index(last) + 1]


# What agrees with a run of SMALL.
CHANGES = {
    "nothing": ([], EVERYTHING),
    "beta": (["--beta", "0.1"], up_to("M1/reference.jsonl")),
    "epochs": (["--epochs", "2"], up_to("M1/reference.jsonl")),
    "select": (["--select", "votes"], up_to("M1/reference.jsonl")),
    "tau": (["--tau", "1.0"], up_to("M1/responses.jsonl")),
    "tau of round 2": (["--tau", "0.5", "0.5"], up_to("M2/responses.jsonl")),
    "unweighted": (["--unweighted"], up_to("M1/responses.jsonl")),
    "method": (["--method", "lmsi"], up_to("M1/responses.jsonl")),
    "extra": (["--extra", "4"], up_to("M1/problems.jsonl")),
    "k": (["--k", "5"], ["M1/problems.jsonl"]),  # even M0's evaluation has k samples
    "problems": (["--problems", TOY / "dev.jsonl"], ["M0/eval_responses.jsonl"]),
    "new problems": (["--new-problems", "0", "6"], up_to("M1/eval_responses.jsonl")),
    "rounds": (["--rounds", "1"], up_to("M1/eval_responses.jsonl")),
    "test": (
        ["--test", TOY / "dev.jsonl"],  # which must not be written in round 2, either
        [f"M1/{name}" for name in ROUND if name != "eval_responses.jsonl"],
    ),
    "machine": (["--max-num-seqs", "8", "--micro-batch-size", "2"], EVERYTHING),
    "seed": (["--seed", "1"], []),
    "temperature": (["--temperature", "0.9"], []),
}


@pytest.mark.parametrize("change, expected", CHANGES.values(), ids=CHANGES)
def test_exactly_the_stages_that_agree_are_taken_over(finished, tmp_path, capsys, change, expected):
    """Looked at before anything is made."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train", lambda args, run: None)
        run(train, *SMALL, *change, "--from", finished, "--out", folder)
    found = [path.relative_to(folder).as_posix() for path in folder.glob("M*/*")]
    assert sorted(found) == sorted(expected)
    for name, content in stage_files(folder).items():
        assert content == stage_files(finished)[name]
    names = ", ".join(expected) or "nothing"
    shown = capsys.readouterr().out
    assert f"{folder}: taken over from {finished}: {names}" in shown
    option = change[0].removeprefix("--").replace("-", "_") if change else ""
    stopped = option not in ("", "rounds", "max_num_seqs")
    assert (f" was made with {option} " in shown) == stopped


@pytest.mark.parametrize("last", ["M1/responses.jsonl", "M1/model", "M2/pairs.jsonl"])
def test_a_stage_as_the_source_is_the_last_that_is_taken_over(finished, tmp_path, last):
    """What a fork needs whose other code makes other pairs of the same responses."""
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "train", lambda args, run: None)
        run(train, *SMALL, "--from", finished / last, "--out", folder)
    found = [path.relative_to(folder).as_posix() for path in folder.glob("M*/*")]
    assert sorted(found) == sorted(up_to(last))


def test_a_stage_as_the_source_is_not_warned_of(finished, tmp_path, capsys, monkeypatch):
    """Other code made it, and that is what was asked for; with the next edit there is a warning."""
    now = common.runs.fingerprint()[0]
    monkeypatch.setattr(common.runs, "fingerprint", lambda: ("edited", {"scpo.py": "other"}))
    run(train, *SMALL, "--from", finished / "M1/responses.jsonl", "--until", "M1/pairs",
        "--out", tmp_path / "run")
    assert "WARNING" not in capsys.readouterr().out
    record = read_json(tmp_path / "run/stages.json")["stages"]
    assert record["M1/responses.jsonl"]["code"] == now
    assert record["M1/pairs.jsonl"]["code"] == "edited"
    monkeypatch.setattr(common.runs, "fingerprint", lambda: ("again", {"scpo.py": "third"}))
    common.runs.warn_of_other_code(tmp_path / "run")
    assert "WARNING: " in capsys.readouterr().out


def test_a_copy_of_the_project_ships_the_same_files():
    assert portable(vars(train_args()))["model"] == "tasks/toy/model"
    assert portable(vars(train_args("--model", "/data/m")))["model"] == "/data/m"


@pytest.mark.parametrize("change", [
    ["--beta", "0.1", "--rounds", "1"],
    ["--tau", "0.5", "0.5", "--until", "M2/model"],
    ["--test", TOY / "dev.jsonl", "--rounds", "1"],
], ids=lambda change: change[0])
def test_a_run_that_took_stages_over_ends_as_one_made_alone(finished, tmp_path, change):
    before = snapshot(finished)
    run(train, *SMALL, *change, "--from", finished, "--out", tmp_path / "run")
    run(train, *SMALL, *change, "--out", tmp_path / "alone")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "alone")
    assert snapshot(finished) == before


def test_a_method_without_rewards_takes_none_over(tmp_path):
    """The run with --from must not hold a file that one made alone has not."""
    small = [*SMALL, "--limit", "12", "--rounds", "1", "--no-eval"]
    run(train, *small, "--method", "reward", "--until", "M1/pairs", "--out", tmp_path / "rewards")
    run(train, *small, "--until", "M1/pairs", "--from", tmp_path / "rewards",
        "--out", tmp_path / "run")
    run(train, *small, "--until", "M1/pairs", "--out", tmp_path / "alone")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "alone")


def test_rewards_are_taken_over_with_the_pairs_made_from_them(tmp_path):
    small = [*SMALL, "--limit", "12", "--rounds", "1", "--no-eval", "--method", "reward"]
    run(train, *small, "--until", "M1/pairs", "--out", tmp_path / "a")
    run(train, *small, "--until", "M1/pairs", "--from", tmp_path / "a", "--out", tmp_path / "b")
    assert stage_files(tmp_path / "b") == stage_files(tmp_path / "a")
    assert "M1/rewards.jsonl" in stage_files(tmp_path / "b")


def test_a_log_whose_model_is_not_there_yet_is_not_taken_over(finished, tmp_path, capsys):
    """It would say of a model that it is trained."""
    source = tmp_path / "stopped"
    shutil.copytree(finished, source)
    delete(source / "M2/model")
    delete(source / "M2/eval.json")
    delete(source / "M2/eval_responses.jsonl")
    run(train, *SMALL, "--from", source, "--out", tmp_path / "run")
    assert "M2/reference.jsonl\n" in capsys.readouterr().out  # the last that is taken over
    assert stage_files(tmp_path / "run") == stage_files(finished)


def test_stages_are_taken_over_with_their_seconds_and_code(finished, tmp_path):
    run(train, *SMALL, "--tau", "0.5", "0.5", "--from", finished, "--until", "M1/model",
        "--out", tmp_path / "run")
    record, before = read_json(tmp_path / "run/stages.json"), read_json(finished / "stages.json")
    assert list(record["stages"]) == up_to("M2/responses.jsonl")
    for name, stage in record["stages"].items():
        assert stage == before["stages"][name]
    assert record["code"] == before["code"]


def test_a_run_that_took_everything_over_has_the_same_files_and_results(finished, tmp_path):
    run(train, *SMALL, "--from", finished, "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)
    assert read_json(tmp_path / "run/results.json") == read_json(finished / "results.json")


def test_a_copy_that_was_stopped_is_begun_again(finished, tmp_path, monkeypatch):
    folder, copy_whole = tmp_path / "run", common.runs.copy_whole

    def stop_at_a_model(source: Path, target: Path) -> None:
        if source.is_dir():
            (target.parent / "model.part").mkdir()
            raise OSError("No space left on device")
        copy_whole(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(common.runs, "copy_whole", stop_at_a_model)
        with pytest.raises(SystemExit):
            run(train, *SMALL, "--from", finished, "--out", folder)
    assert (folder / "M1/log.jsonl").exists() and not (folder / "M1/model").exists()
    run(train, *SMALL, "--from", finished, "--out", folder)
    assert stage_files(folder) == stage_files(finished)
    assert list(read_json(folder / "stages.json")["stages"]) == EVERYTHING


# --------------------------------------------------------------------------------------------
# Once only


def test_from_does_nothing_if_the_folder_was_begun(finished, tmp_path, capsys):
    folder, small = tmp_path / "run", [*SMALL, "--beta", "0.1"]
    run(train, *small, "--until", "M1/problems", "--no-eval", "--out", folder)
    made = snapshot(folder / "M1")
    capsys.readouterr()
    run(train, *small, "--until", "M1/problems", "--no-eval", "--from", finished, "--out", folder)
    assert snapshot(folder / "M1") == made
    assert not (folder / "M0").exists()
    assert "taken over" not in capsys.readouterr().out


def test_a_run_with_from_goes_on_with_the_same_command(finished, tmp_path, capsys):
    """Nothing is taken over twice: what the second run has made stays, whatever --from has."""
    folder, small = tmp_path / "run", [*SMALL, "--tau", "0.5", "0.5", "--from", finished]
    run(train, *small, "--until", "M2/pairs", "--out", folder)
    made = snapshot(folder / "M1/model")
    capsys.readouterr()
    run(train, *small, "--out", folder)
    assert snapshot(folder / "M1/model") == made
    assert "taken over" not in capsys.readouterr().out
    before = snapshot(folder)
    run(train, *small, "--out", folder)
    assert snapshot(folder) == before


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, Path.touch],
                         ids=["nothing", "an empty folder", "a file"])
def test_from_must_be_a_run(tmp_path, error_of, make):
    make(tmp_path / "source")
    message = error_of(train, *SMALL, "--from", tmp_path / "source", "--out", tmp_path / "run")
    assert f"--from {tmp_path / 'source'}: has no options.json" in message
    assert not list((tmp_path / "run").glob("M*"))


def test_the_stages_here_are_those_of_a_run(finished):
    """So that none is forgotten above."""
    optional = {"rewards.jsonl", "epochs.jsonl"}  # of other methods
    assert [name for name in STAGES if name not in optional] == ROUND
