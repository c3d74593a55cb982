"""Self-Consistency Preference Optimization (ScPO; Prasad et al., arXiv 2411.04109): the method.

One round turns a model M_{t-1} into M_t, without a label (section 2 of the paper):

1. Problems.   M_{t-1} reads four random problems and writes another.    sample.write_problems
2. Responses.  It answers every problem x k times: y_1 … y_k.            sample.answer_problems
3. Votes.      V(y) = Σ_m 1[ans(y_m) = ans(y)]                           vote.count_votes
4. Pair.       y+ = argmax V, y- = argmin V; a pair if V(y+) ≥ τ.        scpo_pair
5. Weight.     w(x) = (V(y+) - V(y-)) / k                                pair_weight
6. Training.   θ starts at M_{t-1} and minimizes the mean over pairs of  scpo_loss

       L = - w(x) · log σ( β · log[M_θ(y+|x) / M_{t-1}(y+|x)]
                           - β · log[M_θ(y-|x) / M_{t-1}(y-|x)] )
           - w(x) · α / |y+| · log M_θ(y+|x)

Here τ is a number of votes, β keeps M_t close to M_{t-1}, and α weighs the NLL. τ also filters the
new problems: one without a consistent answer gives no pair.

This file holds steps 4 to 6; train.py runs all six. Only the last section needs a model. What the
paper leaves open is said where it is decided: ties here, responses without an answer in
vote.response_answers, and what hotter responses count where all agree in is_unanimous below.

In the comments on shapes, B is the number of pairs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.packing import collate
from model import Llama
from tasks.chat import ChatTokenizer


class NoPair(Exception):
    """Why a problem gives no pair: "below tau", "tied" and the like."""


# --------------------------------------------------------------------------------------------
# Steps 4 and 5: from votes to a weighted pair

# Of the k voting responses, then of the extra ones. None stands for a response without an answer.
Answers = Sequence[str | None]


def scpo_pair(
    answers: Answers, votes: Sequence[int], k: int, tau: float, rng: random.Random
) -> tuple[int, int]:
    """The indices of y+ and y- among the responses to one problem.

    votes: V of each, as count_votes(answers, k) gives them. Extra responses can only be rejected.
    tau: the least share of the k votes for y+. The paper's τ is a number of votes, tau · k.
    Raises NoPair.
    """
    chosen = most_consistent(answers, votes, k, tau, rng)
    # A response without an answer is never chosen, but with V = 0 it may be the one to reject.
    others = [i for i, answer in enumerate(answers) if answer != answers[chosen]]
    if not others:
        raise NoPair("still unanimous")
    fewest = min(votes[i] for i in others)
    if fewest == votes[chosen]:
        # All answers have equally many votes, so w(x) = 0: the pair would add no loss, but count in
        # the mean. With tau ≥ 0.5 a tie at the top is always of this kind; with a smaller one y+ is
        # drawn. With --unweighted it is left out all the same.
        raise NoPair("tied")
    least_consistent = [i for i in others if votes[i] == fewest]
    return chosen, draw_response(answers, least_consistent, rng)


def most_consistent(
    answers: Answers, votes: Sequence[int], k: int, tau: float, rng: random.Random
) -> int:
    """The index of y+. Raises NoPair if no response has an answer, or V(y+) < τ."""
    most = max(votes[:k])
    if most == 0:
        raise NoPair("without any answer")
    if most < tau * k - 1e-9:  # 0.28 · 25 is 7.000…01 in floating point
        raise NoPair("below tau")
    return draw_response(answers, [i for i in range(k) if votes[i] == most], rng)


def draw_response(answers: Answers, candidates: list[int], rng: random.Random) -> int:
    """One of the candidates. Where answers tie, an answer is drawn, then one of its responses."""
    different = dict.fromkeys(answers[i] for i in candidates)  # in order, which a set loses
    answer = rng.choice(list(different))
    return rng.choice([i for i in candidates if answers[i] == answer])


def pair_weight(votes_chosen: int, votes_rejected: int, k: int) -> float:
    """w(x) = (V(y+) - V(y-)) / k, from 0 to 1. Responses without an answer count in k.

    Where all k agree, y- is an extra response, nobody voted for it, and w(x) = 1.
    """
    return (votes_chosen - votes_rejected) / k


def is_unanimous(answers: Answers) -> bool:
    """Whether all k voting responses agree; answers are theirs alone.

    Then extra, hotter ones are sampled, to find one to reject. They do not vote, and k stays.
    """
    return answers[0] is not None and len(set(answers)) == 1


# --------------------------------------------------------------------------------------------
# What the paper compares with: other judges than the vote (section 3)

METHODS = {
    "scpo": "votes decide, weighted by w(x)",
    "semi": "gold where a problem has an answer, else votes (semi-supervised ScPO; reads labels)",
    "gold": "a correct against a wrong response, w = 1 (IRPO; reads labels)",
    "reward": "the highest against the lowest score of --reward-model, w = 1 (IRPO_RM)",
    "lmsi": "the vote's winner is a target of NLL, nothing is rejected (LMSI, arXiv 2210.11610)",
    "coin": "the vote's pair and w, but a coin decides which is chosen (a control)",
}


def gold_pair(answers: Answers, k: int, gold: str | None, rng: random.Random) -> tuple[int, int]:
    """IRPO with gold (arXiv 2404.19733): a random correct and a random wrong response.

    A response without an answer is wrong too. An extra response, behind the first
    k, can only be rejected, and only where all k are right. Raises NoPair.
    """
    if gold is None:
        raise NoPair("no gold answer")
    right = [i for i in range(k) if answers[i] == gold]
    if not right:
        raise NoPair("none right")
    wrong = [i for i in range(k) if answers[i] != gold]
    if not wrong:
        wrong = [i for i in range(k, len(answers)) if answers[i] != gold]
    if not wrong:
        raise NoPair("none wrong")
    return rng.choice(right), rng.choice(wrong)


def reward_pair(rewards: Sequence[float]) -> tuple[int, int]:
    """IRPO with a reward model: the highest against the lowest of k rewards. Raises NoPair."""
    highest, lowest = max(rewards), min(rewards)
    if highest == lowest:
        raise NoPair("tied")
    return rewards.index(highest), rewards.index(lowest)


# --------------------------------------------------------------------------------------------
# Step 6: the loss


def scpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor,
    weights: Tensor,
    beta: float,
    alpha: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss L of each pair, not yet averaged (section 2, the weighted loss).

    The four log-probs (B,) are sums over a response's tokens, in nats;
    chosen_lengths (B,) is |y+| in tokens, with its EOS; weights (B,) is w(x). With
    w = 1 this is the loss of Iterative RPO (arXiv 2404.19733), and with α = 0 also
    that of DPO.

    Returns losses, chosen_rewards and rejected_rewards, (B,) each. The rewards, β ·
    log[M_θ / M_{t-1}], are there to look at: they carry no gradient.
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)  # (B,)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)  # (B,)
    preference = -F.logsigmoid(chosen_rewards - rejected_rewards)  # (B,)
    nll = nll_loss(policy_chosen_logps, chosen_lengths)  # (B,)
    losses = weights * preference + weights * alpha * nll  # (B,): w is on both terms
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def nll_loss(policy_chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """Negative log-likelihood per token, (B,): the second term of L, and all of LMSI's loss."""
    return -policy_chosen_logps / chosen_lengths


