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
which all k agree, the mean over a batch. The last section alone takes a model: it turns a batch into its gradient.

Letters in shape comments
    B  pairs      R  sequences: the chosen ones of B pairs, then the rejected ones      T  longest sequence
"""

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence

from model import Llama, rank_and_size, summed
from vote import count_votes

# ---------------------------------------------------------------------------------------------------------------------
# Steps 3-5: votes → pair. Answers are canonical here: one spelling per value, None for none


def pair_weight(votes_chosen: int, votes_rejected: int, k: int) -> float:
    """w(x) = (V(y+) - V(y-)) / k, in [0, 1] (section 2). k counts all responses, also those without an answer."""
    return (votes_chosen - votes_rejected) / k


def draw_response(answers: Sequence[str | None], among: list[int], draw: random.Random) -> int:
    """One of the responses `among`, where answers tie: first an answer is drawn, then one of its responses."""
    answer = draw.choice(list(dict.fromkeys(answers[i] for i in among)))  # in order of appearance: reproducible
    return draw.choice([i for i in among if answers[i] == answer])


def choose_winner(answers: Sequence[str | None], votes: Sequence[int], k: int, tau: float,
                  draw: random.Random) -> int | None:
    """The index of y+, or None if nobody voted or V(y+) < τ, which is tau · k votes."""
    most = max(votes[:k])
    if most == 0 or most < tau * k - 1e-9:  # the tiny slack absorbs 0.7 · 10 = 7.000…01
        return None
    return draw_response(answers, [i for i in range(k) if votes[i] == most], draw)


def choose_pair(answers: Sequence[str | None], votes: Sequence[int], k: int, tau: float,
                draw: random.Random) -> tuple[tuple[int, int] | None, str]:
    """The indices of y+ and y- among the responses to one problem.

    answers: of the k responses that vote, then of any extra ones, which do not vote and can only be rejected.
    votes: V of each. tau: the least share of the k votes for y+; the paper's τ is tau · k votes.
    draw: decides ties, seeded from (seed, round, problem).
    Returns (chosen, rejected) or None, and the reason: "pair", "below tau", "unanimous", "tied".
    """
    chosen = choose_winner(answers, votes, k, tau, draw)
    if chosen is None:
        return None, "below tau"
    others = [i for i, answer in enumerate(answers) if answer != answers[chosen]]
    if not others:
        return None, "unanimous"
    fewest = min(votes[i] for i in others)  # 0 for a response without an answer: never chosen, but it may be rejected
    if fewest == votes[chosen]:
        return None, "tied"  # w(x) = 0: it would only dilute the mean
    return (chosen, draw_response(answers, [i for i in others if votes[i] == fewest], draw)), "pair"


def unanimous(answers: Sequence[str | None]) -> bool:
    """Whether all k responses agree. Then nothing can be rejected, and hotter samples are drawn to find something."""
    return answers[0] is not None and len(set(answers)) == 1


# What the paper compares with: other judges than the vote (section 3)


def choose_gold(answers: Sequence[str | None], k: int, gold: str | None,
                draw: random.Random) -> tuple[tuple[int, int] | None, str]:
    """IRPO with gold (arXiv 2404.19733): a random correct and a random wrong response; no answer is wrong too.

    Of the responses after the first k one can only be rejected, and only if all k are right.
    """
    right = [i for i in range(k) if answers[i] == gold]
    pool = range(k) if len(right) < k else range(k, len(answers))
    wrong = [i for i in pool if answers[i] != gold]
    if gold is None or not right or not wrong:
        return None, "no gold answer" if gold is None else "none right" if not right else "none wrong"
    return (draw.choice(right), draw.choice(wrong)), "pair"


def choose_reward(rewards: Sequence[float]) -> tuple[tuple[int, int] | None, str]:
    """IRPO with a reward model: the highest against the lowest of k rewards; of equal ones, as equal texts have, the
    first."""
    chosen, rejected = rewards.index(max(rewards)), rewards.index(min(rewards))
    return ((chosen, rejected), "pair") if rewards[chosen] > rewards[rejected] else (None, "tied")


SUPERVISION = {
    "scpo": "votes, weighted by w(x)",
    "semi": "gold where a problem has an answer, votes elsewhere (semi-supervised ScPO; needs some labels)",
    "gold": "a correct against a wrong response, w = 1 (IRPO; needs labels)",
    "reward": "the highest against the lowest score of --reward-model, w = 1 (IRPO with a reward model)",
    "lmsi": "the votes' winner alone is a target of NLL, nothing is rejected (LMSI, arXiv 2210.11610)",
    "coin": "the votes' pair with its w, but a coin decides which of the two is chosen (a control)",
}


def build_pair(row: dict, answers: Sequence[str | None], tau: float, task: str, draw: random.Random,
               supervision: str = "scpo", gold: str | None = None, rewards: Sequence[float] = (),
               weighted: bool = True) -> tuple[dict | None, str]:
    """A line of `pairs.jsonl` from a line of `responses.jsonl`, or None and the reason why the problem gives no pair.

    answers: of the row's responses, then of its extra ones. supervision: a key of SUPERVISION; gold and rewards: what
    it asks for. weighted: w(x) on the pairs that votes decide, else w = 1 there too.
    """
    texts = row["responses"] + row.get("extra_responses", [])
    ended = row["ended"] + row.get("extra_ended", [])
    k = len(row["responses"])
    by_votes = supervision in ("scpo", "coin") or supervision == "semi" and gold is None
    votes = count_votes(answers, task, k)
    if by_votes:
        pair, reason = choose_pair(answers, votes, k, tau, draw)
    elif supervision == "lmsi":
        target = choose_winner(answers, votes, k, tau, draw)
        pair, reason = (None, "below tau") if target is None else ((target, None), "pair")
    elif supervision == "reward":
        pair, reason = choose_reward(rewards)
    else:
        pair, reason = choose_gold(answers, k, gold, draw)
    if pair is None:
        return None, reason
    weight = pair_weight(votes[pair[0]], votes[pair[1]], k) if weighted and by_votes else 1.0
    places = pair[::-1] if supervision == "coin" and draw.random() < 0.5 else pair
    out = {"id": row["id"], "prompt": row["prompt"], "chosen": None, "rejected": None, "weight": weight, "k": k}
    for side, i in zip(("chosen", "rejected"), places):
        if i is not None:
            out |= {side: texts[i], f"votes_{side}": votes[i], f"answer_{side}": answers[i], f"sample_{side}": i,
                    f"ended_{side}": ended[i]}
    return out, reason


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
    nll = nll_loss(policy_chosen_logps, chosen_lengths)  # (B,)
    losses = weights * preference + weights * alpha * nll  # (B,) w on both terms
    return losses, chosen_rewards.detach(), rejected_rewards.detach()


def nll_loss(policy_chosen_logps: Tensor, chosen_lengths: Tensor) -> Tensor:
    """The negative log-likelihood per token, (B,): the loss's second term, and all of LMSI's loss (section 3)."""
    return -policy_chosen_logps / chosen_lengths


def collate(sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """(prompt, response) token lists → tokens (R, T), padded on the right, and targets (R, T) bool.

    targets marks the response tokens, the closing EOS among them. It comes from lengths, so the padding's value is
    irrelevant, and a pad id that equals EOS does no harm.
    """
    tokens = [torch.tensor(prompt + response) for prompt, response in sequences]
    targets = [torch.tensor([False] * len(prompt) + [True] * len(response)) for prompt, response in sequences]
    return pad_sequence(tokens, batch_first=True), pad_sequence(targets, batch_first=True)


# ---------------------------------------------------------------------------------------------------------------------
# The gradient of a batch of pairs. An encoded pair has "chosen" and, but for LMSI, "rejected", (prompt, response) token
# lists each, and the "weight" and reference log-probs of its line in pairs.jsonl.


def sequences(batch: list[dict]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of the chosen responses, then of the rejected ones that there are."""
    return [e["chosen"] for e in batch] + [e["rejected"] for e in batch if "rejected" in e]


