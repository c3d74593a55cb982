"""The loop: no label is read, a stopped run ends with the same files, any split of a batch gives the same gradient."""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import eval as evaluation
import sample
import scpo
import train
import vote
from model import Llama

ROOT = Path(__file__).parent.parent
TOY = ROOT / "tasks/toy"
STAGES = ["problems.jsonl", "responses.jsonl", "pairs.jsonl", "log.jsonl", "model"]
SMALL = ["--limit", "24", "--k", "4", "--tau", "0.5", "0.75", "--new-problems", "0", "12", "--epochs", "1",
         "--batch-size", "8", "--micro-batch", "4"]


def run(monkeypatch, script, *argv):
    """Run a script's main in this process, as its command line would."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, argv)])
    vote.run_script(script.main)


def stage_files(folder: Path) -> dict[str, bytes]:
    """Every file of a run but its options and what the evaluation wrote."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not p.name.startswith("eval") and p.name not in ("options.json", "results.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A small finished run of the shipped miniature."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        run(patch, train, *SMALL, "--out", folder)
    return folder


def test_run_folder_has_every_file_and_the_table(finished):
    for t in (1, 2):
        found = {p.name for p in (finished / f"M{t}").iterdir()}
        assert found == {*STAGES, "eval_responses.jsonl", "eval.json"}
    results = json.loads((finished / "results.json").read_text())
    assert list(results) == ["M0", "M1", "M2"]
    for name, entry in results.items():
        assert entry["problems"] == 24 and entry["k"] == 4 and 0 <= entry["greedy"] <= 1 and entry["seconds"] > 0
        assert entry.items() >= json.loads((finished / name / "eval.json").read_text()).items()
    problems = vote.read_jsonl(finished / "M2/problems.jsonl")
    assert len(problems) > 24 and all(set(p) == {"id", "question"} for p in problems)
    for row in vote.read_jsonl(finished / "M1/pairs.jsonl"):
        assert {"id", "prompt", "chosen", "rejected", "weight", "votes_chosen", "votes_rejected", "k",
                "reference_chosen_logp", "reference_rejected_logp"} <= set(row)
        assert row["weight"] == (row["votes_chosen"] - row["votes_rejected"]) / row["k"] > 0
        assert row["votes_chosen"] >= 2 and row["reference_chosen_logp"] < 0 and row["ended_chosen"]
    assert min(row["votes_chosen"] for row in vote.read_jsonl(finished / "M1/pairs.jsonl")) == 2
    assert min(row["votes_chosen"] for row in vote.read_jsonl(finished / "M2/pairs.jsonl")) >= 3  # its own τ
    for t in (1, 2):
        steps, pairs = (vote.read_jsonl(finished / f"M{t}/{name}.jsonl") for name in ("log", "pairs"))
        assert steps[0]["margin"] == pytest.approx(0, abs=1e-4)  # θ starts at the reference, M_{t-1}
        assert sum(step["pairs"] for step in steps) == len(pairs)  # each pair once an epoch, the last batch smaller


def test_the_model_moved_and_is_a_checkpoint_folder_like_any_other(finished):
    before, after = (Llama.from_pretrained(f).state_dict() for f in (TOY / "model", finished / "M1/model"))
    assert all(not torch.equal(before[name], after[name]) for name in before)
    sample.Text(finished / "M1/model")
    assert {p.name for p in (TOY / "model").iterdir()} == {p.name for p in (finished / "M1/model").iterdir()}


@pytest.mark.parametrize("how", [["--supervision", s] for s in ("lmsi", "reward", "coin")] + [
    ["--choose", "votes"], ["--no-weight"]], ids=" ".join)
def test_no_other_way_without_labels_reads_one(how, tmp_path, monkeypatch):
    labelled = vote.read_jsonl(TOY / "dev.jsonl")[:12]
    files = []
    for name, rows in (("true", labelled), ("garbage", [row | {"answer": "#### 7"} for row in labelled])):
        vote.write_jsonl(tmp_path / f"{name}.jsonl", rows)
        run(monkeypatch, train, *SMALL, *how, "--rounds", "1", "--problems", tmp_path / f"{name}.jsonl", "--dev",
            tmp_path / f"{name}.jsonl", "--test", tmp_path / f"{name}.jsonl", "--out", tmp_path / name)
        files.append(stage_files(tmp_path / name))
    assert files[0] == files[1] and "M1/model/model.safetensors" in files[0]


