"""Step 6: gradients, log-probs, learning rate, and what each option of training does.

Resuming is in test_resume.py, several ranks are in test_ranks.py.
"""

import re
from argparse import Namespace

import pytest
import torch
from conftest import SHIPPED, random_llama, tiny_config, train_args

import model as model_file
import train
from common.distributed import init_distributed
from common.files import read_jsonl
from common.packing import collate
from common.training import load_for_training, summary
from model import Llama, token_logps
from scpo import EncodedPair, encode_pair, pair_logps, sequences
from tasks.chat import ChatTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer(SHIPPED)


@pytest.fixture(scope="module")
def pairs(finished, tokenizer) -> list[EncodedPair]:
    """Eight pairs of round 2, with their reference."""
    encoded = []
    reference = read_jsonl(finished / "M2/reference.jsonl")[:8]
    for row, logps in zip(read_jsonl(finished / "M2/pairs.jsonl")[:8], reference, strict=True):
        pair = encode_pair(row, tokenizer)
        pair.reference_chosen_logp = logps["reference_chosen_logp"]
        pair.reference_rejected_logp = logps["reference_rejected_logp"]
        encoded.append(pair)
    return encoded


# --------------------------------------------------------------------------------------------
# The gradient of a batch


def test_any_split_into_micro_batches_gives_the_same_gradient(pairs):
    gradients, metrics = [], []
    for size in (1, 2, 3, 4):
        args = Namespace(micro_batch_size=size, beta=0.5, alpha=5.0)
        model = Llama.from_pretrained(SHIPPED)
        metrics.append(train.forward_backward(model, pairs[:4], args))
        gradients.append([p.grad for p in model.parameters()])
    for i in (1, 2, 3):
        assert metrics[i] == pytest.approx(metrics[0], rel=1e-4, abs=1e-5)
        for ours, theirs in zip(gradients[i], gradients[0]):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_loss(pairs):
    """Of the three pairs, however they lie in micro-batches of two: each counts a third."""
    args = Namespace(micro_batch_size=2, beta=0.5, alpha=5.0)
    model = Llama.from_pretrained(SHIPPED)
    metrics = train.forward_backward(model, pairs[:3], args)
    summed = [p.grad.clone() for p in model.parameters()]
    alone = []
    mean = [torch.zeros_like(gradient) for gradient in summed]
    for pair in pairs[:3]:
        model.zero_grad()
        alone.append(train.forward_backward(model, [pair], args)["loss"])
        for total, p in zip(mean, model.parameters()):
            total += p.grad / 3
    assert metrics["loss"] == pytest.approx(sum(alone) / 3, rel=1e-5)
    for ours, theirs in zip(summed, mean):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------
# Log-probs


@torch.no_grad()
def test_log_probs_of_pairs_are_sums_over_the_response_alone(pairs, tokenizer):
    """Its EOS included, and the padding of a batch without effect."""
    model = Llama.from_pretrained(SHIPPED)
    batched = torch.cat(pair_logps(model, pairs[:4]))
    for (prompt, response), logp in zip(sequences(pairs[:4]), batched, strict=True):
        logits = model(torch.tensor([prompt + response]))[0].double()
        logps = logits.log_softmax(-1)
        expected = 0.0
        for i, token in enumerate(response):
            expected += logps[len(prompt) + i - 1, token].item()
        assert logp.item() == pytest.approx(expected, abs=1e-3)
        assert response[-1] == tokenizer.eos_id


def test_the_reference_is_the_log_prob_of_the_model_before(finished, pairs):
    """For round 2 that is M1, not M0."""
    stored = [[pair.reference_chosen_logp for pair in pairs],
              [pair.reference_rejected_logp for pair in pairs]]
    with torch.no_grad():
        before = pair_logps(Llama.from_pretrained(finished / "M1/model"), pairs)
        first = pair_logps(Llama.from_pretrained(SHIPPED), pairs)
    for ours, theirs, other in zip(stored, before, first):
        torch.testing.assert_close(torch.tensor(ours), theirs, rtol=0, atol=1e-3)
        assert (torch.tensor(ours) - other).abs().max() > 0.1


def test_a_response_that_was_cut_off_is_trained_without_eos(tokenizer):
    row = {"id": 0, "prompt": "Q:", "chosen": " 3", "rejected": " 4", "weight": 1.0}
    pair = encode_pair({**row, "ended_chosen": True, "ended_rejected": False}, tokenizer)
    assert pair.chosen[-1] == tokenizer.eos_id
    assert tokenizer.eos_id not in pair.rejected