def pair_logps(model: Llama, batch: list[dict]) -> tuple[Tensor, Tensor]:
    """log M(y+|x) and log M(y-|x) of encoded pairs, in nats, fp32, (B,) each; the second is empty for LMSI."""
    logps = model.response_logps(*(x.to(model.device) for x in collate(sequences(batch))))  # (R,)
    return logps[: len(batch)], logps[len(batch) :]


def precision(model: Llama, dtype: str) -> torch.autocast | nullcontext:
    """bf16 matrix products over fp32 weights: bf16 weights would lose updates smaller than their 8 bits.

    A sharded model puts its blocks together in bf16 by itself.
    """
    device = model.device.type
    plain = dtype == "bfloat16" and not isinstance(model.model.norm.weight, DTensor)
    return torch.autocast(device, torch.bfloat16) if plain else nullcontext()


def share_out(items: list, size: int) -> list[list]:
    """This rank's part of the items, in lists of up to `size`. Every rank gets as many lists, some may be empty: what
    all compute in step must be the same number of calls."""
    rank, ranks = rank_and_size()
    calls, mine = math.ceil(len(items) / (ranks * size)), items[rank::ranks]
    return [mine[i * size : (i + 1) * size] for i in range(calls)]


def accumulate(model: Llama, batch: list[dict], *, micro_batch: int, beta: float, alpha: float,
               dtype: str = "float32") -> dict[str, float]:
    """Gradients of the batch's mean loss, in micro-batches, and the mean over the batch of every gauge.

    Each micro-batch's sum is divided by the pairs of the whole batch, so any split, over time or over ranks, gives the
    same gradient. Ranks exchange gradients once, after the last micro-batch.
    """
    # Alike lengths share a micro-batch, which then has little padding.
    batch = sorted(batch, key=lambda e: max(len(p) + len(r) for p, r in sequences([e])), reverse=True)
    ranks, parts, sums = rank_and_size()[1], share_out(batch, micro_batch), []
    for i, part in enumerate(parts):
        used = part or batch[-1:]  # a rank without a pair computes along, for nothing
        column = lambda values: torch.tensor(list(values), device=model.device)  # (B,)
        lengths, weights = column(len(e["chosen"][1]) for e in used), column(e["weight"] for e in used)
        references = [column(e[f"reference_{side}_logp"] for e in used)  # now: a copy waits for what the device does
                      for side in ("chosen", "rejected") if "rejected" in used[0]]
        if ranks > 1:
            model.set_requires_gradient_sync(i + 1 == len(parts))
        with precision(model, dtype):
            chosen, rejected = pair_logps(model, used)  # (B,) each
        nll = nll_loss(chosen, lengths)  # (B,)
        gauges = {"loss": nll, "nll": nll, "chosen_logp": chosen}  # all there is without a rejected response
        if len(rejected):
            losses, chosen_rewards, rejected_rewards = scpo_loss(chosen, rejected, *references, lengths, weights, beta,
                                                                 alpha)
            gauges |= {"loss": losses, "rejected_logp": rejected, "chosen_reward": chosen_rewards,
                       "rejected_reward": rejected_rewards, "margin": chosen_rewards - rejected_rewards,
                       "accuracy": (chosen_rewards > rejected_rewards).float()}
        (gauges["loss"].sum() * (ranks if part else 0) / len(batch)).backward()  # FSDP takes the mean over the ranks
        sums.append(torch.stack([values.detach().sum() for values in gauges.values()]) * bool(part))
    means = torch.stack(sums).cpu().double().sum(0) / len(batch)  # one copy from the device
    return summed(dict(zip(gauges, means.tolist())))


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then half a cosine to 0; steps count from 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
