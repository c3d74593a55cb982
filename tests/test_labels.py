"""Which labels a method reads: none, but for gold and semi, and for --select dev."""

import builtins
import gzip
from pathlib import Path

import pytest
from conftest import SHIPPED, SMALL, TOY, digest, run, stage_files, without_evaluation

import train
from common.files import read_json, read_jsonl, write_jsonl
from tasks.task import unlabeled
from vote import extract_answer

LABEL_FREE = [
    ["--method", "scpo"],
    ["--method", "lmsi"],
    ["--method", "reward"],
    ["--method", "coin"],
    ["--select", "votes"],
    ["--unweighted"],
]


def with_answer(rows: list[dict], answer: str) -> list[dict]:
    return [{**row, "answer": answer} for row in rows]


def test_answers_of_training_and_test_problems_are_not_read_in_two_rounds(finished, tmp_path):
    """Problems with answers, which are garbage, where the toy task ships none."""
    for name in ("train", "test"):
        rows = []
        for i, row in enumerate(read_jsonl(TOY / f"{name}.jsonl")):
            rows.append({**row, "answer": f"garbage\n#### {i}"})
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    given = ["--problems", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl"]
    run(train, *SMALL, *given, "--out", tmp_path / "run")
    ours, theirs = stage_files(tmp_path / "run"), stage_files(finished)
    assert without_evaluation(ours) == without_evaluation(theirs)
    assert read_json(tmp_path / "run/results.json")["M0"]["greedy"] == 0


@pytest.mark.parametrize("how", LABEL_FREE, ids=" ".join)
def test_the_files_of_answers_are_not_even_opened(tmp_path, monkeypatch, how):
    """Without an evaluation and without a problem to compare with those of the test."""
    opened = set()

    def spy(real):
        def open_and_tell(path, *args, **kwargs):
            if not isinstance(path, int):
                opened.add(Path(path).resolve())
            return real(path, *args, **kwargs)
        return open_and_tell

    last = "M1/model" if "--select" in how else "M1/pairs"
    small = [*SMALL, *how, "--limit", "8", "--until", last, "--test", ""]
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", spy(open))
        patch.setattr(gzip, "open", spy(gzip.open))
        run(train, *small, "--out", tmp_path / "run")
    assert TOY / "train.jsonl" in opened
    assert not opened & {TOY / "train-answers.jsonl", TOY / "test.jsonl"}


def test_the_training_problems_of_the_toy_task_have_no_answers():
    train_, answers = read_jsonl(TOY / "train.jsonl"), read_jsonl(TOY / "train-answers.jsonl")
    assert {name for row in train_ for name in row} == {"id", "question"}
    assert [unlabeled(row) for row in answers] == train_
    assert all(extract_answer(row["answer"], "toy") for row in answers)


# --------------------------------------------------------------------------------------------
# Every method on the same 24 problems, of which every other one has its answer

GOLD = {row["id"]: extract_answer(row["answer"], "toy") for row in read_jsonl(TOY / "dev.jsonl")}


@pytest.fixture(scope="module")
def half_labeled(tmp_path_factory) -> Path:
    path, rows = tmp_path_factory.mktemp("problems") / "half.jsonl", []
    for i, row in enumerate(read_jsonl(TOY / "dev.jsonl")[:24]):
        rows.append(row if i % 2 else unlabeled(row))
    write_jsonl(path, rows)
    return path


def how_of(name: str) -> list[str]:
    return ["--unweighted"] if name == "unweighted" else ["--method", name]


@pytest.fixture(scope="module")
def runs(half_labeled, tmp_path_factory) -> dict[str, Path]:
    """Round 1 by every method, and with w = 1: folders."""
    folder = tmp_path_factory.mktemp("methods")
    for name in ("scpo", "unweighted", "semi", "gold", "reward", "lmsi", "coin"):
        how = how_of(name)
        given = ["--problems", half_labeled, "--rounds", "1", "--no-eval"]
        run(train, *SMALL, *how, *given, "--out", folder / name)
    return {path.name: path for path in folder.iterdir()}


def pairs_of(folder: Path) -> list[dict]:
    return read_jsonl(folder / "M1/pairs.jsonl")


@pytest.mark.parametrize("name", ["scpo", "unweighted", "reward", "lmsi", "coin"])
def test_garbage_in_place_of_every_answer_changes_no_file_of_a_method_without_labels(
    runs, half_labeled, tmp_path, name
):
    """The answers of the problems, and those of the files of --answers, --dev and --test."""
    garbage = {"problems": with_answer(read_jsonl(half_labeled), "#### 7")}
    for file in ("train-answers", "dev", "test"):
        garbage[file] = with_answer(read_jsonl(TOY / f"{file}.jsonl")[:50], "#### 7")
    given = []
    for (file, rows), option in zip(garbage.items(), ("problems", "answers", "dev", "test")):
        write_jsonl(tmp_path / f"{file}.jsonl", rows)
        given += [f"--{option}", tmp_path / f"{file}.jsonl"]
    run(train, *SMALL, *how_of(name), *given, "--rounds", "1", "--out", tmp_path / "run")
    files = stage_files(tmp_path / "run")
    assert without_evaluation(files) == stage_files(runs[name])
    assert "M1/model/model.safetensors" in files
    assert read_json(tmp_path / "run/M0/eval.json")["greedy"] < 0.1


def test_all_methods_judge_the_same_responses_and_make_different_models(runs):
    for name in ("problems.jsonl", "responses.jsonl"):
        contents = {digest(folder / "M1" / name) for folder in runs.values()}
        assert len(contents) == 1
    weights = {digest(f / "M1/model/model.safetensors") for f in runs.values()}
    assert len(weights) == len(runs) == 7


def test_without_weights_the_pairs_are_the_same(runs):
    plain, weighted = pairs_of(runs["unweighted"]), pairs_of(runs["scpo"])
    assert {pair["weight"] for pair in plain} == {1.0} != {pair["weight"] for pair in weighted}
    same = [{**pair, "weight": None} for pair in plain]
    assert same == [{**pair, "weight": None} for pair in weighted]


def test_gold_takes_labeled_problems_alone(runs, half_labeled):
    labeled = {row["id"] for row in read_jsonl(half_labeled) if "answer" in row}
    pairs = pairs_of(runs["gold"])
    assert pairs and {pair["id"] for pair in pairs} <= labeled
    for pair in pairs:
        assert pair["answer_chosen"] == GOLD[pair["id"]] != pair["answer_rejected"]
        assert pair["weight"] == 1.0


def test_semi_takes_gold_where_there_is_one_and_votes_elsewhere(runs, half_labeled):
    labeled = {row["id"] for row in read_jsonl(half_labeled) if "answer" in row}
    gold, semi, votes = (pairs_of(runs[name]) for name in ("gold", "semi", "scpo"))
    voted = [pair for pair in votes if pair["id"] not in labeled]
    assert voted and [pair for pair in semi if pair["id"] not in labeled] == voted
    assert [pair for pair in semi if pair["id"] in labeled] == gold


@pytest.mark.parametrize("method", ["gold", "semi"])
def test_gold_and_semi_find_the_toy_tasks_own_answers(finished, tmp_path, method):
    """The defaults alone: train.jsonl has none, train-answers.jsonl has those of all."""
    golds = {}
    for row in read_jsonl(TOY / "train-answers.jsonl"):
        golds[row["id"]] = extract_answer(row["answer"], "toy")
    small = ["--method", method, "--until", "M1/pairs", "--no-eval"]
    run(train, *SMALL, *small, "--out", tmp_path / "run")
    pairs = pairs_of(tmp_path / "run")
    assert len(pairs) > 4
    for pair in pairs:
        assert pair["answer_chosen"] == golds[pair["id"]] != pair["answer_rejected"]
    responses = digest(tmp_path / "run/M1/responses.jsonl")
    assert responses == digest(finished / "M1/responses.jsonl")


def test_a_written_problem_has_no_answer_so_semi_votes_and_gold_skips_it(tmp_path):
    small = [*SMALL, "--limit", "12", "--rounds", "1", "--new-problems", "8", "--no-eval"]
    written = {}
    for method in ("gold", "semi"):
        run(train, *small, "--method", method, "--until", "M1/pairs", "--out", tmp_path / method)
        pairs = pairs_of(tmp_path / method)
        written[method] = [pair["weight"] for pair in pairs if pair["id"].startswith("M1-new")]
    assert written["gold"] == []
    assert written["semi"] and min(written["semi"]) < 1.0


def test_an_answer_of_the_problem_itself_counts_before_that_of_answers(half_labeled, tmp_path):
    """--answers has 7 for all: no response to the labeled half is judged by it."""
    write_jsonl(tmp_path / "a.jsonl", with_answer(read_jsonl(half_labeled), "#### 7"))
    given = ["--problems", half_labeled, "--answers", tmp_path / "a.jsonl", "--no-eval"]
    run(train, *SMALL, "--method", "gold", *given, "--until", "M1/pairs", "--out", tmp_path / "run")
    labeled = {row["id"] for row in read_jsonl(half_labeled) if "answer" in row}
    pairs = pairs_of(tmp_path / "run")
    assert {pair["id"] for pair in pairs} & labeled
    for pair in pairs:
        gold = GOLD[pair["id"]] if pair["id"] in labeled else "7"
        assert pair["answer_chosen"] == gold


def test_reward_takes_the_highest_against_the_lowest(runs):
    pairs, folder = pairs_of(runs["reward"]), runs["reward"] / "M1"
    rewards = {row["id"]: row["rewards"] for row in read_jsonl(folder / "rewards.jsonl")}
    responses = read_jsonl(folder / "responses.jsonl")
    assert set(rewards) == {row["id"] for row in responses} and len(pairs) == len(responses)
    for pair in pairs:
        scores = rewards[pair["id"]]
        assert len(scores) == 4 and pair["weight"] == 1.0
        assert scores[pair["sample_chosen"]] == max(scores)
        assert scores[pair["sample_rejected"]] == min(scores)


def test_lmsi_rejects_nothing_and_its_loss_is_the_nll(runs):
    """Its pairs are the vote's winners, those of unanimous problems too."""
    pairs = pairs_of(runs["lmsi"])
    assert len(pairs) > len(pairs_of(runs["scpo"]))
    for pair in pairs:
        assert pair["rejected"] is None and "votes_rejected" not in pair
        assert pair["votes_chosen"] >= 2 and pair["weight"] == 1.0
    for step in read_jsonl(runs["lmsi"] / "M1/log.jsonl"):
        assert step["loss"] == step["nll"] and "margin" not in step
    assert not (runs["lmsi"] / "M1/reference.jsonl").exists()  # there is nothing to compare with


def test_coin_takes_the_pairs_of_the_vote_and_turns_some_around(runs):
    turned = 0
    for ours, theirs in zip(pairs_of(runs["coin"]), pairs_of(runs["scpo"]), strict=True):
        assert (ours["id"], ours["weight"]) == (theirs["id"], theirs["weight"])
        if ours["chosen"] == theirs["chosen"]:
            assert ours == theirs
            continue
        turned += 1
        assert ours["chosen"] == theirs["rejected"] and ours["rejected"] == theirs["chosen"]
        for field in ("votes", "answer", "sample", "ended", "ids"):
            assert ours[f"{field}_chosen"] == theirs[f"{field}_rejected"]
            assert ours[f"{field}_rejected"] == theirs[f"{field}_chosen"]
    assert 0 < turned < len(pairs_of(runs["scpo"]))


# --------------------------------------------------------------------------------------------
# What a method asks for must be there


@pytest.mark.parametrize("argv, needle", [
    (["--method", "gold", "--problems", TOY / "train.jsonl", "--answers", ""],
     "--method gold: not one of the problems has an answer"),
    (["--method", "semi", "--answers", ""],
     "--method semi: not one of the problems has an answer"),
    (["--method", "semi", "--answers", TOY / "dev.jsonl"],
     "--method semi: not one of the problems has an answer"),  # of other problems
    (["--method", "gold", "--answers", "/no/such/file"], "/no/such/file: no such file"),
    (["--method", "vibes"], "choose from 'scpo', 'semi'"),
    (["--select", "best"], "choose from 'last'"),
    (["--method", "reward", "--reward-model", SHIPPED], "num_objectives"),
    (["--method", "reward", "--reward-model", "/no/such/folder"], "--reward-model"),
    (["--writer", "/no/such/folder"], "--writer"),
    (["--dev", "/no/such/file"], "no such file"),
    (["--select", "dev", "--dev", TOY / "train.jsonl"],
     "--select dev: not one of the problems has an answer"),
])
def test_what_is_asked_for_must_be_there_before_any_work(tmp_path, error_of, argv, needle):
    message = error_of(train, *SMALL, "--limit", "6", *argv, "--out", tmp_path / "run")
    assert needle in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv, needle", [
    (["--select", "votes"], "--select votes: needs --dev"),
    (["--select", "dev"], "--select dev: needs --dev"),
    (["--method", "reward"], "--method reward: needs --reward-model"),
])
def test_tasks_that_ship_neither_ask_for_them(tmp_path, error_of, argv, needle):
    given = ["--task", "gsm8k", "--model", SHIPPED, "--problems", TOY / "dev.jsonl"]
    assert needle in error_of(train, *given, *argv, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()
