"""A run's folder: which files a run makes, what stands in them, and how far it goes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import (
    SHIPPED,
    SMALL,
    TOY,
    digest,
    run,
    snapshot,
    stage_files,
    train_args,
    without_evaluation,
)

import eval as evaluation
import train
from common.files import read_json, read_jsonl
from common.runs import per_round
from eval import score
from model import Llama
from tasks.chat import ChatTokenizer
from vote import response_answers

ROUND = ["problems.jsonl", "responses.jsonl", "pairs.jsonl", "reference.jsonl", "log.jsonl",
         "model"]
EVALUATION = ["eval_responses.jsonl", "eval.json"]
PAIR_FIELDS = {"id", "prompt", "weight", "k"}
for side in ("chosen", "rejected"):
    PAIR_FIELDS |= {side, f"votes_{side}", f"answer_{side}", f"sample_{side}", f"ended_{side}",
                    f"ids_{side}"}


def stages_of(folder: Path) -> set[str]:
    """The files of all rounds, as M1/pairs.jsonl, and the models, as M1/model."""
    return {path.relative_to(folder).as_posix() for path in folder.glob("M*/*")}


# --------------------------------------------------------------------------------------------
# The files


def test_a_run_makes_every_file_of_every_round(finished):
    expected = {f"M0/{name}" for name in EVALUATION}
    for t in (1, 2):
        expected |= {f"M{t}/{name}" for name in ROUND + EVALUATION}
    assert stages_of(finished) == expected


def test_problems_hold_no_answer_and_written_ones_follow_those_given(finished):
    problems = read_jsonl(finished / "M2/problems.jsonl")
    assert all(set(problem) == {"id", "question"} for problem in problems)
    given = read_jsonl(TOY / "train.jsonl")[:24]
    assert problems[:24] == given == read_jsonl(finished / "M1/problems.jsonl")
    assert [p["id"] for p in problems[24:]] == [f"M2-new-{i}" for i in range(len(problems) - 24)]
    assert len(problems) > 24


def test_pairs_have_the_weight_of_their_votes(finished):
    for t in (1, 2):
        for pair in read_jsonl(finished / f"M{t}/pairs.jsonl"):
            assert set(pair) == PAIR_FIELDS
            assert pair["weight"] == (pair["votes_chosen"] - pair["votes_rejected"]) / pair["k"]
            assert pair["weight"] > 0 and pair["k"] == 4
            assert pair["ended_chosen"]


def test_each_round_has_its_own_threshold(finished):
    """--tau 0.5 0.75 of k = 4: two votes in round 1, three in round 2."""
    for t, least in ((1, 2), (2, 3)):
        votes = [pair["votes_chosen"] for pair in read_jsonl(finished / f"M{t}/pairs.jsonl")]
        assert min(votes) == least


def test_reference_holds_two_log_probs_of_each_pair(finished):
    for t in (1, 2):
        pairs = read_jsonl(finished / f"M{t}/pairs.jsonl")
        reference = read_jsonl(finished / f"M{t}/reference.jsonl")
        assert [row["id"] for row in reference] == [pair["id"] for pair in pairs]
        for row in reference:
            assert set(row) == {"id", "reference_chosen_logp", "reference_rejected_logp"}
            assert row["reference_chosen_logp"] < 0 and row["reference_rejected_logp"] < 0


def test_training_starts_at_the_reference(finished):
    """Before the first step both rewards, β · log[M_θ / M_{t-1}], are 0."""
    for t in (1, 2):
        first = read_jsonl(finished / f"M{t}/log.jsonl")[0]
        assert first["margin"] == pytest.approx(0, abs=1e-4)


def test_an_epoch_takes_each_pair_once(finished):
    """The last batch is smaller if need be."""
    for t in (1, 2):
        pairs = read_jsonl(finished / f"M{t}/pairs.jsonl")
        batches = [step["pairs"] for step in read_jsonl(finished / f"M{t}/log.jsonl")]
        assert sum(batches) == len(pairs)
        assert batches == sorted(batches, reverse=True) and set(batches[:-1]) == {8}


def test_every_tensor_of_the_model_moved(finished):
    before = Llama.from_pretrained(SHIPPED).state_dict()
    after = Llama.from_pretrained(finished / "M1/model").state_dict()
    for name, tensor in before.items():
        assert not torch.equal(tensor, after[name]), name


def test_the_model_is_a_checkpoint_folder_like_the_one_before(finished):
    ChatTokenizer(finished / "M1/model")
    files = {path.name for path in SHIPPED.iterdir()}
    assert {path.name for path in (finished / "M1/model").iterdir()} == files
    for name in files - {"config.json", "model.safetensors"}:
        assert digest(finished / "M1/model" / name) == digest(SHIPPED / name)


def test_round_2_samples_the_model_of_round_1(finished, tmp_path):
    args = train_args(*SMALL)
    problems = read_jsonl(finished / "M2/problems.jsonl")
    responses = read_jsonl(finished / "M2/responses.jsonl")
    m1, m0 = finished / "M1/model", SHIPPED
    assert train.make_responses(m1, problems, args, tmp_path / "1", 2) == responses
    assert train.make_responses(m0, problems, args, tmp_path / "0", 2) != responses


def test_extra_responses_are_drawn_where_all_k_agree_and_only_there(finished):
    rows = read_jsonl(finished / "M1/responses.jsonl") + read_jsonl(finished / "M2/responses.jsonl")
    unanimous = 0
    for row in rows:
        answers = response_answers(row, "toy")
        agree = answers[0] is not None and len(set(answers)) == 1
        unanimous += agree
        assert ("extra_responses" in row) == ("extra_ended" in row) == agree
        if agree:
            assert len(row["extra_responses"]) == len(row["extra_ended"]) == 8
    assert 0 < unanimous < len(rows)


def test_extra_responses_can_be_switched_off(tmp_path):
    run(train, *SMALL, "--extra", "0", "--until", "M1/responses", "--no-eval",
        "--out", tmp_path / "run")
    rows = read_jsonl(tmp_path / "run/M1/responses.jsonl")
    assert any(len(set(response_answers(row, "toy"))) == 1 for row in rows)
    assert not any("extra_responses" in row for row in rows)


def test_another_model_may_write_the_problems(tmp_path):
    """They are those that it would write for itself, whoever answers them."""
    small = [*SMALL, "--new-problems", "6", "--rounds", "1", "--limit", "8", "--no-eval"]
    run(train, *small, "--lr", "1e-3", "--out", tmp_path / "by M0")
    other = tmp_path / "by M0/M1/model"  # a model unlike M0
    small += ["--until", "M1/problems"]
    run(train, *small, "--model", other, "--writer", SHIPPED, "--out", tmp_path / "by writer")
    run(train, *small, "--model", other, "--out", tmp_path / "by other")
    written = {}
    for name in ("by M0", "by writer", "by other"):
        problems = read_jsonl(tmp_path / name / "M1/problems.jsonl")[8:]
        written[name] = [problem["question"] for problem in problems]
    assert written["by writer"] == written["by M0"] != written["by other"]
    assert len(written["by M0"]) > 2


def test_an_option_per_round_repeats_its_last_value():
    assert [per_round([0.5, 0.7], t) for t in (1, 2, 3)] == [0.5, 0.7, 0.7]
    assert per_round([1], 5) == 1
    assert per_round(8, 5) == 8


# --------------------------------------------------------------------------------------------
# Results and the evaluation


def test_results_gather_the_scores_of_each_model(finished):
    results = read_json(finished / "results.json")
    assert list(results) == ["M0", "M1", "M2"]
    for name, entry in results.items():
        assert entry["problems"] == 24 and entry["k"] == 4
        assert 0 <= entry["greedy"] <= 1 and entry["seconds"] > 0
        assert entry.items() >= read_json(finished / name / "eval.json").items()
    for t in (1, 2):
        n_pairs = len(read_jsonl(finished / f"M{t}/pairs.jsonl"))
        assert results[f"M{t}"]["pairs"] == n_pairs


def test_seconds_of_a_model_are_those_of_its_stages(finished):
    stages = read_json(finished / "stages.json")["stages"]
    for name, entry in read_json(finished / "results.json").items():
        seconds = [value["seconds"] for key, value in stages.items() if key.startswith(name)]
        assert entry["seconds"] == pytest.approx(sum(seconds), abs=1e-9)
        assert 0 < entry["seconds"] < 3600
    assert {"M1/model", "M2/model"} <= stages.keys()
    # eval.json is made from a stage's file, in no time
    assert set(stages) == {name for name in stages_of(finished) if not name.endswith("eval.json")}


@pytest.mark.parametrize("t", [0, 1, 2])
def test_each_evaluation_is_what_eval_says_of_that_model(finished, tmp_path, t):
    model = finished / f"M{t}/model" if t else SHIPPED
    options = ["--limit", "24", "--k", "4", "--max-new-tokens", "48"]
    run(evaluation, "--model", model, *options, "--out", tmp_path / "r.jsonl")
    theirs = digest(finished / f"M{t}/eval_responses.jsonl")
    assert digest(tmp_path / "r.jsonl") == theirs
    assert score(read_jsonl(tmp_path / "r.jsonl"), "toy") == read_json(finished / f"M{t}/eval.json")


@pytest.mark.parametrize("content", [None, '{"M1": {"greedy": 1.0}}'], ids=["deleted", "wrong"])
def test_results_are_made_from_the_files_again(finished, tmp_path, content):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    if content is None:
        (folder / "results.json").unlink()
    else:
        (folder / "results.json").write_text(content)
    run(train, *SMALL, "--out", folder)
    assert digest(folder / "results.json") == digest(finished / "results.json")


def test_a_finished_run_does_nothing_again_but_show_its_table(finished, capsys):
    before = snapshot(finished)
    run(train, *SMALL, "--out", finished)
    assert snapshot(finished) == before
    shown = capsys.readouterr().out
    assert "M0  " in shown and "M2  " in shown and "WARNING" not in shown


def test_a_run_without_evaluation_trains_the_same_models_and_it_may_follow(finished, tmp_path):
    folder = tmp_path / "run"
    run(train, *SMALL, "--no-eval", "--out", folder)
    assert stage_files(folder) == without_evaluation(stage_files(finished))
    assert not (folder / "M0").exists()
    results = read_json(folder / "results.json")
    assert {name: set(entry) for name, entry in results.items()} == {
        "M1": {"seconds", "pairs"},
        "M2": {"seconds", "pairs"},
    }
    trained = snapshot(folder / "M2/model")
    run(train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)
    assert snapshot(folder / "M2/model") == trained


def test_a_run_without_test_problems_trains_the_same_model(finished, tmp_path):
    run(train, *SMALL, "--test", "", "--rounds", "1", "--out", tmp_path / "run")
    files = without_evaluation(stage_files(finished))
    expected = {name: content for name, content in files.items() if name.startswith("M1/")}
    assert stage_files(tmp_path / "run") == expected
    assert set(read_json(tmp_path / "run/results.json")) == {"M1"}


def test_no_evaluation_leaves_one_that_is_there(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    run(train, *SMALL, "--no-eval", "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)
    assert read_json(tmp_path / "run/results.json") == read_json(finished / "results.json")


@pytest.mark.parametrize("how", [["--no-eval"], ["--test", ""]], ids=["--no-eval", "--test ''"])
def test_without_evaluation_no_test_problem_is_answered(tmp_path, monkeypatch, how):
    monkeypatch.setattr(train, "evaluate_checkpoint", None)
    small = [*SMALL, "--rounds", "1", "--limit", "8", "--until", "M1/model"]
    run(train, *small, *how, "--out", tmp_path / "run")
    assert (tmp_path / "run/M1/model").exists()


def test_written_problems_are_none_of_the_test_even_without_evaluation(finished, tmp_path):
    """--no-eval skips the evaluation; the questions of --test must still not be written."""
    written = read_jsonl(finished / "M2/problems.jsonl")[24:]
    test = [*read_jsonl(TOY / "test.jsonl"), {**written[0], "answer": "#### 7"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    run(train, *SMALL, "--no-eval", "--test", tmp_path / "test.jsonl", "--until", "M2/problems",
        "--out", tmp_path / "run")
    now = [problem["question"] for problem in read_jsonl(tmp_path / "run/M2/problems.jsonl")[24:]]
    assert now == [problem["question"] for problem in written[1:]]