@pytest.mark.parametrize("tied", [False, True])
def test_packing_chunks_of_logits_and_checkpointing_change_no_gradient(tied, monkeypatch):
    """Each prompt is computed once for its two responses, and no padding is.

    Only response tokens are projected to the vocabulary, a chunk at a time.
    """
    model = random_llama(tiny_config(tie_word_embeddings=tied)).train()
    prompts = [[1, 2, 3], [8, 9], [3] * 9]
    responses = [[4, 5, 6, 7, 1], [10, 1], [11, 12, 13], [9], [], [4]]
    rows = list(zip(prompts * 2, responses, strict=True))  # two responses to each prompt
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0, -1.0])
    tokens, *masks = collate(rows)
    logits = model(tokens)  # the plain way, all at once
    expected = []
    for i, (prompt, response) in enumerate(rows):
        before = logits[i, len(prompt) - 1 : len(prompt) + len(response) - 1]
        expected.append(token_logps(before, torch.tensor(response, dtype=torch.long)).sum())
    expected = torch.stack(expected)
    wanted = torch.autograd.grad(expected @ weights, list(model.parameters()))

    compute_logits, shapes = model.compute_logits, []

    def spy(hidden):
        shapes.append(hidden.shape)
        return compute_logits(hidden)

    monkeypatch.setattr(model, "compute_logits", spy)
    widths = set()
    model.model.layers[0].register_forward_pre_hook(lambda _, args: widths.add(args[0].shape[:2]))
    for chunk, checkpointing in ((1024, False), (3, False), (4, True)):
        monkeypatch.setattr(model_file, "LOGITS_CHUNK", chunk)
        model.model.activation_checkpointing = checkpointing
        shapes.clear()
        logps = model.response_logps(tokens, *masks, n_prompts=3)
        torch.testing.assert_close(logps, expected)
        gradients = torch.autograd.grad(logps @ weights, list(model.parameters()))
        for ours, theirs in zip(gradients, wanted):
            torch.testing.assert_close(ours, theirs)
        for shape in shapes:
            assert len(shape) == 2 and shape[0] <= chunk  # (N, hidden_size), never (B, T, …)
        # the twelve response tokens, and, where they are several chunks, again in the backward pass
        assert sum(shape[0] for shape in shapes) == (12 if chunk >= 12 else 2 * 12)
    assert widths == {(1, 3 + 2 + 9 + 12)}


