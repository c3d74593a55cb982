"""The method: pairs from votes, the weight, and the loss against hand-worked numbers and a float64 NumPy version."""

import math
import random

import numpy as np
import pytest
import torch

from model import token_logps
from scpo import build_pair, choose_gold, choose_pair, choose_reward, collate, pair_weight, scpo_loss, unanimous
from vote import count_votes

NAMES = ["policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps"]


def choose(answers, k=8, tau=0.5, seed=0):
    """(pair, votes, reason)"""
    votes = count_votes(answers, "toy", k)
    pair, reason = choose_pair(answers, votes, k, tau, random.Random(seed))
    return pair, votes, reason


# --- votes → pair


def test_most_against_least_consistent():
    answers = ["7", "7", "7", "7", "8", "8", "8", "9"]
    (chosen, rejected), votes, reason = choose(answers)
    assert votes == [4, 4, 4, 4, 3, 3, 3, 1] and reason == "pair"
    assert answers[chosen] == "7" and answers[rejected] == "9"
    assert pair_weight(votes[chosen], votes[rejected], 8) == 3 / 8


def test_every_response_of_the_cluster_can_be_drawn():
    answers = ["7", "8", "7", "9", "7", "9", "7", "7"]
    drawn = {choose(answers, seed=s)[0] for s in range(300)}
    assert {c for c, _ in drawn} == {0, 2, 4, 6, 7} and {r for _, r in drawn} == {1}
    assert choose(answers, seed=5) == choose(answers, seed=5)


def test_tie_between_answers_is_drawn_by_answer_not_by_response():
    answers = ["7", "7", "7", "7", "7", "1", "2", "3"]
    counts = [sum(choose(answers, seed=s)[0][1] == i for s in range(900)) for i in (5, 6, 7)]
    assert all(230 < c < 370 for c in counts)
    extra = ["7"] * 8 + ["1", "1", "1", "2"]  # both answers have V = 0: half the draws each, not three to one
    assert 230 < sum(choose(extra, seed=s)[0][1] == 11 for s in range(600)) < 370
    top = ["1", "1", "1", "2", "2", "2", "3", "4"]
    assert {top[choose(top, tau=0.1, seed=s)[0][0]] for s in range(40)} == {"1", "2"}


def test_none_is_one_candidate_for_rejection_and_never_chosen():
    answers = ["7", "7", None, None, None, None, None, None]
    assert choose(answers, tau=0.5)[::2] == (None, "below tau")  # k stays the denominator: 2 of 8, not 2 of 2
    (chosen, rejected), votes, _ = choose(answers, tau=0.25)
    assert answers[chosen] == "7" and answers[rejected] is None and (votes[chosen], votes[rejected]) == (2, 0)
    assert choose([None] * 8, tau=0.1)[::2] == (None, "below tau")


@pytest.mark.parametrize("votes, tau, kept", [(4, 0.5, True), (3, 0.5, False), (6, 0.7, True), (5, 0.7, False),
                                              (5, 0.6, True), (3, 0.3, True), (2, 0.3, False), (1, 0.1, True)])
def test_threshold_is_at_least_tau(votes, tau, kept):
    """The paper's τ for k = 8: 0.1k → 1, 0.3k → 3, 0.5k → 4, 0.6k → 5, 0.7k → 6 votes."""
    answers = ["a"] * votes + [f"b{i}" for i in range(8 - votes)]
    assert (choose(answers, tau=tau)[2] in ("pair", "tied")) == kept


def test_threshold_survives_float_rounding():
    assert 0.7 * 10 > 7 - 1e-9 and choose(["a"] * 7 + ["b", "c", "d"], k=10, tau=0.7)[2] == "pair"
    assert choose(["a"] * 3 + [f"b{i}" for i in range(7)], k=10, tau=0.1 + 0.2)[2] == "pair"  # 0.30000000000000004


def test_even_split_and_unanimity_give_no_pair():
    assert choose(["a"] * 4 + ["b"] * 4)[::2] == (None, "tied")
    assert choose(["a"] * 8)[::2] == (None, "unanimous")
    assert unanimous(["a"] * 8) and not unanimous(["a"] * 7 + [None]) and not unanimous([None] * 8)