def test_no_label_is_read(finished, tmp_path, monkeypatch):
    """Garbage in place of every answer, training and test: all files but the evaluation's are byte-identical."""
    for name in ("train", "test"):
        vote.write_jsonl(tmp_path / f"{name}.jsonl", [
            {"id": f"{name}-{i}", **row, "answer": f"garbage\n#### {i}"}
            for i, row in enumerate(vote.read_jsonl(TOY / f"{name}.jsonl"))])
    run(monkeypatch, train, *SMALL, "--problems", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl",
        "--out", tmp_path / "run")
    assert stage_files(tmp_path / "run") == stage_files(finished)
    assert json.loads((tmp_path / "run/results.json").read_text())["M0"]["greedy"] == 0


@pytest.mark.parametrize("lost", [*STAGES, "eval.json"])
def test_stopped_in_a_stage_and_started_again(finished, tmp_path, monkeypatch, lost):
    """Everything from stage `lost` of round 2 on is missing, and half-written files lie about."""
    order = [*STAGES, "eval_responses.jsonl", "eval.json"]
    again = tmp_path / "run"
    shutil.copytree(finished, again)
    for name in order[order.index(lost):]:
        path = again / "M2" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if path.suffix:
            path.with_name(name + ".part").write_text('{"half')
    if lost == "log.jsonl":  # an epoch was saved, and then it stopped
        shutil.copytree(finished / "M2/model", again / "M2/epochs/1")
    if lost != "eval.json":
        (again / "M2/epochs/1.part").mkdir(parents=True)
        (again / "M2/epochs/1.part/model.safetensors").write_bytes(b"half")
    run(monkeypatch, train, *SMALL, "--out", again)
    whole, now = stage_files(finished), stage_files(again)
    assert {n: b for n, b in now.items() if not n.endswith(".part")} == whole
    assert (again / "M2/eval.json").read_bytes() == (finished / "M2/eval.json").read_bytes()


def test_kill_minus_nine_while_sampling(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "train.py", *SMALL, "--out", folder], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (folder / "M1/problems.jsonl").exists() and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "M1/problems.jsonl").exists() and not (folder / "M2/model").exists()
    run(monkeypatch, train, *SMALL, "--out", folder)
    assert stage_files(folder) == stage_files(finished)