# --------------------------------------------------------------------------------------------
# The optimizer


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    rates = [train.learning_rate(step, 20, 0.1, 1.0) for step in range(20)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert rates[11] == pytest.approx(0.5)  # half-way down
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01
    assert train.learning_rate(0, 1, 0.0, 1.0) == 1.0


def test_the_log_has_the_learning_rate_of_each_step(finished):
    """Two steps in round 1, one of them of warm-up; three in round 2."""
    for t, rates in ((1, [4e-4, 4e-4]), (2, [4e-4, 4e-4, 2e-4])):
        log = read_jsonl(finished / f"M{t}/log.jsonl")
        assert [step["lr"] for step in log] == pytest.approx(rates)


def trained(pairs: list[EncodedPair], folder, **changes) -> torch.Tensor:
    """A weight of the model that `optimize` arrives at."""
    args = train_args("--epochs", "1", "--batch-size", "3")
    vars(args).update(changes)
    init_distributed(torch.device("cpu"), getattr(torch, args.dtype))
    try:
        model, _ = load_for_training(SHIPPED, args)
        train.optimize(model, pairs, SHIPPED, folder, args, 1)
        weight = model.model.norm.weight.detach()
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def test_the_first_step_is_that_of_adamw_without_weight_decay(pairs, tmp_path, monkeypatch):
    """By hand: both moments are the gradient's own, so a weight moves by lr · g / (|g| + ε)."""
    options = []

    class Spy(torch.optim.AdamW):
        def __init__(self, *args, **kwargs):
            options.append(kwargs)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    args = train_args("--epochs", 1, "--batch-size", 8, "--lr", 1e-3, "--warmup-ratio", 0)
    model, _ = load_for_training(SHIPPED, args)
    train.optimize(model, pairs, SHIPPED, tmp_path, args, 1)
    assert [given["fused"] for given in options] == [False]  # one kernel on GPUs alone
    before = Llama.from_pretrained(SHIPPED)
    norm = torch.cat([p.grad.view(-1) for p in model.parameters()]).norm()
    assert norm == pytest.approx(1.0, abs=1e-3)  # clipped to --max-grad-norm
    for p, old in zip(model.parameters(), before.parameters()):
        expected = old - 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        torch.testing.assert_close(p, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("select, saved", [("last", [(2, 6)]), ("votes", [(1, 3), (2, 6)])])
def test_models_are_saved_after_an_epoch_and_checkpoints_by_save_every(
    pairs, tmp_path, monkeypatch, capsys, select, saved
):
    """Two epochs of three steps. The last model, or each to select one, is that of its step."""
    steps, models, checkpoints = [], [], []
    forward_backward, save_model = train.forward_backward, train.save_model

    def count(*args):
        steps.append(1)
        return forward_backward(*args)

    def save(model, source, folder):
        models.append((int(folder.name), len(steps)))
        save_model(model, source, folder)

    monkeypatch.setattr(train, "forward_backward", count)
    monkeypatch.setattr(train, "save_model", save)
    monkeypatch.setattr(train, "save_checkpoint", lambda *args: checkpoints.append(len(args[3])))
    args = train_args("--epochs", 2, "--batch-size", 3, "--save-every", 4, "--select", select)
    model, _ = load_for_training(SHIPPED, args)
    train.optimize(model, pairs, SHIPPED, tmp_path, args, 1)
    assert models == saved and checkpoints == [4]
    last = Llama.from_pretrained(tmp_path / "epochs/2")
    assert all(torch.equal(a, b) for a, b in zip(last.parameters(), model.parameters()))
    shown = re.search(r"M1 training: 6 steps; .*; (\d+) tokens/s", capsys.readouterr().out)
    assert int(shown[1]) > 0


@pytest.mark.parametrize("change", [
    {"beta": 0.1},
    {"alpha": 0.0},
    {"lr": 1e-3},
    {"epochs": 2},
    {"batch_size": 4},
    {"max_grad_norm": 0.01},
    {"warmup_ratio": 0.9},
    {"seed": 1},
    {"dtype": "bfloat16"},
], ids=lambda change: next(iter(change)))
def test_every_training_option_acts(pairs, tmp_path, change):
    """Each leads to other weights; without one, training is the same to the bit."""
    plain = trained(pairs, tmp_path / "a")
    assert torch.equal(trained(pairs, tmp_path / "b"), plain)
    assert not torch.equal(trained(pairs, tmp_path / "c", **change), plain)


@pytest.mark.parametrize("change", [
    {"micro_batch_size": 1},
    {"activation_checkpointing": True},
    {"save_every": 1},
], ids=lambda change: next(iter(change)))
def test_options_of_the_machine_change_no_more_than_rounding(pairs, tmp_path, change):
    plain = trained(pairs, tmp_path / "a")
    changed = trained(pairs, tmp_path / "b", **change)
    torch.testing.assert_close(changed, plain, rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_is_what_the_option_says():
    for argv, expected in (([], False), (["--activation-checkpointing"], True)):
        model, _ = load_for_training(SHIPPED, train_args(*argv))
        assert model.model.activation_checkpointing is expected


def test_the_gradient_norm_is_logged_before_it_is_clipped(pairs, tmp_path):
    """--max-grad-norm does not change what the log says of the first step."""
    logs = []
    for norm in (1.0, 0.01):
        args = train_args("--epochs", "1", "--batch-size", "3", "--max-grad-norm", norm)
        model, _ = load_for_training(SHIPPED, args)
        logs.append(train.optimize(model, pairs, SHIPPED, tmp_path / str(norm), args, 1))
    assert logs[0][0]["grad_norm"] == logs[1][0]["grad_norm"] > 0.01


def test_pairs_come_in_another_order_in_each_epoch(pairs, tmp_path, monkeypatch):
    """And each epoch takes all of them."""
    batches = []
    forward_backward = train.forward_backward

    def spy(model, batch, args):
        batches.append([pairs.index(pair) for pair in batch])
        return forward_backward(model, batch, args)

    monkeypatch.setattr(train, "forward_backward", spy)
    trained(pairs, tmp_path, epochs=2)
    first, second = sum(batches[:3], []), sum(batches[3:], [])
    assert [len(batch) for batch in batches] == [3, 3, 2, 3, 3, 2]
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_the_summary_compares_the_first_epoch_with_the_last():
    """Weighted by the pairs of each batch: (3 · 1 + 1 · 5) / 4 = 2, (3 · 2 + 1 · 4) / 4 = 2.5."""
    log = []
    for epoch, losses in enumerate(([1.0, 5.0], [9.0, 9.0], [2.0, 4.0])):
        for n_pairs, loss in zip((3, 1), losses):
            step = {"epoch": epoch, "pairs": n_pairs, "loss": loss}
            log.append({**step, "chosen_logp": -loss, "rejected_logp": -10 * loss})
    assert summary(log) == (
        "6 steps; mean of the first → the last epoch: loss 2.000 → 2.500, "
        "chosen_logp -2.000 → -2.500, rejected_logp -20.000 → -25.000"
    )