# --------------------------------------------------------------------------------------------
# Step 6 on a model


@dataclass
class EncodedPair:
    """A pair in tokens. `rejected` is None in all pairs of a round (LMSI), or in none."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int] | None
    weight: float
    id: str = ""  # of the problem
    reference_chosen_logp: float = 0.0  # these two are filled in from reference.jsonl
    reference_rejected_logp: float = 0.0

    @property
    def length(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected or []))


def encode_pair(pair: dict, tokenizer: ChatTokenizer) -> EncodedPair:
    """The tokens of a line of pairs.jsonl: the sampled ones, or those of a text from elsewhere.

    A response that was cut off gets no EOS.
    """
    sides = []
    for side in ("chosen", "rejected"):
        tokens = None
        if pair[side] is not None:
            text, ended, sampled = pair[side], pair[f"ended_{side}"], pair.get(f"ids_{side}")
            tokens = tokenizer.encode_response(text, ended, sampled)
        sides.append(tokens)
    prompt = tokenizer.encode_prompt(pair["prompt"])
    return EncodedPair(prompt, *sides, pair["weight"], pair["id"])


def pair_metrics(
    model: Llama, pairs: list[EncodedPair], beta: float, alpha: float
) -> dict[str, Tensor]:
    """The loss of each pair and its other metrics in log.jsonl, (B,) each."""

    def column(values: list) -> Tensor:
        return torch.tensor(values, device=model.device)  # (B,)

    lengths = column([len(pair.chosen) for pair in pairs])
    weights = column([pair.weight for pair in pairs])
    reference_chosen = column([pair.reference_chosen_logp for pair in pairs])
    reference_rejected = column([pair.reference_rejected_logp for pair in pairs])
    chosen, rejected = pair_logps(model, pairs)  # (B,) each
    nll = nll_loss(chosen, lengths)
    if pairs[0].rejected is None:
        return {"loss": weights * nll, "nll": nll, "chosen_logp": chosen}
    losses, chosen_rewards, rejected_rewards = scpo_loss(
        chosen, rejected, reference_chosen, reference_rejected, lengths, weights, beta, alpha)
    return {
        "loss": losses,
        "nll": nll,
        "chosen_logp": chosen,
        "rejected_logp": rejected,
        "chosen_reward": chosen_rewards,
        "rejected_reward": rejected_rewards,
        "margin": chosen_rewards - rejected_rewards,
        "accuracy": (chosen_rewards > rejected_rewards).float(),
    }


def pair_logps(model: Llama, pairs: list[EncodedPair]) -> tuple[Tensor, Tensor]:
    """log M(y+|x) and log M(y-|x) in nats, (B,) fp32 each; the second is empty for LMSI."""
    batch = [x.to(model.device) for x in collate(sequences(pairs))]  # (2B, T); (B, T) for LMSI
    logps = model.response_logps(*batch, n_prompts=len(pairs))
    return logps[: len(pairs)], logps[len(pairs) :]


def sequences(pairs: list[EncodedPair]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of the chosen responses, then of the rejected ones."""
    chosen = [(pair.prompt, pair.chosen) for pair in pairs]
    return chosen + [(pair.prompt, pair.rejected) for pair in pairs if pair.rejected is not None]
