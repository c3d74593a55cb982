"""Self-Consistency Preference Optimization (ScPO; Prasad et al., arXiv 2411.04109): the method, on plain values.

One round t turns a model M_{t-1} into M_t without a label (paper, section 2; the loop is in train.py):

1. New problems. M_{t-1} reads four random seed problems and writes another one.          sample.write_problems
2. Responses. It answers every problem x k times at temperature 0.7: y_1 … y_k.            sample.answer_problems
3. Votes. V(y) = Σ_m 1[ans(y_m) = ans(y)], the responses that share y's final answer.      vote.count_votes
4. Pairs. y+ = argmax V, y- = argmin V, kept only if V(y+) ≥ τ. The same test filters      choose_pair
   the new problems: one without a consistent answer gives no pair.
5. Weight. w(x) = (V(y+) - V(y-)) / k: the clearer the vote, the more the pair counts.     pair_weight
6. Loss, from the start θ = M_{t-1}, which is also the reference:                          scpo_loss

       L = - w(x) · log σ( β · log[M_θ(y+|x) / M_{t-1}(y+|x)] - β · log[M_θ(y-|x) / M_{t-1}(y-|x)] )
           - w(x) · α / |y+| · log M_θ(y+|x)

What the paper leaves open is decided here, each in one commented line: ties, responses without an answer, problems on
which all k agree, the mean over a batch.

Letters in shape comments
    B  pairs      R  sequences      N  response tokens of all sequences      T  longest sequence      V  vocab_size
"""

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vote import count_votes, same_answer

# ---------------------------------------------------------------------------------------------------------------------
# Steps 3-5: votes → pair


def pair_weight(votes_chosen: int, votes_rejected: int, k: int) -> float:
    """w(x) = (V(y+) - V(y-)) / k, in [0, 1] (section 2). k counts all responses, also those without an answer."""
    return (votes_chosen - votes_rejected) / k


def choose_pair(answers: Sequence[str | None], k: int, tau: float, task: str,
                draw: random.Random) -> tuple[tuple[int, int] | None, list[int], str]:
    """The indices of y+ and y- among the responses to one problem.

    answers: of the k responses that vote, then of any extra ones, which do not vote and can only be rejected.
    tau: the least share of the k votes for y+; the paper's τ is tau · k votes.
    draw: decides ties, seeded from (seed, round, problem).
    Returns (chosen, rejected) or None, V of every response, and the reason: "pair", "below tau", "unanimous", "tied".
    """
    ballots = list(answers[:k])
    votes = count_votes(ballots, task)
    votes += [sum(same_answer(answer, ballot, task) for ballot in ballots) for answer in answers[k:]]
    most = max(votes[:k])
    if most == 0 or most < tau * k - 1e-9:  # nobody voted, or V(y+) < τ; the tiny slack absorbs 0.7 · 10 = 7.000…01
        return None, votes, "below tau"
    # Answers may tie for the most or the fewest votes: first one of the answers is drawn, then one of its responses.
    winner = draw.choice(distinct([answers[i] for i in range(k) if votes[i] == most]))
    chosen = draw.choice([i for i in range(k) if same_answer(answers[i], winner, task)])
    others = [i for i in range(len(answers)) if not same_answer(answers[i], winner, task)]
    if not others:
        return None, votes, "unanimous"
    fewest = min(votes[i] for i in others)  # 0 for a response without an answer: never chosen, but it may be rejected
    if fewest == most:
        return None, votes, "tied"  # w(x) = 0: it would only dilute the mean
    loser = draw.choice(distinct([answers[i] for i in others if votes[i] == fewest]))
    rejected = draw.choice([i for i in others if answers[i] == loser and votes[i] == fewest])
    return (chosen, rejected), votes, "pair"


def distinct(answers: list[str | None]) -> list[str | None]:
    """The different answers in order of appearance, so that a seeded draw among them is reproducible."""
    return list(dict.fromkeys(answers))


def unanimous(answers: Sequence[str | None], task: str) -> bool:
    """Whether all k responses agree. Then nothing can be rejected, and hotter samples are drawn to find something."""
    return all(same_answer(answer, answers[0], task) for answer in answers)


