"""Steps 3 to 5 of the method: from the answers to one problem to a weighted pair."""

import random

import pytest
import torch

from scpo import NoPair, is_unanimous, pair_weight, scpo_loss, scpo_pair
from vote import count_votes, extract_answer


def test_one_problem_from_its_responses_to_the_loss():
    """The method on one problem, k = 8, with every number worked out by hand."""
    responses = ["3 + 4 = 7.\n#### 7", "#### 7.0", "The answer is 7.", r"So \boxed{7}",
                 "#### 8", "#### $8", "#### 8 apples", "#### 9"]
    answers = [extract_answer(text, "gsm8k") for text in responses]
    assert answers == ["7", "7", "7", "7", "8", "8", "8", "9"]  # one spelling per value
    votes = count_votes(answers)
    assert votes == [4, 4, 4, 4, 3, 3, 3, 1]  # of each response, how many give its answer
    chosen, rejected = scpo_pair(answers, votes, k=8, tau=0.5, rng=random.Random(0))
    assert chosen in (0, 1, 2, 3) and rejected == 7  # τ is 0.5 · 8 = 4 votes, and V(y+) = 4
    weight = pair_weight(votes[chosen], votes[rejected], k=8)
    assert weight == 0.375  # (4 - 1) / 8
    # log M_θ(y|x) moved from -11 to -10 for y+, of 5 tokens, and from -13 to -14 for y-. With
    # β = 0.5 the margin is 0.5 · (+1) - 0.5 · (-1) = 1, and -log σ(1) = 0.313262.
    # With α = 1 the NLL term is 10 / 5 = 2, so L = 0.375 · (0.313262 + 2) = 0.867473.
    logps = [torch.tensor([logp]) for logp in (-10.0, -14.0, -11.0, -13.0)]
    loss, _, _ = scpo_loss(*logps, torch.tensor([5]), torch.tensor([weight]), beta=0.5, alpha=1.0)
    assert loss.tolist() == pytest.approx([0.867473], abs=1e-6)


def pair_of(answers, k=8, tau=0.5, seed=0) -> tuple[int, int]:
    """(chosen, rejected) of answers, the first k of which vote."""
    return scpo_pair(answers, count_votes(answers, k), k, tau, random.Random(seed))


def reason_for_no_pair(answers, k=8, tau=0.5) -> str:
    with pytest.raises(NoPair) as reason:
        pair_of(answers, k, tau)
    return str(reason.value)


# --------------------------------------------------------------------------------------------
# Which responses can be drawn


def test_every_response_of_the_most_voted_answer_can_be_drawn():
    answers = ["7", "8", "7", "9", "7", "9", "7", "7"]
    pairs = [pair_of(answers, seed=seed) for seed in range(300)]
    assert {chosen for chosen, _ in pairs} == {0, 2, 4, 6, 7}
    assert {rejected for _, rejected in pairs} == {1}


def test_draws_are_repeated_with_the_seed():
    answers = ["7", "8", "7", "9", "7", "9", "7", "7"]
    for seed in range(20):
        assert pair_of(answers, seed=seed) == pair_of(answers, seed=seed)


def test_every_response_of_the_least_voted_answers_can_be_drawn():
    """Three answers of one vote each: a third of 900 draws each."""
    answers = ["7", "7", "7", "7", "7", "1", "2", "3"]
    rejected = [pair_of(answers, seed=seed)[1] for seed in range(900)]
    for i in (5, 6, 7):
        assert 230 < rejected.count(i) < 370
    assert set(rejected) == {5, 6, 7}


def test_a_tie_is_drawn_by_answer_not_by_response():
    """Of extra responses with V = 0, the "1" is given thrice and the "2" once: half of 600 each."""
    answers = ["7"] * 8 + ["1", "1", "1", "2"]
    rejected = [pair_of(answers, seed=seed)[1] for seed in range(600)]
    assert 230 < rejected.count(11) < 370