def test_a_finished_run_does_nothing_again(finished, monkeypatch, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    run(monkeypatch, train, *SMALL, "--out", finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before
    assert "M2" in capsys.readouterr().out  # the table is shown all the same


# --- optimisation


@pytest.fixture(scope="module")
def encoded(finished):
    text = sample.Text(TOY / "model")
    rows = vote.read_jsonl(finished / "M1/pairs.jsonl") + vote.read_jsonl(finished / "M2/pairs.jsonl")
    assert len(rows) >= 4
    return [train.encode(row, text) for row in rows[:4]]


def options(**changes) -> train.Options:
    return train.complete(train.Options(**changes), sample.Task.load("toy"))


def test_accumulation_one_by_four_equals_four_by_one(encoded):
    gradients, gauges = [], []
    for micro in (1, 2, 3, 4):
        model = Llama.from_pretrained(TOY / "model")
        gauges.append(scpo.accumulate(model, encoded, micro_batch=micro, beta=0.5, alpha=5.0))
        gradients.append([p.grad for p in model.parameters()])
    for other, gauge in zip(gradients[1:], gauges[1:]):
        for a, b in zip(gradients[0], other):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        assert gauge == pytest.approx(gauges[0], rel=1e-4, abs=1e-5)


def test_log_probs_of_pairs_are_sums_over_the_response_alone(encoded):
    model = Llama.from_pretrained(TOY / "model")
    sequences = [e["chosen"] for e in encoded] + [e["rejected"] for e in encoded]
    with torch.no_grad():
        batched = torch.cat(scpo.pair_logps(model, encoded))
        for (prompt, response), logp in zip(sequences, batched):
            logits = model(torch.tensor([prompt + response]))[0].double().log_softmax(-1)
            expected = sum(logits[len(prompt) + i - 1, token] for i, token in enumerate(response))
            assert logp.item() == pytest.approx(expected.item(), abs=1e-3)
            assert response[-1] == sample.Text(TOY / "model").eos


def test_learning_rate_rises_then_falls_along_a_cosine():
    rates = [scpo.learning_rate(s, 20, 0.1, 1.0) for s in range(20)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0]) and rates[11] == pytest.approx(0.5) and 0 < rates[-1] < 0.01
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert scpo.learning_rate(0, 1, 0.0, 1.0) == 1.0


@pytest.mark.parametrize("change", [{"beta": 0.1}, {"alpha": 0.0}, {"lr": 1e-3}, {"epochs": 2}, {"batch_size": 4},
                                    {"clip": 0.01}, {"warmup": 0.9}, {"seed": 1}, {"dtype": "bfloat16"}])
def test_every_training_option_acts(finished, change, tmp_path):
    """Each changes the weights that optimise() arrives at, and its log says so where it has a column."""
    pairs, text = vote.read_jsonl(finished / "M2/pairs.jsonl")[:8], sample.Text(TOY / "model")

    def trained(**values):
        model = Llama.from_pretrained(TOY / "model")
        train.optimise(model, text, pairs, options(**{"epochs": 1, "batch_size": 3, **values}), 1, tmp_path, print)
        return model.model.norm.weight.detach()

    assert not torch.equal(trained(), trained(**change)) and torch.equal(trained(), trained())


def test_per_round_options_repeat_their_last_value():
    assert [train.per_round((0.5, 0.7), t) for t in (1, 2, 3)] == [0.5, 0.7, 0.7]
    assert train.per_round((1,), 5) == 1


def test_extra_responses_are_drawn_for_unanimous_problems_alone(finished):
    rows = [r for t in (1, 2) for r in vote.read_jsonl(finished / f"M{t}/responses.jsonl")]
    answers = [vote.response_answers(r, "toy") for r in rows]
    assert any("extra_responses" in r for r in rows) and any("extra_responses" not in r for r in rows)
    for row, a in zip(rows, answers):
        assert ("extra_responses" in row) == (len(set(a)) == 1 and a[0] is not None)
        assert len(row.get("extra_responses", range(8))) == 8


# --- mistakes


@pytest.mark.parametrize("argv, needle", [
    (["--task", "nope"], "there are gsm8k, math, toy"),
    (["--lr", "inf"], "--lr"),
    (["--task", "gsm8k"], "--problems"),
    (["--task", "gsm8k", "--problems", TOY / "train.jsonl"], "--model"),
    (["--model", "/no/such/folder"], "no such folder"),
    (["--model", TOY], "tokenizer.json"),
    (["--problems", "/no/such/file.jsonl"], "no such file"),
    (["--problems", TOY / "task.json"], "line 1"),
    (["--k", "1"], "--k 1"),
    (["--tau", "1.5"], "--tau"),
    (["--tau", "0"], "--tau"),
    (["--lr", "-1"], "--lr"),
    (["--temperature", "0"], "--temperature"),
    (["--batch-size", "0"], "--batch-size"),
    (["--clip", "0"], "--clip"),
    (["--extra-temperature", "-1"], "--extra-temperature"),
    (["--limit", "0"], "--limit 0"),
    (["--top-p", "0"], "--top-p"),
    (["--device", "warp"], "--device warp"),
    (["--dtype", "int3"], "--dtype int3"),
    (["--chat", "klingon"], "--chat klingon"),
    (["--max-new-tokens", "1", "--limit", "3"], "no pair left"),
    (["--max-new-tokens", "100000", "--limit", "3"], "--max-new-tokens"),
])
def test_a_mistake_gets_one_line_and_exit_code_2(argv, needle, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, train, *argv, "--out", tmp_path / "run")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2 and message.startswith("error: ") and needle in message
    assert not list(tmp_path.rglob("*.part"))


def test_other_options_for_a_begun_run_are_refused(finished, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, train, *SMALL, "--beta", "0.25", "--out", finished)
    assert exit_.value.code == 2 and "beta was" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_leaves_no_half_file(tmp_path, monkeypatch, capsys):
    def full(descriptor):
        if next((tmp_path / "run").rglob("problems.jsonl.part"), None):
            raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(vote.os, "fsync", full)
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, train, *SMALL, "--limit", "4", "--out", tmp_path / "run")
    assert exit_.value.code == 2 and "No space left" in capsys.readouterr().err
    assert (tmp_path / "run/M0/eval.json").exists() and not list((tmp_path / "run/M1").iterdir())