def test_extra_responses_can_only_be_rejected():
    answers = ["a"] * 8 + ["a", "b", None, "b"]  # 8 that vote, 4 hotter ones
    pairs = [choose(answers, seed=s) for s in range(40)]
    assert {p[0] for p, _, _ in pairs} <= set(range(8)) and {answers[p[1]] for p, _, _ in pairs} == {"b", None}
    assert pairs[0][1] == [8] * 9 + [0, 0, 0]  # the extra "a" has its 8 votes but does not add a ninth
    assert choose(["a"] * 8 + ["a"] * 4)[::2] == (None, "unanimous")


def test_pair_line_has_everything_trl_and_a_reader_need():
    row = {"id": "p", "prompt": "Q", "responses": ["r0", "r1", "r2", "r3"], "ended": [True] * 4,
           "extra_responses": ["x"], "extra_ended": [False]}
    pair, _ = build_pair(row, ["1", "1", "1", "2", "3"], 0.5, "toy", random.Random(0))
    assert pair["prompt"] == "Q" and pair["chosen"] in ("r0", "r1", "r2") and pair["weight"] == 3 / 4
    assert pair["rejected"] == "x" and pair["sample_rejected"] == 4 and pair["k"] == 4 and pair["id"] == "p"
    assert pair["ended_chosen"] is True and pair["ended_rejected"] is False


def test_gold_takes_a_right_and_a_wrong_response():
    answers = ["1", "2", None, "1", "3"]
    choose = lambda answers, gold, seed=0: choose_gold(answers, 5, gold, random.Random(seed))
    assert {choose(answers, "1", s)[0] for s in range(200)} == {(c, r) for c in (0, 3) for r in (1, 2, 4)}
    assert [choose(answers, gold) for gold in ("9", None)] == [(None, "none right"), (None, "no gold answer")]
    assert choose(["1"] * 5, "1") == choose(["1"] * 7, "1") == (None, "none wrong")
    assert {choose(["1"] * 5 + ["2", "1", None], "1", s)[0][1] for s in range(50)} == {5, 7}  # hotter ones, if need be
    assert {choose(["1"] * 4 + ["2", "3"], "1", s)[0][1] for s in range(50)} == {4}
    assert choose(["2"] * 5 + ["1"], "1") == (None, "none right")  # a hotter response is never chosen


def test_reward_takes_the_extremes():
    assert choose_reward([0.5, -1.0, 2.0, -1.0]) == ((2, 1), "pair")
    assert choose_reward([0.5, 0.5]) == (None, "tied")


def test_lmsi_needs_a_clear_vote_and_no_second_answer():
    row = {"id": "p", "prompt": "Q", "responses": list("abcd"), "ended": [True] * 4}
    build = lambda answers, tau=0.5: build_pair(row, answers, tau, "toy", random.Random(0), supervision="lmsi")
    pair, reason = build(["1"] * 4)
    assert reason == "pair" and pair["rejected"] is None and pair["weight"] == 1.0 and pair["votes_chosen"] == 4
    assert build(["1", "1", "2", None], 0.75) == (None, "below tau") and build([None] * 4) == (None, "below tau")
    for seed in range(20):  # the same target as ScPO's
        both = [build_pair(row, [None, "1", "2", "1"], 0.5, "toy", random.Random(seed), supervision=s)[0]["chosen"]
                for s in ("lmsi", "scpo")]
        assert both[0] == both[1] and both[0] in "bd"


def test_controls_change_who_is_chosen_and_the_weight():
    row = {"id": "p", "prompt": "Q", "responses": list("abcd"), "ended": [True] * 4}
    build = lambda seed, **kw: build_pair(row, ["1", "1", "1", "2"], 0.5, "toy", random.Random(seed), **kw)[0]
    assert build(0)["weight"] == 0.5 and build(0, weighted=False)["weight"] == 1.0
    gold = build(0, supervision="gold", gold="2")
    assert gold["chosen"] == "d" and gold["weight"] == 1.0
    coin = [build(s, supervision="coin") for s in range(400)]
    assert all(p["weight"] == 0.5 for p in coin) and 150 < sum(p["chosen"] == "d" for p in coin) < 250


# --- the loss


def test_hand_worked_loss():
    """Two pairs, β 0.5, α 1; logits of the preference worked out by hand."""
    losses, chosen, rejected = scpo_loss(
        torch.tensor([-10.0, -20.0]), torch.tensor([-14.0, -18.0]), torch.tensor([-11.0, -20.0]),
        torch.tensor([-13.0, -20.0]), torch.tensor([5, 10]), torch.tensor([0.5, 1.0]), beta=0.5, alpha=1.0)
    assert chosen.tolist() == [0.5, 0.0] and rejected.tolist() == [-0.5, 1.0]
    # pair 1: 0.5 · (-log σ(1) + 10/5) = 0.5 · (0.313262 + 2);  pair 2: 1 · (-log σ(-1) + 20/10) = 1.313262 + 2
    assert losses.tolist() == pytest.approx([1.156631, 3.313262], abs=1e-6)


