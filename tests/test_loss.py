"""Step 6: the loss against hand-worked numbers and NumPy in float64, and the log-probs it takes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_llama, tiny_config

from common.packing import PackedTokens, collate
from model import token_logps
from scpo import EncodedPair, encode_pair, nll_loss, pair_logps, pair_metrics, scpo_loss
from tasks.chat import ChatTokenizer


def test_hand_worked_loss():
    """Two pairs, β 0.5, α 1; the log-probs of the first moved as they should, of the second not."""
    losses, chosen_rewards, rejected_rewards = scpo_loss(
        policy_chosen_logps=torch.tensor([-10.0, -20.0]),
        policy_rejected_logps=torch.tensor([-14.0, -18.0]),
        reference_chosen_logps=torch.tensor([-11.0, -20.0]),
        reference_rejected_logps=torch.tensor([-13.0, -20.0]),
        chosen_lengths=torch.tensor([5, 10]),
        weights=torch.tensor([0.5, 1.0]),
        beta=0.5, alpha=1.0)
    assert chosen_rewards.tolist() == [0.5, 0.0]
    assert rejected_rewards.tolist() == [-0.5, 1.0]
    # Pair 1: 0.5 · (-log σ(1) + 10/5) = 0.5 · (0.313262 + 2).
    # Pair 2: 1 · (-log σ(-1) + 20/10) = 1.313262 + 2.
    assert losses.tolist() == pytest.approx([1.156631, 3.313262], abs=1e-6)


def random_batch(seed=0, size=64):
    """Four columns of log-probs, lengths and weights."""
    rng = np.random.default_rng(seed)
    logps = [-rng.uniform(1, 200, size) for _ in range(4)]
    return logps, rng.integers(1, 100, size), rng.uniform(0, 1, size)


def as_tensors(logps, lengths, weights):
    return [torch.tensor(x) for x in logps], torch.tensor(lengths), torch.tensor(weights)


@pytest.mark.parametrize("beta, alpha", [(0.5, 1.0), (0.1, 0.0), (1.0, 5.0)])
def test_loss_equals_float64_numpy(beta, alpha):
    logps, lengths, weights = random_batch()
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = logps
    margin = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    expected = weights * np.logaddexp(0, -margin) - alpha * weights / lengths * policy_chosen
    tensors, *columns = as_tensors(logps, lengths, weights)
    losses, _, _ = scpo_loss(*tensors, *columns, beta, alpha)
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)


def dpo_loss(tensors, beta):
    """The formula of arXiv 2305.18290, as it is written there."""
    policy_chosen, policy_rejected, reference_chosen, reference_rejected = tensors
    log_ratios = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    return -torch.log(torch.sigmoid(beta * log_ratios))


def test_without_weight_and_nll_it_is_dpo():
    tensors, lengths, weights = as_tensors(*random_batch(1))
    losses, _, _ = scpo_loss(*tensors, lengths, torch.ones_like(weights), beta=0.1, alpha=0.0)
    torch.testing.assert_close(losses, dpo_loss(tensors, 0.1))


def test_without_weight_it_is_irpo():
    tensors, lengths, weights = as_tensors(*random_batch(1))
    losses, _, _ = scpo_loss(*tensors, lengths, torch.ones_like(weights), beta=0.1, alpha=1.0)
    torch.testing.assert_close(losses, dpo_loss(tensors, 0.1) - tensors[0] / lengths)


def test_weight_zero_is_no_loss():
    tensors, lengths, weights = as_tensors(*random_batch(1))
    losses, _, _ = scpo_loss(*tensors, lengths, torch.zeros_like(weights), beta=0.1, alpha=1.0)
    assert losses.abs().max() == 0


def test_gradient_equals_finite_differences():
    logps, lengths, weights = random_batch(2, size=8)
    tensors = [torch.tensor(x / 20, requires_grad=True) for x in logps]

    def losses(*tensors):
        return scpo_loss(*tensors, torch.tensor(lengths), torch.tensor(weights), 0.5, 1.0)[0]

    assert torch.autograd.gradcheck(losses, tensors)


def test_gradient_pulls_the_chosen_up_and_pushes_the_rejected_down():
    logps, lengths, weights = random_batch(2, size=8)
    chosen, rejected, *reference = [torch.tensor(x / 20, requires_grad=True) for x in logps]
    columns = torch.tensor(lengths), torch.tensor(weights)
    losses, _, _ = scpo_loss(chosen, rejected, *reference, *columns, beta=0.5, alpha=1.0)
    losses.sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()


def test_rewards_carry_no_gradient():
    logps, lengths, weights = random_batch(3)
    tensors = [torch.tensor(x, requires_grad=True) for x in logps]
    columns = torch.tensor(lengths), torch.tensor(weights)
    losses, chosen_rewards, rejected_rewards = scpo_loss(*tensors, *columns, 0.5, 1.0)
    assert losses.requires_grad and losses.shape == (64,)
    assert not chosen_rewards.requires_grad and not rejected_rewards.requires_grad


def test_inputs_are_not_written_to():
    tensors, *columns = as_tensors(*random_batch(3))
    before = [tensor.clone() for tensor in (*tensors, *columns)]
    scpo_loss(*tensors, *columns, beta=0.5, alpha=1.0)
    for tensor, copy in zip((*tensors, *columns), before):
        assert torch.equal(tensor, copy)


def test_loss_is_finite_where_the_margin_is_enormous():
    far, zeros = torch.tensor([-1e6, -1.0]), torch.zeros(2)
    losses, _, _ = scpo_loss(
        far, far.flip(0), zeros, zeros, torch.tensor([10, 10]), torch.ones(2), 0.5, 0.0)
    assert torch.isfinite(losses).all()
    assert losses.tolist() == pytest.approx([499999.5, 0.0])


# --------------------------------------------------------------------------------------------
# Log-probs


def test_token_logps_of_a_uniform_model():
    logps = token_logps(torch.zeros(3, 1000), torch.tensor([0, 5, 999]))
    assert logps.tolist() == pytest.approx([-math.log(1000)] * 3)


def test_token_logps_of_bfloat16_logits_are_worked_out_in_float32():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([1, 2, 3, 4])
    logps = token_logps(logits, targets)
    assert logps.dtype == torch.float32
    expected = torch.log_softmax(logits.double(), -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(logps.double(), expected, atol=1e-6, rtol=0)


def test_response_mask_comes_from_lengths_and_includes_eos():
    eos = 0  # also the value of the padding: it must not matter
    tokens, prompt_mask, response_mask = collate([([5, 6], [7, 8, eos]), ([5], [9, eos])])
    assert tokens.tolist() == [[5, 6, 7, 8, 0], [5, 9, 0, 0, 0]]
    assert prompt_mask.int().tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert response_mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]


def test_tokens_are_packed_without_padding_and_with_each_prompt_once():
    """Two pairs: prompts ab and c, chosen de and f, rejected g and hij."""
    texts = [("ab", "de"), ("c", "f"), ("ab", "g"), ("c", "hij")]
    rows = []
    for prompt, response in texts:
        rows.append(([ord(token) for token in prompt], [ord(token) for token in response]))
    tokens, prompt_mask, response_mask = collate(rows)
    packed = PackedTokens(prompt_mask, response_mask, n_prompts=2)
    kept = tokens.flatten()[packed.place_of]
    assert "".join(map(chr, kept)) == "abdecfghij"
    assert packed.begin_pass(10).tolist() == [[0, 1, 2, 3, 0, 1, 2, 1, 2, 3]]
    real = prompt_mask | response_mask
    assert torch.equal(kept[packed.token_at][real], tokens[real])


# --------------------------------------------------------------------------------------------
# The loss of pairs, by a model

PAIRS = [
    EncodedPair([0, 5, 9], [7, 8, 1], [12, 30, 31, 32, 1], 0.5, -9.0, -20.0),
    EncodedPair([0, 40], [3, 1], [9], 1.0, -4.0, -3.0),
]


@torch.no_grad()
def plain_logp(model, prompt: list[int], response: list[int]) -> float:
    """The log-prob of one response, without padding or chunks, in float64."""
    tokens = torch.tensor([prompt + response])
    logps = torch.log_softmax(model(tokens)[0].double(), dim=-1)
    places = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    return sum(logps[place, token].item() for place, token in zip(places, response))


def test_pair_logps_equal_those_of_each_response_alone():
    model = random_llama(tiny_config())
    chosen, rejected = pair_logps(model, PAIRS)
    for i, pair in enumerate(PAIRS):
        assert chosen[i].item() == pytest.approx(plain_logp(model, pair.prompt, pair.chosen))
        assert rejected[i].item() == pytest.approx(plain_logp(model, pair.prompt, pair.rejected))


def test_pair_metrics_are_the_loss_and_what_it_is_made_of():
    model = random_llama(tiny_config())
    metrics = pair_metrics(model, PAIRS, beta=0.5, alpha=1.0)
    for i, pair in enumerate(PAIRS):
        chosen = plain_logp(model, pair.prompt, pair.chosen)
        rejected = plain_logp(model, pair.prompt, pair.rejected)
        chosen_reward = 0.5 * (chosen - pair.reference_chosen_logp)
        rejected_reward = 0.5 * (rejected - pair.reference_rejected_logp)
        margin = chosen_reward - rejected_reward
        nll = -chosen / len(pair.chosen)
        expected = {
            "loss": pair.weight * (math.log1p(math.exp(-margin)) + nll),
            "nll": nll,
            "chosen_logp": chosen,
            "rejected_logp": rejected,
            "chosen_reward": chosen_reward,
            "rejected_reward": rejected_reward,
            "margin": margin,
            "accuracy": float(margin > 0),
        }
        assert {name: values[i].item() for name, values in metrics.items()} == pytest.approx(
            expected, rel=1e-5)


def test_a_margin_of_zero_is_not_accurate():
    """At the first step all are zero: M_θ is M_{t-1}."""
    model = random_llama(tiny_config())
    pair = EncodedPair([0, 5], [7, 1], [7, 1], 1.0)
    metrics = pair_metrics(model, [pair], beta=0.5, alpha=1.0)
    assert metrics["margin"].item() == 0 and metrics["accuracy"].item() == 0


def test_lmsi_loss_is_the_weighted_nll():
    """It reads neither β nor α nor the reference; half the weight is half the loss."""
    model = random_llama(tiny_config())
    pair = EncodedPair([0, 5, 9], [7, 8, 1], None, weight=1.0)
    whole = pair_metrics(model, [pair], beta=0.5, alpha=3.0)
    half = pair_metrics(model, [replace(pair, weight=0.5)], beta=0.1, alpha=0.0)
    assert whole.keys() == half.keys() == {"loss", "nll", "chosen_logp"}
    expected = -plain_logp(model, pair.prompt, pair.chosen) / 3
    assert whole["loss"].item() == pytest.approx(expected) and expected > 1
    assert half["loss"].item() == whole["loss"].item() / 2
    assert half["nll"].item() == whole["nll"].item()


def test_nll_is_per_token():
    assert nll_loss(torch.tensor([-10.0, -10.0]), torch.tensor([5, 2])).tolist() == [2.0, 5.0]


def test_a_response_that_was_cut_off_is_trained_without_eos(toy_checkpoint):
    tokenizer = ChatTokenizer(toy_checkpoint)
    line = {"id": 0, "prompt": "Q: How many?", "chosen": " 7", "rejected": " 8", "weight": 0.5,
            "ended_chosen": True, "ended_rejected": False}
    pair = encode_pair(line, tokenizer)
    assert pair.prompt == tokenizer.encode_prompt("Q: How many?")
    assert pair.chosen == [*tokenizer.encode_response(" 7", ended=False), tokenizer.eos_id]
    assert pair.rejected == tokenizer.encode_response(" 8", ended=False)
    assert tokenizer.eos_id not in pair.rejected
    assert pair.weight == 0.5
    assert encode_pair({**line, "rejected": None}, tokenizer).rejected is None