def choose_gold(answers: Sequence[str | None], gold: str | None, task: str,
                draw: random.Random) -> tuple[tuple[int, int] | None, str]:
    """A random correct and a random wrong response (IRPO with gold, arXiv 2404.19733); no answer is wrong too."""
    right = [i for i, answer in enumerate(answers) if same_answer(answer, gold, task)]
    wrong = [i for i in range(len(answers)) if i not in right]
    if gold is None or not right or not wrong:
        return None, "no gold answer" if gold is None else "none right" if not right else "none wrong"
    return (draw.choice(right), draw.choice(wrong)), "pair"


SUPERVISION = {
    "scpo": "votes decide, weighted by w(x)",
    "gold": "a correct against a wrong response, w = 1: uses labels, an upper bound",
    "coin": "the votes' pair with its w, but a coin decides which of the two is chosen: a control",
}


def build_pair(row: dict, answers: Sequence[str | None], tau: float, task: str, draw: random.Random,
               supervision: str = "scpo", gold: str | None = None, weighted: bool = True) -> tuple[dict | None, str]:
    """A line of `pairs.jsonl` from a line of `responses.jsonl`, or None and the reason why the problem gives no pair.

    answers: of the row's responses, then of its extra ones. supervision: a key of SUPERVISION. weighted: else w = 1.
    """
    texts = row["responses"] + row.get("extra_responses", [])
    ended = row["ended"] + row.get("extra_ended", [])
    k = len(row["responses"])
    pair, votes, reason = choose_pair(answers, k, tau, task, draw)
    if supervision == "gold":
        pair, reason = choose_gold(answers[:k], gold, task, draw)
    if pair is None:
        return None, reason
    weight = pair_weight(votes[pair[0]], votes[pair[1]], k) if weighted and supervision != "gold" else 1.0
    chosen, rejected = pair[::-1] if supervision == "coin" and draw.random() < 0.5 else pair
    return {"id": row["id"], "prompt": row["prompt"], "chosen": texts[chosen], "rejected": texts[rejected],
            "weight": weight, "votes_chosen": votes[chosen], "votes_rejected": votes[rejected], "k": k,
            "answer_chosen": answers[chosen], "answer_rejected": answers[rejected], "sample_chosen": chosen,
            "sample_rejected": rejected, "ended_chosen": ended[chosen], "ended_rejected": ended[rejected]}, reason


# ---------------------------------------------------------------------------------------------------------------------
# Step 6: the loss


def scpo_loss(policy_chosen_logps: Tensor, policy_rejected_logps: Tensor, reference_chosen_logps: Tensor,
              reference_rejected_logps: Tensor, chosen_lengths: Tensor, weights: Tensor, beta: float,
              alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each pair, without reduction (paper, section 2, the weighted loss).

    The four log-probs are sums over a response's tokens, in nats, each (B,); chosen_lengths (B,) is |y+| in tokens;
    weights (B,) is w(x). With w = 1 this is the loss of Iterative RPO (arXiv 2404.19733), with α = 0 also that of DPO.
    Returns losses, chosen_rewards, rejected_rewards, each (B,); the rewards, β · log[M_θ / M_{t-1}], carry no gradient.
    """
    chosen_rewards = beta * (policy_chosen_logps - reference_chosen_logps)  # (B,)
    rejected_rewards = beta * (policy_rejected_logps - reference_rejected_logps)  # (B,)
    preference = -F.logsigmoid(chosen_rewards - rejected_rewards)  # (B,)
    nll = -policy_chosen_logps / chosen_lengths  # (B,)
    losses = weights * preference + weights * alpha * nll  # (B,) w on both terms
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each target: logits (N, V) of any precision and targets (N,) → (N,) in fp32."""
    logits = logits.float()  # a sum of bf16 log-probs near -300 would move in steps of 2
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def collate(sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """(prompt, response) token lists → tokens (R, T), padded on the right, and targets (R, T) bool.

    targets marks the response tokens, the closing EOS among them. It comes from lengths, so the padding's value is
    irrelevant, and a pad id that equals EOS does no harm.
    """
    longest = max(len(prompt) + len(response) for prompt, response in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.long)
    targets = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, (prompt, response) in enumerate(sequences):
        tokens[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        targets[row, len(prompt) : len(prompt) + len(response)] = True
    return tokens, targets