def random_batch(seed=0, size=64):
    rng = np.random.default_rng(seed)
    logps = [-rng.uniform(1, 200, size) for _ in range(4)]
    return logps, rng.integers(1, 100, size), rng.uniform(0, 1, size)


def test_loss_equals_float64_numpy():
    logps, lengths, weights = random_batch()
    policy_c, policy_r, reference_c, reference_r = logps
    for beta, alpha in [(0.5, 1.0), (0.1, 0.0), (1.0, 5.0)]:
        margin = beta * ((policy_c - reference_c) - (policy_r - reference_r))
        expected = weights * np.logaddexp(0, -margin) - alpha * weights / lengths * policy_c
        losses, _, _ = scpo_loss(*map(torch.tensor, logps), torch.tensor(lengths), torch.tensor(weights), beta, alpha)
        np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-12)


def test_special_cases_are_irpo_and_dpo():
    logps, lengths, weights = random_batch(1)
    tensors, lengths = [torch.tensor(x) for x in logps], torch.tensor(lengths)
    dpo = -torch.log(torch.sigmoid(0.1 * ((tensors[0] - tensors[1]) - (tensors[2] - tensors[3]))))
    ones = torch.ones(64, dtype=torch.float64)
    torch.testing.assert_close(scpo_loss(*tensors, lengths, ones, 0.1, 0.0)[0], dpo)
    irpo = dpo - tensors[0] / lengths
    torch.testing.assert_close(scpo_loss(*tensors, lengths, ones, 0.1, 1.0)[0], irpo)
    assert scpo_loss(*tensors, lengths, ones * 0, 0.1, 1.0)[0].abs().max() == 0


def test_gradients_by_finite_differences_and_signs():
    logps, lengths, weights = random_batch(2, size=8)
    tensors = [torch.tensor(x / 20, requires_grad=True) for x in logps]
    loss = lambda *t: scpo_loss(*t, torch.tensor(lengths), torch.tensor(weights), 0.5, 1.0)[0]
    assert torch.autograd.gradcheck(loss, tensors)
    loss(*tensors).sum().backward()
    assert (tensors[0].grad < 0).all() and (tensors[1].grad > 0).all()  # chosen up, rejected down


def test_rewards_carry_no_gradient_and_inputs_are_not_written_to():
    logps, lengths, weights = random_batch(3)
    tensors = [torch.tensor(x, requires_grad=True) for x in logps]
    before = [t.detach().clone() for t in tensors]
    for _ in range(2):
        losses, chosen, rejected = scpo_loss(*tensors, torch.tensor(lengths), torch.tensor(weights), 0.5, 1.0)
    assert not chosen.requires_grad and not rejected.requires_grad and losses.requires_grad and losses.shape == (64,)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors))


def test_loss_is_finite_where_the_margin_is_enormous():
    far = torch.tensor([-1e6, -1.0])
    losses, _, _ = scpo_loss(far, far.flip(0), far * 0, far * 0, torch.tensor([10, 10]), torch.ones(2), 0.5, 0.0)
    assert torch.isfinite(losses).all() and losses.tolist() == pytest.approx([499999.5, 0.0])


# --- log-probs


def test_token_logps_of_a_uniform_model_and_in_bf16():
    logits = torch.zeros(3, 1000)
    assert token_logps(logits, torch.tensor([0, 5, 999])).tolist() == pytest.approx([-math.log(1000)] * 3)
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([1, 2, 3, 4])
    result = token_logps(logits, targets)
    assert result.dtype == torch.float32
    expected = torch.log_softmax(logits.double(), -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(result.double(), expected, atol=1e-6, rtol=0)


def test_targets_come_from_lengths_and_include_eos():
    eos = 0  # also the padding's value: it must not matter
    tokens, targets = collate([([5, 6], [7, 8, eos]), ([5], [9, eos])])
    assert tokens.tolist() == [[5, 6, 7, 8, 0], [5, 9, 0, 0, 0]]
    assert targets.tolist() == [[False, False, True, True, True], [False, True, True, False, False]]
