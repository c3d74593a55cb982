"""`--select`: which epoch's model becomes M_t."""

import shutil
from pathlib import Path

import pytest
from conftest import SMALL, TOY, delete, digest, run, stage_files, train_args

import train
from common.files import read_json, read_jsonl, write_jsonl
from common.selection import best_epoch


def test_the_best_epoch_by_labels_is_the_first_of_equal_ones():
    rows = []
    for epoch, greedy in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.1)):
        rows.append({"epoch": epoch, "greedy": greedy})
    assert best_epoch(rows, train_args("--select", "dev", "--epochs", 4), Path("e")) == 2


@pytest.mark.parametrize("rows, best", [
    # (vote share, different answers) of M_{t-1}, which is no candidate, and of each epoch
    ([(0.99, 40), (0.6, 38), (0.7, 20), (1.0, 19)], 2),  # 19 < 40 / 2: the third has collapsed
    ([(0.5, 40), (0.9, 3), (1.0, 1)], 1),  # all have
    ([(0.5, 40), (0.8, 30), (0.8, 40)], 1),
])
def test_the_best_epoch_by_votes_has_not_collapsed(rows, best):
    lines = []
    for epoch, (share, different) in enumerate(rows):
        lines.append({"epoch": epoch, "vote_share": share, "different_answers": different})
    args = train_args("--select", "votes", "--epochs", len(rows) - 1)
    assert best_epoch(lines, args, Path("e")) == best


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """Three epochs, of which the last, the best by votes or the best by labels becomes M1."""
    folder = tmp_path_factory.mktemp("selected")
    garbage = []  # in place of every answer, and where there was none
    for option, name in (("--problems", "train"), ("--dev", "dev"), ("--test", "test")):
        rows = [{**row, "answer": "#### 7"} for row in read_jsonl(TOY / f"{name}.jsonl")]
        write_jsonl(folder / f"{name}.jsonl", rows)
        garbage += [option, folder / f"{name}.jsonl"]
    small = [*SMALL, "--rounds", "1", "--epochs", "3", "--lr", "2e-3", "--limit", "16", "--no-eval"]
    for name, how in (
        ("last", []),
        ("votes", ["--select", "votes"]),
        ("dev", ["--select", "dev"]),
        ("votes, garbage", ["--select", "votes", *garbage]),
    ):
        run(train, *small, *how, "--out", folder / name)
    return folder


def test_only_the_selection_by_labels_reads_labels(selected):
    assert stage_files(selected / "votes") == stage_files(selected / "votes, garbage")


def test_scores_of_the_epochs(selected):
    """By votes M0 is scored too, to see whether its variety remains."""
    dev = read_jsonl(selected / "dev/M1/epochs.jsonl")
    votes = read_jsonl(selected / "votes/M1/epochs.jsonl")
    assert [row["epoch"] for row in dev] == [1, 2, 3]
    assert [row["epoch"] for row in votes] == [0, 1, 2, 3]
    assert dev[0]["greedy"] > 0 and 0 < votes[0]["vote_share"] < 1
    assert not (selected / "last/M1/epochs.jsonl").exists()


def test_the_selection_comes_after_the_training(selected):
    logs = {digest(selected / name / "M1/log.jsonl") for name in ("last", "votes", "dev")}
    assert len(logs) == 1


def test_the_selected_model_is_kept_and_the_others_are_gone(selected):
    last = digest(selected / "last/M1/model/model.safetensors")
    for name in ("votes", "dev"):
        kept = digest(selected / name / "M1/model/model.safetensors")
        path = selected / name / "M1/epochs.jsonl"
        best = best_epoch(read_jsonl(path), train_args("--select", name, "--epochs", 3), path)
        assert (kept == last) == (best == 3)
        assert not (selected / name / "M1/epochs").exists()


def test_the_selected_model_has_the_score_that_selected_it(selected, tmp_path):
    """Greedy accuracy of M1 on the same 16 dev problems, measured by the evaluation."""
    rows = read_jsonl(selected / "dev/M1/epochs.jsonl")
    best = max(row["greedy"] for row in rows)
    small = [*SMALL, "--rounds", "1", "--epochs", "3", "--lr", "2e-3", "--limit", "16"]
    run(train, *small, "--select", "dev", "--from", selected / "dev",
        "--test", TOY / "dev.jsonl", "--out", tmp_path / "run")
    assert read_json(tmp_path / "run/M1/eval.json")["greedy"] == best


@pytest.mark.parametrize("select", ["votes", "dev"])
@pytest.mark.parametrize("change", [
    lambda rows: rows[:-1], lambda rows: rows[::-1], lambda rows: rows + rows[-1:],
    lambda rows: [{"epoch": row["epoch"]} for row in rows],
    lambda rows: [*rows[:-1], {**rows[-1], "greedy": None, "vote_share": "x"}],
], ids=["fewer", "turned", "twice", "without scores", "no numbers"])
def test_scores_that_are_not_of_these_epochs_are_refused(
    selected, tmp_path, monkeypatch, error_of, select, change
):
    """And deleted, as the line says, they are made anew."""
    how = [*SMALL, "--rounds", "1", "--epochs", "3", "--lr", "2e-3", "--limit", "16", "--no-eval"]
    how += ["--select", select, "--out", tmp_path / "run"]
    shutil.copytree(selected / select, tmp_path / "run")
    path = tmp_path / "run/M1/epochs.jsonl"
    for name in ("log.jsonl", "model"):
        delete(tmp_path / "run/M1" / name)
    with monkeypatch.context() as patch:
        patch.setattr(train, "best_epoch", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(train, *how)
    write_jsonl(path, change(read_jsonl(path)))
    before = stage_files(tmp_path / "run")
    message = error_of(train, *how)
    assert f"{path}: must have the " in message and "epochs " in message
    assert stage_files(tmp_path / "run") == before
    path.unlink()
    run(train, *how)
    assert stage_files(tmp_path / "run") == stage_files(selected / select)


@pytest.mark.parametrize("select", ["dev", "votes"])
def test_other_pairs_have_other_scores_of_their_epochs(selected, tmp_path, select):
    """Where pairs are made anew, the models of the epochs are too, and so are their scores."""
    how = [*SMALL, "--rounds", "1", "--epochs", "3", "--lr", "2e-3", "--limit", "16", "--no-eval"]
    how += ["--select", select, "--out", tmp_path / "run"]
    shutil.copytree(selected / select, tmp_path / "run")
    for name in ("pairs.jsonl", "model"):
        delete(tmp_path / "run/M1" / name)
    path = tmp_path / "run/M1/epochs.jsonl"
    rows = read_jsonl(path)
    scores = [dict(row, epoch=other["epoch"]) for row, other in zip(reversed(rows), rows)]
    write_jsonl(path, scores)
    assert scores != rows
    run(train, *how)
    assert stage_files(tmp_path / "run") == stage_files(selected / select)
