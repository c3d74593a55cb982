"""NaN and infinity end a run in one line, before they reach a file; what was finished stays."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import SHIPPED, SMALL, digest, run, stage_files
from safetensors.torch import load_file, save_file

import eval as evaluation
import sample
import train
from common.cli import InputError
from common.files import read_jsonl

NAN, INF = float("nan"), float("inf")
ROUND = [*SMALL, "--rounds", "1", "--limit", "20", "--epochs", "2", "--no-eval"]  # four steps


@pytest.fixture(scope="module")
def sampled(tmp_path_factory) -> Path:
    """A run whose pairs are made."""
    folder = tmp_path_factory.mktemp("runs") / "sampled"
    run(train, *ROUND, "--until", "M1/pairs", "--out", folder)
    return folder


@pytest.fixture
def folder(sampled, tmp_path) -> Path:
    shutil.copytree(sampled, tmp_path / "run")
    return tmp_path / "run"


def copy_of_shipped(folder: Path, **values: float) -> Path:
    """The toy model; in the named tensors (with _ for .) one number is another."""
    shutil.copytree(SHIPPED, folder)
    weights = load_file(folder / "model.safetensors")
    for name, value in values.items():
        weights[name.replace("_", ".")].view(-1)[-1] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --------------------------------------------------------------------------------------------
# While it trains


@pytest.mark.parametrize("name, value", [("loss", NAN), ("loss", INF), ("grad_norm", NAN)])
def test_a_step_that_is_not_finite_is_not_made(folder, monkeypatch, error_of, name, value):
    """In the third step; the checkpoint of the second is whole, and a later start goes on."""
    forward_backward, steps = train.forward_backward, []

    def poisoned(model, batch, args):
        metrics = forward_backward(model, batch, args)
        steps.append(batch)
        if len(steps) == 3 and name == "loss":
            metrics["loss"] = value
        elif len(steps) == 3:
            model.model.norm.weight.grad[0] = value
        return metrics

    before = stage_files(folder)
    with monkeypatch.context() as patch:
        patch.setattr(train, "forward_backward", poisoned)
        message = error_of(train, *ROUND, "--save-every", "1", "--out", folder)
    checkpoint = folder / "M1/checkpoint-2"
    assert f"{folder / 'M1'}: step 2 of" in message and f"what is kept: {checkpoint}" in message
    assert f"{name} " in message and "lower --lr" in message
    for pair in steps[2]:
        assert pair.id in message
    after = stage_files(folder)
    assert {file: after[file] for file in before} == before
    assert not (folder / "M1/log.jsonl").exists() and not (folder / "M1/model").exists()
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        for tensor in load_file(checkpoint / kind / "model.safetensors").values():
            assert tensor.isfinite().all()
    run(train, *ROUND, "--out", folder)
    assert len(read_jsonl(folder / "M1/log.jsonl")) == 4


def test_a_learning_rate_of_a_thousand_is_one_line(folder, error_of):
    before = stage_files(folder)
    message = error_of(train, *ROUND, "--lr", "1e3", "--out", folder)
    assert "is not finite" in message and "lower --lr" in message and "no checkpoint" in message
    after = stage_files(folder)
    assert {file: after[file] for file in before} == before


def test_log_probs_of_the_reference_are_finite(folder, monkeypatch, error_of):
    def broken(model, pairs):
        logps = torch.full((len(pairs),), -INF)
        return logps, logps

    monkeypatch.setattr(train, "pair_logps", broken)
    message = error_of(train, *ROUND, "--out", folder)
    first = read_jsonl(folder / "M1/pairs.jsonl")[0]["id"]
    assert f"pairs.jsonl, {first}: M0 gives it the log-probs -inf and -inf" in message
    assert not (folder / "M1/reference.jsonl").exists()


# --------------------------------------------------------------------------------------------
# Weights and logits


@pytest.mark.parametrize("script", [train, sample, evaluation], ids=["train", "sample", "eval"])
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_weights_that_are_not_finite_are_refused(tmp_path, error_of, script, value):
    model = copy_of_shipped(tmp_path / "model", model_norm_weight=value)
    message = error_of(script, "--model", model, "--out", tmp_path / "out")
    file = model / "model.safetensors"
    assert f"{file}: tensor model.norm.weight holds NaN or infinity" in message


@pytest.mark.parametrize("argv", [["--temperature", "0"], ["--temperature", "0.7"]], ids=str)
def test_logits_that_overflow_are_refused(tmp_path, error_of, argv):
    """Each weight is a number, their products are none."""
    model = copy_of_shipped(tmp_path / "model", model_norm_weight=3e38)
    message = error_of(sample, *argv, "--limit", "2", "--model", model, "--out", tmp_path / "out")
    assert f"{model}: its logits are NaN or infinite" in message
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("value", [NAN, INF, 1e36], ids=str)
def test_one_row_of_broken_logits_is_enough(value):
    """So is one number that a temperature of 0.001 would make infinite."""
    model, logits = sample.Llama.from_pretrained(SHIPPED), torch.zeros(3, 8)
    sample.check_finite(logits, model)
    logits[1, 5] = value
    with pytest.raises(InputError, match=f"{SHIPPED}: its logits are NaN or infinite"):
        sample.check_finite(logits, model)


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(folder, error_of, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(train, "summary", lambda log: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(train, *ROUND, "--save-every", "3", "--out", folder)
    file = folder / "M1/checkpoint-3/exp_avg/model.safetensors"
    moments = load_file(file)
    moments["model.norm.weight"][0] = NAN
    save_file(moments, file)
    before = digest(file)
    message = error_of(train, *ROUND, "--out", folder)
    assert f"{file}: tensor model.norm.weight holds NaN" in message and digest(file) == before


# --------------------------------------------------------------------------------------------
# Collapse


@pytest.mark.parametrize("rows, warned", [
    ([(["#### 4", "#### 4"], [True, True])] * 2, "has the answer 4"),
    ([(["#### 4", "no"], [True, True]), (["#### 4", "#### 4"], [True, True])], None),
    ([(["#### 4", "#### 4"], [True, True])], None),  # one problem may have one answer
    ([(["#### 4", "#### 5"], [False, False])] * 2, "every response was cut off"),
    ([(["#### 4", "#### 5"], [False, True])] * 2, None),
    ([(["no", "no"], [True, True])] * 2, "has the answer None"),
])
def test_a_collapsed_model_is_warned_of(capsys, rows, warned):
    lines = [{"responses": texts, "ended": ended} for texts, ended in rows]
    evaluation.warn_of_collapse(lines, "toy")
    shown = capsys.readouterr().out
    assert (warned in shown and shown.count("WARNING") == 1) if warned else shown == ""