def test_a_mistake_does_not_lock_the_run_folder_and_a_file_is_no_folder(tmp_path, monkeypatch, capsys):
    for argv in (["--device", "warp"], ["--dtype", "int3"], ["--model", "/no/such/folder"]):
        with pytest.raises(SystemExit):
            run(monkeypatch, train, *SMALL, *argv, "--out", tmp_path / "run")
        assert argv[0] in capsys.readouterr().err
    run(monkeypatch, train, *SMALL, "--limit", "8", "--rounds", "1", "--new-problems", "0", "--out", tmp_path / "run")
    with pytest.raises(SystemExit):
        run(monkeypatch, train, *SMALL, "--out", tmp_path / "run/options.json")
    assert "is a file" in capsys.readouterr().err


def test_options_of_the_machine_may_change_and_more_rounds_may_follow(finished, tmp_path, monkeypatch):
    """One round, moved elsewhere, goes on to two with other batch shapes: the same samples and pairs."""
    run(monkeypatch, train, *SMALL, "--rounds", "1", "--out", tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    run(monkeypatch, train, *SMALL, "--rounds", "2", "--rows", "7", "--out", tmp_path / "b")
    for name in ("problems.jsonl", "responses.jsonl"):
        assert (tmp_path / "b/M2" / name).read_bytes() == (finished / "M2" / name).read_bytes()


def test_killed_between_the_model_and_the_evaluation(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run/M2/eval.json", tmp_path / "run/M2/eval_responses.jsonl"):
        path.unlink()
    results = json.loads((tmp_path / "run/results.json").read_text())
    results["M2"] = {"pairs": results["M2"]["pairs"], "seconds": 1.0}
    (tmp_path / "run/results.json").write_text(json.dumps(results))
    run(monkeypatch, train, *SMALL, "--out", tmp_path / "run")
    now, before = (json.loads((f / "results.json").read_text())["M2"] for f in (tmp_path / "run", finished))
    assert {**now, "seconds": 0} == {**before, "seconds": 0}


GOLD = {row["id"]: vote.extract_answer(row["answer"], "toy") for row in vote.read_jsonl(TOY / "dev.jsonl")}


@pytest.fixture(scope="module")
def half_labelled(tmp_path_factory) -> Path:
    """24 problems, every other one with its answer."""
    path = tmp_path_factory.mktemp("problems") / "half.jsonl"
    rows = vote.read_jsonl(TOY / "dev.jsonl")[:24]
    vote.write_jsonl(path, [row if i % 2 else {k: row[k] for k in ("id", "question")} for i, row in enumerate(rows)])
    return path


@pytest.fixture(scope="module")
def judged(half_labelled, tmp_path_factory):
    """Round 1 under every supervision, and with w = 1: (pairs, responses, folder of the run) by option."""
    runs = {}
    for change in ("scpo", "no-weight", "semi", "gold", "reward", "lmsi", "coin"):
        folder = tmp_path_factory.mktemp(change) / "run"
        how = ["--no-weight"] if change == "no-weight" else ["--supervision", change]
        with pytest.MonkeyPatch.context() as patch:
            run(patch, train, *SMALL, *how, "--problems", half_labelled, "--rounds", "1", "--out", folder)
        runs[change] = *(vote.read_jsonl(folder / f"M1/{name}.jsonl") for name in ("pairs", "responses")), folder
    return runs


def test_all_supervisions_judge_the_same_responses(judged):
    assert len({(folder / "M1/responses.jsonl").read_bytes() for _, _, folder in judged.values()}) == 1
    assert len({(folder / "M1/problems.jsonl").read_bytes() for _, _, folder in judged.values()}) == 1
    weights = [(folder / "M1/model/model.safetensors").read_bytes() for _, _, folder in judged.values()]
    assert len(set(weights)) == len(weights)


def test_without_weights_the_pairs_are_the_same(judged):
    plain, weighted = judged["no-weight"][0], judged["scpo"][0]
    assert {pair["weight"] for pair in plain} == {1.0} != {pair["weight"] for pair in weighted}
    assert [pair | {"weight": 0} for pair in plain] == [pair | {"weight": 0} for pair in weighted]


def test_gold_takes_labelled_problems_alone_and_semi_adds_the_votes_on_the_others(judged, half_labelled):
    labelled = {row["id"] for row in vote.read_jsonl(half_labelled) if "answer" in row}
    gold, semi, votes = (judged[name][0] for name in ("gold", "semi", "scpo"))
    assert gold and {pair["id"] for pair in gold} <= labelled and {pair["weight"] for pair in gold} == {1.0}
    assert all(pair["answer_chosen"] == GOLD[pair["id"]] != pair["answer_rejected"] for pair in gold)
    voted = [pair for pair in votes if pair["id"] not in labelled]
    assert voted and [pair for pair in semi if pair["id"] not in labelled] == voted
    by_gold = [pair for pair in semi if pair["id"] in labelled]
    assert [pair["id"] for pair in by_gold] == [pair["id"] for pair in gold]


def test_reward_takes_the_highest_against_the_lowest(judged):
    pairs, responses, folder = judged["reward"]
    rewards = {row["id"]: row["rewards"] for row in vote.read_jsonl(folder / "M1/rewards.jsonl")}
    assert set(rewards) == {row["id"] for row in responses} and len(pairs) == len(responses)
    for pair in pairs:
        scores = rewards[pair["id"]]
        assert len(scores) == 4 and scores[pair["sample_chosen"]] == max(scores) and pair["weight"] == 1.0
        assert scores[pair["sample_rejected"]] == min(scores)


def test_lmsi_rejects_nothing_and_its_loss_is_the_nll(judged):
    pairs, _, folder = judged["lmsi"]
    assert {pair["rejected"] for pair in pairs} == {None} and len(pairs) > len(judged["scpo"][0])  # unanimous ones too
    assert all(pair["votes_chosen"] >= 2 for pair in pairs)
    log = vote.read_jsonl(folder / "M1/log.jsonl")
    assert all(step["loss"] == step["nll"] and "margin" not in step for step in log)


@pytest.mark.parametrize("argv, needle", [
    (["--supervision", "semi"], "no problem in"), (["--supervision", "gold"], "no problem in"),
    (["--supervision", "vibes"], "choose from scpo, semi"), (["--choose", "best"], "choose from last"),
    (["--supervision", "reward", "--reward-model", TOY / "model"], "num_objectives"),
    (["--supervision", "reward", "--reward-model", "/no/such/folder"], "--reward-model"),
    (["--writer", "/no/such/folder"], "--writer"), (["--dev", "/no/such/file"], "no such file"),
    (["--choose", "dev", "--dev", TOY / "train.jsonl"], "--choose dev: no problem in")])
def test_what_a_judge_or_a_choice_asks_for_must_be_there(argv, needle, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, train, *SMALL, "--limit", "6", *argv, "--out", tmp_path / "run")
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert exit_.value.code == 2 and message.startswith("error: ") and needle in message
    assert not (tmp_path / "run/M0").exists()  # before any work


def test_tasks_that_ship_neither_dev_nor_reward_model_ask_for_them(tmp_path):
    given = {"task": "gsm8k", "model": "M", "problems": "P"}
    for change, needle in (({"choose": "votes"}, "needs --dev"), ({"supervision": "reward"}, "needs --reward-model")):
        with pytest.raises(vote.InputError, match=needle):
            train.complete(train.Options(**given, **change), sample.Task.load("gsm8k"))


def test_another_model_may_write_the_problems(tmp_path, monkeypatch):
    """The writer's problems are those it would write itself, whoever answers them."""
    small = [*SMALL, "--new-problems", "6", "--rounds", "1", "--limit", "8"]
    run(monkeypatch, train, *small, "--lr", "1e-3", "--out", tmp_path / "other")  # a model unlike M0
    other = tmp_path / "other/M1/model"
    run(monkeypatch, train, *small, "--writer", TOY / "model", "--model", other, "--out", tmp_path / "a")
    run(monkeypatch, train, *small, "--model", other, "--out", tmp_path / "b")
    written = [[row["question"] for row in vote.read_jsonl(tmp_path / name / "M1/problems.jsonl")[8:]]
               for name in ("other", "a", "b")]
    assert written[0] == written[1] != written[2] and len(written[0]) > 2


# --- which epoch


def test_best_epoch_by_labels_and_by_votes():
    by_labels = [{"epoch": e, "greedy": g} for e, g in ((1, 0.3), (2, 0.5), (3, 0.5), (4, 0.1))]
    assert train.best_epoch(by_labels, "dev") == 2  # of two equals the earlier
    by_votes = lambda *rows: train.best_epoch([{"epoch": e, "vote_share": share, "different_answers": different}
                                               for e, (share, different) in enumerate(rows)], "votes")
    assert by_votes((0.99, 40), (0.6, 38), (0.7, 20), (1.0, 19)) == 2  # 3 has collapsed; M_{t-1} is no candidate
    assert by_votes((0.5, 40), (0.9, 3), (1.0, 1)) == 1


def test_the_epoch_is_chosen_and_only_labels_need_labels(tmp_path, monkeypatch):
    """Garbage answers leave the choice by votes alone; the kept model is the epoch's, the others are gone."""
    garbage = tmp_path / "garbage.jsonl"
    vote.write_jsonl(garbage, [row | {"answer": "#### 7"} for row in vote.read_jsonl(TOY / "dev.jsonl")])
    small = [*SMALL, "--rounds", "1", "--epochs", "3", "--lr", "2e-3", "--limit", "16"]
    for name, how in (("last", []), ("votes", ["--choose", "votes"]), ("dev", ["--choose", "dev"]),
                      ("garbage", ["--choose", "votes", "--dev", garbage])):
        run(monkeypatch, train, *small, *how, "--out", tmp_path / name)
        assert not (tmp_path / name / "M1/epochs").exists() and (tmp_path / name / "M1/model").exists()
    assert stage_files(tmp_path / "votes") == stage_files(tmp_path / "garbage")
    scores = {name: vote.read_jsonl(tmp_path / name / "M1/epochs.jsonl") for name in ("votes", "dev")}
    assert [row["epoch"] for row in scores["dev"]] == [1, 2, 3] and scores["dev"][0]["greedy"] > 0
    assert [row["epoch"] for row in scores["votes"]] == [0, 1, 2, 3] and 0 < scores["votes"][0]["vote_share"] < 1
    log = vote.read_jsonl(tmp_path / "last/M1/log.jsonl")
    assert log == vote.read_jsonl(tmp_path / "votes/M1/log.jsonl")  # the choice comes after the training
    for name in ("votes", "dev"):
        same = [(tmp_path / n / "M1/model/model.safetensors").read_bytes() for n in (name, "last")]
        assert (same[0] == same[1]) == (train.best_epoch(scores[name], name) == 3)


@pytest.mark.parametrize("stage", ["best_epoch", "score_epoch", "make_pairs"])
def test_stopped_between_the_stages_that_not_every_run_has(stage, tmp_path, monkeypatch):
    small = [*SMALL, "--rounds", "1", "--epochs", "2", "--choose", "votes", "--supervision", "reward", "--limit", "12"]
    with monkeypatch.context() as patch:
        patch.setattr(train, stage, lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(patch, train, *small, "--out", tmp_path / "stopped")
    assert (tmp_path / "stopped/M1/rewards.jsonl").exists() and not (tmp_path / "stopped/M1/model").exists()
    for name in ("stopped", "whole"):
        run(monkeypatch, train, *small, "--out", tmp_path / name)
    assert stage_files(tmp_path / "stopped") == stage_files(tmp_path / "whole")
    assert not (tmp_path / "whole/M1/epochs").exists() and (tmp_path / "whole/M1/epochs.jsonl").exists()


def test_extra_responses_can_be_switched_off(tmp_path, monkeypatch):
    run(monkeypatch, train, *SMALL, "--extra", "0", "--rounds", "1", "--limit", "12", "--out", tmp_path / "run")
    assert not any("extra_responses" in row for row in vote.read_jsonl(tmp_path / "run/M1/responses.jsonl"))


def test_a_cut_off_response_is_trained_without_eos(encoded):
    text = sample.Text(TOY / "model")
    row = {"prompt": "Q:", "chosen": " 3", "rejected": " 4", "ended_chosen": True, "ended_rejected": False}
    pair = train.encode(row, text)
    assert pair["chosen"][1][-1] == text.eos and text.eos not in pair["rejected"][1]


# --- the other scripts


@pytest.mark.parametrize("script", [train, sample, evaluation, vote])
def test_help_names_every_option_with_its_reason(script, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, script, "--help")
    shown = "".join(capsys.readouterr().out.split())  # argparse wraps lines anywhere
    assert exit_.value.code == 0
    for f in fields(script.Options):
        assert f"--{f.name.replace('_', '-')}" in shown or script is vote and f.name == "responses"
        assert "".join(f.metadata["help"].split()) in shown


def test_sample_script_writes_responses_once(tmp_path, monkeypatch, capsys):
    argv = ["--limit", "3", "--k", "2", "--out", tmp_path / "r.jsonl"]
    run(monkeypatch, sample, *argv)
    rows = vote.read_jsonl(tmp_path / "r.jsonl")
    assert [len(r["responses"]) for r in rows] == [2, 2, 2] and "3 problems" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, sample, *argv)
    assert "exists already" in capsys.readouterr().err


def test_eval_script_scores_a_model_and_a_file_alike(tmp_path, monkeypatch, capsys):
    run(monkeypatch, evaluation, "--limit", "6", "--k", "4", "--out", tmp_path / "r.jsonl")
    of_model = json.loads(capsys.readouterr().out.splitlines()[-1])
    run(monkeypatch, evaluation, "--responses", tmp_path / "r.jsonl", "--against", tmp_path / "r.jsonl")
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == of_model and "+0.0 points" in lines[-2] and of_model["problems"] == 6


@pytest.mark.parametrize("row, needle", [
    ({"responses": []}, "line 1: `responses`"), ({"responses": "#### 4"}, "line 1: `responses`"),
    ({"responses": [4]}, "line 1: `responses`"), ({"responses": ["a"], "ended": [True, False]}, "line 1: `ended`"),
    ({"responses": ["a"], "greedy": None}, "line 1: `greedy`"), ({"responses": ["a"], "id": [1]}, "line 1: `id`"),
    ({"responses": ["a"], "ended": ["false"]}, "line 1: `ended`"), ({"answers": ["a"]}, "'responses'")])
@pytest.mark.parametrize("script", [evaluation, vote])
def test_an_untidy_responses_file_is_refused_by_line(script, row, needle, tmp_path, monkeypatch, capsys):
    vote.write_jsonl(tmp_path / "r.jsonl", [row])
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, script, *(["--responses"] if script is evaluation else []), tmp_path / "r.jsonl")
    assert exit_.value.code == 2 and needle in capsys.readouterr().err


def test_files_made_elsewhere_are_compared_where_they_can_be(tmp_path, monkeypatch, capsys):
    """No greedy response, no ids, one row without gold."""
    vote.write_jsonl(tmp_path / "a.jsonl", [{"responses": ["#### 4"], "gold": "4"}, {"responses": ["#### 5"]}])
    vote.write_jsonl(tmp_path / "b.jsonl", [{"responses": ["#### 5"], "gold": "4"}, {"responses": ["#### 5"]}])
    run(monkeypatch, evaluation, "--responses", tmp_path / "a.jsonl", "--against", tmp_path / "b.jsonl")
    shown = capsys.readouterr().out
    assert "self_consistency minus" in shown and "+100.0 points" in shown and "greedy minus" not in shown


@pytest.mark.parametrize("script", [evaluation, sample])
@pytest.mark.parametrize("argv, needle", [
    (["--top-p", "0"], "--top-p 0"), (["--max-new-tokens", "0"], "--max-new-tokens 0"), (["--k", "0"], "--k 0"),
    (["--temperature", "-1"], "--temperature"), (["--rows", "0"], "--rows"), (["--seed", "-1"], "--seed"),
    (["--limit", "0"], "--limit 0"), (["--chat", "klingon"], "--chat"), (["--out", TOY / "task.json" / "x"], "--out")])
def test_sampling_options_are_checked_before_the_work(script, argv, needle, monkeypatch, capsys):
    monkeypatch.setattr(sample, "answer_problems", None)
    with pytest.raises(SystemExit) as exit_:
        run(monkeypatch, script, *argv)
    assert exit_.value.code == 2 and needle in capsys.readouterr().err


def test_out_of_memory_names_what_to_lower(capsys):
    def hungry():
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")
    with pytest.raises(SystemExit) as exit_:
        vote.run_script(hungry)
    assert exit_.value.code == 2 and "--micro-batch" in capsys.readouterr().err


@pytest.mark.parametrize("change, needle", [
    ({"prompt": 3}, "`prompt`"), ({"stop": "x"}, "`stop`"), ({"odd": 1}, "`odd`"), ({"defaults": {}}, "no k, tau")])
def test_a_broken_task_is_named(change, needle, tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    raw = json.loads((TOY / "task.json").read_text()) | change
    (tmp_path / "toy/task.json").write_text(json.dumps(raw))
    monkeypatch.setattr(sample, "TASKS", tmp_path)
    with pytest.raises(vote.InputError, match="task.json") as error:
        sample.Task.load("toy")
    assert needle in str(error.value)