def test_a_tie_at_the_top_is_drawn():
    answers = ["1", "1", "1", "2", "2", "2", "3", "4"]
    chosen = {answers[pair_of(answers, tau=0.1, seed=seed)[0]] for seed in range(40)}
    assert chosen == {"1", "2"}


def test_no_answer_may_be_rejected_but_is_never_chosen():
    answers = ["7", "7", None, None, None, None, None, None]
    votes = count_votes(answers)
    for seed in range(40):
        chosen, rejected = pair_of(answers, tau=0.25, seed=seed)
        assert answers[chosen] == "7" and answers[rejected] is None
        assert (votes[chosen], votes[rejected]) == (2, 0)


# --------------------------------------------------------------------------------------------
# The threshold


@pytest.mark.parametrize("votes, tau, kept", [
    (4, 0.5, True), (3, 0.5, False), (6, 0.7, True), (5, 0.7, False),
    (5, 0.6, True), (3, 0.3, True), (2, 0.3, False), (1, 0.1, True),
])
def test_threshold_is_at_least_tau(votes, tau, kept):
    """The paper's τ for k = 8: 0.1k → 1, 0.3k → 3, 0.5k → 4, 0.6k → 5, 0.7k → 6 votes."""
    answers = ["a"] * votes + [f"b{i}" for i in range(8 - votes)]
    if votes == 1:  # eight answers of one vote each pass the threshold, and are tied
        assert reason_for_no_pair(answers, tau=tau) == "tied"
    elif kept:
        assert answers[pair_of(answers, tau=tau)[0]] == "a"
    else:
        assert reason_for_no_pair(answers, tau=tau) == "below tau"


@pytest.mark.parametrize("votes, k, tau", [(7, 25, 0.28), (3, 10, 0.1 + 0.2), (7, 10, 0.7)])
def test_threshold_survives_float_rounding(votes, k, tau):
    """0.28 · 25 is 7.000000000000001 in floating point, yet 7 of 25 votes are enough."""
    answers = ["a"] * votes + [f"b{i}" for i in range(k - votes)]
    assert answers[pair_of(answers, k, tau)[0]] == "a"


def test_responses_without_an_answer_count_in_k():
    """2 of 8, not 2 of 2."""
    answers = ["7", "7", None, None, None, None, None, None]
    assert reason_for_no_pair(answers, tau=0.5) == "below tau"


def test_nobody_answered_is_below_every_threshold():
    assert reason_for_no_pair([None] * 8, tau=0.1) == "without any answer"


# --------------------------------------------------------------------------------------------
# Problems on which all agree


def test_an_even_split_gives_no_pair():
    assert reason_for_no_pair(["a"] * 4 + ["b"] * 4) == "tied"


def test_unanimity_gives_no_pair():
    assert reason_for_no_pair(["a"] * 8) == "still unanimous"
    assert reason_for_no_pair(["a"] * 8 + ["a"] * 4) == "still unanimous"


def test_is_unanimous():
    assert is_unanimous(["a"] * 8)
    assert not is_unanimous(["a"] * 7 + [None])
    assert not is_unanimous([None] * 8)


def test_extra_responses_can_only_be_rejected():
    answers = ["a"] * 8 + ["a", "b", None, "b"]  # 8 that vote, 4 hotter ones
    pairs = [pair_of(answers, seed=seed) for seed in range(40)]
    assert {chosen for chosen, _ in pairs} <= set(range(8))
    assert {answers[rejected] for _, rejected in pairs} == {"b", None}


def test_extra_responses_do_not_vote():
    """The extra "a" shares the 8 votes of its answer, but does not add a ninth."""
    answers = ["a"] * 8 + ["a", "b", None, "b"]
    assert count_votes(answers, 8) == [8] * 9 + [0, 0, 0]


# --------------------------------------------------------------------------------------------
# The weight


def test_weight_is_the_difference_of_the_vote_shares():
    assert pair_weight(4, 1, k=8) == 3 / 8
    assert pair_weight(2, 0, k=8) == 2 / 8  # against a response without an answer
    assert pair_weight(8, 0, k=8) == 1  # all agree, and an extra response is rejected
