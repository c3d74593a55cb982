"""A run's folder with files that are broken, of another run, gone, or somebody else's."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import SMALL, delete, digest, run, run_interrupted, snapshot, stage_files

import train
from common.files import read_json, read_jsonl, write_jsonl
from common.runs import FIELDS

READ = ["M0/eval_responses.jsonl", "M2/problems.jsonl", "M2/responses.jsonl", "M2/pairs.jsonl",
        "M2/reference.jsonl"]


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A run that was stopped before the training of round 2."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("log.jsonl", "model", "eval_responses.jsonl", "eval.json"):
        delete(tmp_path / "run/M2" / name)
    return tmp_path / "run"


@pytest.fixture
def refusal(folder, error_of):
    """The line in which a folder is refused, of which nothing is changed."""

    def refuse(*argv) -> str:
        files = stage_files(folder)
        message = error_of(train, *SMALL, *argv, "--out", folder)
        assert stage_files(folder) == files and not list(folder.rglob("*.part"))
        return message

    return refuse


# --------------------------------------------------------------------------------------------
# Stages


FIELD_OF_STAGE = [(name, field) for name in READ for field in FIELDS[Path(name).name]]


@pytest.mark.parametrize("name, field", FIELD_OF_STAGE, ids=str)
def test_a_line_without_a_field_is_named(folder, refusal, name, field):
    rows = read_jsonl(folder / name)
    del rows[1][field]
    write_jsonl(folder / name, rows)
    assert f"{folder / name}, line 2: has no '{field}'" in refusal()


@pytest.mark.parametrize("name, field", FIELD_OF_STAGE, ids=str)
def test_a_field_of_another_kind_is_named(folder, refusal, name, field):
    if field == "gold":
        pytest.skip("it may be anything, or null")
    rows = read_jsonl(folder / name)
    rows[1][field] = {"a": 1}
    write_jsonl(folder / name, rows)
    message = refusal()
    assert f"{folder / name}, line 2: `{field}`" in message and len(message) < 300


@pytest.mark.parametrize("row", [
    {"extra_responses": ["a"], "extra_ended": []}, {"extra_responses": ["a"]},
    {"extra_responses": [1], "extra_ended": [True]}, {"extra_responses": "a"},
], ids=str)
def test_extra_responses_are_texts_and_whether_they_ended(folder, refusal, row):
    rows = read_jsonl(folder / "M2/responses.jsonl")
    rows[0].pop("extra_ended", None)
    rows[0].update(row)
    write_jsonl(folder / "M2/responses.jsonl", rows)
    assert "responses.jsonl, line 1: `extra_responses` must be" in refusal()


@pytest.mark.parametrize("name", READ)
def test_an_empty_file_is_named(folder, refusal, name):
    (folder / name).write_text("")
    assert f"{folder / name}: is empty; delete the file to make it anew" in refusal()


@pytest.mark.parametrize("name", [name for name in READ if "pairs" not in name])
@pytest.mark.parametrize("change", [
    lambda rows: rows[: len(rows) // 2], lambda rows: rows[::-1],
    lambda rows: [{**row, "id": f"other-{row['id']}"} for row in rows],
], ids=["half", "turned", "of another run"])
def test_lines_of_other_problems_are_refused(folder, refusal, name, change):
    write_jsonl(folder / name, change(read_jsonl(folder / name)))
    message = refusal()
    if "problems" in name:  # then the first file made from it is not of this run
        name = "M2/responses.jsonl"
    assert f"{folder / name}: its lines are not those of this run's problems" in message


@pytest.mark.parametrize("change", [
    {"id": "other"}, {"prompt": "Q: another\nA:"}, {"chosen": "#### 77"}, {"rejected": "#### 77"},
    {"ids_chosen": [5, 6, 7]},
], ids=lambda change: next(iter(change)))
def test_a_pair_that_is_not_made_of_the_responses_is_refused(folder, refusal, change):
    """As one of another run, whose reference.jsonl is gone."""
    delete(folder / "M2/reference.jsonl")
    path = folder / "M2/pairs.jsonl"
    rows = read_jsonl(path)
    rows[-1] = {**rows[-1], **change}
    write_jsonl(path, rows)
    message = refusal()
    reason = f"the pair of {rows[-1]['id']} is not made of the responses in responses.jsonl"
    assert f"{path}: {reason}; delete the file to make it anew" in message


def test_pairs_that_are_refused_and_deleted_are_made_anew(finished, folder, error_of):
    rows = read_jsonl(folder / "M1/pairs.jsonl")  # all is there, but it is of round 1
    write_jsonl(folder / "M2/pairs.jsonl", [{**row, "chosen": "#### 77"} for row in rows])
    assert "pairs.jsonl" in error_of(train, *SMALL, "--out", folder)
    delete(folder / "M2/pairs.jsonl")
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


def test_a_single_pair_is_enough(folder):
    delete(folder / "M2/reference.jsonl")
    write_jsonl(folder / "M2/pairs.jsonl", read_jsonl(folder / "M2/pairs.jsonl")[:1])
    run(train, *SMALL, "--no-eval", "--out", folder)
    assert [line["pairs"] for line in read_jsonl(folder / "M2/log.jsonl")] == [1]


def test_other_pairs_of_the_same_responses_are_a_finished_stage(folder):
    """Another program may choose: fewer, in another order, several of a problem, turned."""
    delete(folder / "M2/reference.jsonl")
    pairs = read_jsonl(folder / "M2/pairs.jsonl")[:3]
    turned = {**pairs[0], "chosen": pairs[0]["rejected"], "rejected": pairs[0]["chosen"],
              "ids_chosen": pairs[0]["ids_rejected"], "ids_rejected": pairs[0]["ids_chosen"]}
    for name in ("ids_chosen", "ids_rejected"):
        del pairs[1][name]  # then its texts are encoded
    write_jsonl(folder / "M2/pairs.jsonl", [*pairs[::-1], {**turned, "weight": -0.5}])
    run(train, *SMALL, "--out", folder)
    assert len(read_jsonl(folder / "M2/reference.jsonl")) == 4
    assert [line["pairs"] for line in read_jsonl(folder / "M2/log.jsonl")] == [4]


# --------------------------------------------------------------------------------------------
# Records of the run

STRANGE = [None, "", "[]", "{", '{"a": 1}', '{"M1": 7, "stages": {"M1/model": {}}}',
           '{"stages": {"x": {"seconds": 1, "code": ""}}, "code": {}}',
           '{"stages": {"M1/model": {"seconds": 1, "code": "c"}}, "code": []}',
           '{"stages": {"M1/model": {"seconds": 1, "code": "c"}}, "code": {"c": []}}']


@pytest.mark.parametrize("content", STRANGE, ids=str)
def test_strange_records_are_made_anew(finished, tmp_path, content):
    """results.json, stages.json and eval.json say nothing that is not in other files, but for the
    seconds."""
    shutil.copytree(finished, tmp_path / "run")
    for name in ("results.json", "stages.json", "M1/eval.json"):
        if content is None:
            (tmp_path / "run" / name).unlink()
        else:
            (tmp_path / "run" / name).write_text(content)
    run(train, *SMALL, "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)
    for t, result in read_json(tmp_path / "run/results.json").items():
        assert {**result, "seconds": 0} == {**read_json(finished / "results.json")[t], "seconds": 0}


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"a": 1}'], ids=str)
def test_stages_without_their_options_are_refused(folder, refusal, content):
    if content is None:
        (folder / "options.json").unlink()
    else:
        (folder / "options.json").write_text(content)
    assert "options.json" in refusal()


@pytest.mark.parametrize("name, value", [("tau", []), ("new_problems", {}), ("tau", "0.5"),
                                         ("k", None)], ids=str)
def test_an_option_of_another_kind_is_another_option(folder, refusal, name, value):
    path = folder / "options.json"
    path.write_text(json.dumps({**read_json(path), name: value}))
    assert f"was made with {name} " in refusal()


@pytest.mark.parametrize("name", ["options.json", "results.json", "stages.json"])
def test_files_of_that_name_that_are_not_of_a_run_are_left_alone(tmp_path, error_of, name):
    (tmp_path / name).write_text('{"mine": 1}')
    before = digest(tmp_path / name)
    assert name in error_of(train, *SMALL, "--out", tmp_path)
    assert digest(tmp_path / name) == before
    assert {path.name for path in tmp_path.iterdir()} == {name, "lock"}


def test_what_is_not_of_a_run_is_left_alone(folder, finished):
    mine = []
    for name in ("Mine/a.txt", "M/model", "M2x/pairs.jsonl", "M1/notes.txt", "M2/checkpoint-abc/x",
                 "M2/checkpoint-/x", "model", "problems.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
        mine.append(folder / name)
    before = {path: path.stat().st_mtime_ns for path in mine}
    run(train, *SMALL, "--out", folder)
    assert {path: snapshot(folder)[path] for path in mine} == before
    expected = stage_files(finished)
    found = stage_files(folder)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("name", ["M1/problems.jsonl", "M1/model/config.json"])
def test_from_copies_over_nothing(finished, tmp_path, error_of, name):
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('{"id": "mine", "question": "?"}')
    before = digest(mine)
    message = error_of(train, *SMALL, "--from", finished, "--out", tmp_path / "run")
    assert "choose another --out" in message and digest(mine) == before


# --------------------------------------------------------------------------------------------
# Going on


def test_a_deleted_model_of_a_finished_round_is_made_again(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    delete(folder / "M1/model")
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


@pytest.mark.parametrize("damage", [
    lambda checkpoint: (checkpoint / "log.jsonl").write_text(""),
    lambda checkpoint: (checkpoint / "log.jsonl").unlink(),
    lambda checkpoint: (checkpoint / "log.jsonl").write_text("{"),
    lambda checkpoint: write_jsonl(checkpoint / "log.jsonl",
                                   read_jsonl(checkpoint / "log.jsonl")[:1]),
    lambda checkpoint: delete(checkpoint / "exp_avg"),
    lambda checkpoint: (checkpoint / "weights/model.safetensors").write_bytes(b"x"),
], ids=["empty log", "no log", "broken log", "half a log", "no moments", "broken weights"])
def test_a_damaged_checkpoint_is_refused_and_without_it_the_run_goes_on(
    finished, folder, error_of, damage
):
    """Its number says how many steps were made."""
    run_interrupted(2, *SMALL, "--out", folder)
    [checkpoint] = (folder / "M2").glob("checkpoint-*")
    damage(checkpoint)
    before = stage_files(folder)
    message = error_of(train, *SMALL, "--out", folder)
    assert f"; delete {checkpoint} to train from an earlier step" in message
    assert stage_files(folder) == before
    delete(checkpoint)
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


@pytest.mark.parametrize("select, lost", [("last", [2]), ("votes", [1, 2]), ("votes", [1])],
                         ids=["last", "all", "the first"])
@pytest.mark.parametrize("stopped_in", ["summary", "free_memory"], ids=["no log", "with the log"])
def test_without_the_models_of_its_epochs_a_training_is_made_anew(
    tmp_path, monkeypatch, capsys, select, lost, stopped_in
):
    """Its last checkpoint knows none but the last of them."""
    how = [*SMALL, "--rounds", "1", "--limit", "12", "--epochs", "2", "--save-every", "1"]
    how += ["--select", select, "--no-eval"]
    with monkeypatch.context() as patch:
        patch.setattr(train, stopped_in, lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(train, *how, "--out", tmp_path / "run")
    assert (tmp_path / "run/M1/log.jsonl").exists() == (stopped_in == "free_memory")
    for epoch in lost:
        delete(tmp_path / f"run/M1/epochs/{epoch}")
    run(train, *how, "--out", tmp_path / "run")
    shown = f"{tmp_path / 'run/M1'}: models of its epochs are gone; the training is made anew"
    assert shown in capsys.readouterr().out
    run(train, *how, "--out", tmp_path / "whole")
    assert stage_files(tmp_path / "run") == stage_files(tmp_path / "whole")


def test_epochs_that_were_deleted_are_trained_again(folder, monkeypatch):
    """The log is there, the last checkpoint too, but no model."""
    monkeypatch.setattr(train, "OF_TRAINING", ())
    run(train, *SMALL, "--save-every", "1", "--no-eval", "--out", folder)
    assert list((folder / "M2").glob("checkpoint-*"))
    monkeypatch.undo()
    delete(folder / "M2/model")
    run(train, *SMALL, "--out", folder)
    assert (folder / "M2/model").exists()


def test_a_lower_threshold_goes_on_in_the_same_folder(tmp_path, error_of):
    how = [*SMALL, "--rounds", "1", "--limit", "6", "--no-eval", "--out", tmp_path / "run"]
    message = error_of(train, *how, "--tau", "1", "--extra", "0")
    assert "no pair left of 6 problems" in message and "lower --tau" in message
    responses = digest(tmp_path / "run/M1/responses.jsonl")
    run(train, *how, "--tau", "0.5", "--extra", "0")
    assert digest(tmp_path / "run/M1/responses.jsonl") == responses
    assert (tmp_path / "run/M1/model").exists()
