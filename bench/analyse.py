"""Can votes be trusted? The paper's analyses, of a file of responses with gold answers or of pairs.

    python bench/analyse.py RESPONSES                          # Somers' D: the paper's Tables 6, 7
    python bench/analyse.py RESPONSES --reward-model DIR       # and Figure 3
    python bench/analyse.py RESPONSES --against OTHERS         # the difference, with its interval
    python bench/analyse.py --pairs runs/toy/M1/pairs.jsonl    # Table 5: accuracy of the pairs

RESPONSES is an eval_responses.jsonl of train.py, a file of `eval.py --out`, or one made elsewhere
(see eval.py). Gold for --pairs comes from --problems; the toy task has its own, and a judge.
"""

import json
import random
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.cli import ArgumentParser, InputError, run_script
from common.files import read_jsonl, read_responses
from common.options import add_sampling_options, load_checkpoint, parse_args
from common.reward_model import RewardModel, reward_responses
from eval import is_correct, percent, score_row
from tasks.task import Task, gold_answer, read_problems
from vote import count_votes, response_answers

MANY_K = (2, 4, 8, 16, 32)  # of Table 7, and one more


def gold_of(row: dict, task: str) -> str | None:
    """The gold answer in a line of responses, whoever wrote it there."""
    return gold_answer({"answer": row.get("gold"), "solution": row.get("gold")}, task)


# --------------------------------------------------------------------------------------------
# Two files on the same problems


def paired_difference(
    a: list[dict], b: list[dict], task: str, name: str
) -> tuple[float, float, float]:
    """Mean of the score `name` of a minus that of b, on the problems that they share.

    With its 95 % interval: (mean, low, high). Raises InputError if no problem has that score in
    both.
    """
    others = {row["id"]: row for row in b}
    differences = []
    for row in a:
        if row["id"] in others:
            x, y = score_row(row, task)[name], score_row(others[row["id"]], task)[name]
            if x is not None and y is not None:
                differences.append(x - y)
    if not differences:
        raise InputError(f"--against: the two files share no problem with a score for {name}")
    return bootstrap(differences)


def bootstrap(differences: Sequence[float], n_draws: int = 10_000) -> tuple[float, float, float]:
    """The mean of paired differences, and its 95 % interval: (mean, low, high)."""
    rng = np.random.default_rng(0)
    means = []
    for _ in range(n_draws):
        means.append(rng.choice(differences, len(differences)).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(np.mean(differences)), float(low), float(high)


# --------------------------------------------------------------------------------------------
# Judges of responses: votes, and a reward model


def order_shares(
    rows: list[dict], task: str, scores: Sequence[Sequence[float]]
) -> dict[str, float]:
    """How a judge orders the pairs of a correct and a wrong response to one problem (Figure 3).

    scores: of each row's k responses, say their votes or rewards. Returns the shares of the pairs
    that it orders right, ties, and orders wrong.
    """
    counts = {"right": 0, "tied": 0, "wrong": 0}
    for row, values in zip(rows, scores, strict=True):
        gold, good, bad = gold_of(row, task), [], []
        for value, answer in zip(values, response_answers(row, task), strict=True):
            (good if is_correct(answer, gold, task) else bad).append(value)
        for a in good:
            for b in bad:
                order = "tied" if a == b else "right" if a > b else "wrong"
                counts[order] += 1
    total = max(1, sum(counts.values()))
    return {order: count / total for order, count in counts.items()}


def votes_and_accuracy(rows: list[dict], task: str, k: int) -> tuple[float, float]:
    """Somers' D(votes | accuracy) and D(accuracy | votes) (Tables 6 and 7).

    Among the most and the least voted of the first k responses of each problem, all with gold. The
    paper does not say which direction it reports.
    """
    votes, right = [], []
    for row in rows:
        rng, answers = random.Random(f"{row['id']}"), response_answers(row, task)[:k]
        counts = count_votes(answers)
        most = rng.choice([i for i in range(k) if counts[i] == max(counts)])
        others = [i for i in range(k) if i != most]
        fewest = min(counts[i] for i in others)
        least = rng.choice([i for i in others if counts[i] == fewest])
        for i in (most, least):
            votes.append(counts[i])
            right.append(is_correct(answers[i], gold_of(row, task), task))
    return somers_d(votes, right), somers_d(right, votes)


def somers_d(of: Sequence[float], given: Sequence[float]) -> float:
    """D(of | given): concordant less discordant pairs, over the pairs not tied on `given`."""
    _, y = np.unique(of, return_inverse=True)
    _, x = np.unique(given, return_inverse=True)
    table = np.zeros((y.max() + 1, x.max() + 1))  # points by value
    np.add.at(table, (y, x), 1)
    difference = 0.0
    for i, j in np.ndindex(table.shape):
        concordant = table[i + 1 :, j + 1 :].sum()
        discordant = table[i + 1 :, :j].sum()
        difference += table[i, j] * (concordant - discordant)
    untied = (table.sum() ** 2 - (table.sum(0) ** 2).sum()) / 2
    return float(difference / untied) if untied else 0.0


# --------------------------------------------------------------------------------------------
# Pairs


def pair_quality(pairs: list[dict], golds: dict, task: str) -> dict[str, float | None]:
    """Accuracy of the chosen and of the rejected responses, and its margin (Table 5)."""
    right = {"chosen": [], "rejected": []}
    for pair in pairs:
        gold = golds.get(pair["id"])
        if gold is not None and pair["rejected"] is not None:
            for side in right:
                right[side].append(is_correct(pair[f"answer_{side}"], gold, task))
    quality = {"pairs": len(pairs), "with_gold": len(right["chosen"]), "chosen_accuracy": None,
               "rejected_accuracy": None, "margin": None}
    if right["chosen"]:
        for side in right:
            quality[f"{side}_accuracy"] = float(np.mean(right[side]))
        quality["margin"] = quality["chosen_accuracy"] - quality["rejected_accuracy"]
    return quality


# --------------------------------------------------------------------------------------------
# As a script


def show_judges(rows: list[dict], args: Namespace) -> dict:
    """How votes, and the reward model if one is given, tell right from wrong responses."""
    rows = [row for row in rows if gold_of(row, args.task) is not None]
    if not rows:
        raise InputError(f"{args.responses}: no line has a `gold` answer to compare with")
    votes = [count_votes(response_answers(row, args.task)) for row in rows]
    orders = {"votes": order_shares(rows, args.task, votes)}
    if args.reward_model:
        if not all(isinstance(row.get("question"), str) for row in rows):
            raise InputError(f"{args.responses}: --reward-model needs a `question` in each line")
        judge, tokenizer = load_checkpoint(args.reward_model, "auto", args.device, args.dtype,
                                           kind=RewardModel, option="--reward-model")
        batch_size = max(1, args.max_num_seqs // len(rows[0]["responses"]))
        rewards = reward_responses(judge, tokenizer, rows, batch_size, "rewards")
        orders["reward"] = order_shares(rows, args.task, rewards)
    for judge, shares in orders.items():
        shown = ", ".join(f"{100 * share:.1f} % {order}" for order, share in shares.items())
        print(f"correct/wrong pairs of responses by {judge}: {shown}")
    least_k, dependence = min(len(row["responses"]) for row in rows), {}
    for k in MANY_K:
        if k <= least_k:
            dependence[k] = votes_and_accuracy(rows, args.task, k)
            print(f"Somers' D at k = {k}: of votes given accuracy {dependence[k][0]:.2f}, "
                  f"of accuracy given votes {dependence[k][1]:.2f}")
    return {"order": orders, "somers_d": dependence}


def show_difference(rows: list[dict], args: Namespace) -> dict:
    others, found = read_responses(args.against), {}
    for name in ("greedy", "self_consistency"):
        if any(score_row(row, args.task)[name] is not None for row in rows):
            mean, low, high = paired_difference(rows, others, args.task, name)
            print(f"{name} minus that of {args.against}: {100 * mean:+.1f} points, 95 % interval "
                  f"[{100 * low:+.1f}, {100 * high:+.1f}]")
            found[name] = [mean, low, high]
    return {"difference": found}


def show_pair_quality(args: Namespace) -> dict:
    if args.problems is None:
        raise InputError("--pairs: needs --problems, the problems of the pairs with their answers")
    pairs = []
    for pair in read_jsonl(args.pairs, ("id", "answer_chosen", "rejected")):
        pairs.append({**pair, "id": str(pair["id"])})
    golds = {}
    for problem in read_problems(args.problems, Task.load(args.task)):
        golds[problem["id"]] = gold_answer(problem, args.task)
    result = pair_quality(pairs, golds, args.task)
    print(f"{result['pairs']} pairs; of {result['with_gold']} with a gold answer the chosen "
          f"response is right in {percent(result['chosen_accuracy'])} %, the rejected one in "
          f"{percent(result['rejected_accuracy'])} %, margin {percent(result['margin'])}")
    return result


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_sampling_options(parser)
    add = parser.add_argument
    add("responses", nargs="?", help="a file of responses with gold answers")
    add("--against", help="a second file of responses: the paired difference to it")
    add("--reward-model", help="checkpoint folder in ArmoRM's layout: how does it order them?")
    add("--pairs", help="a pairs.jsonl: how often are chosen and rejected right? Gold: --problems")
    args = parse_args(parser, problems="answers")
    if args.pairs:
        result = show_pair_quality(args)
    elif args.responses is None:
        raise InputError("give a file of responses, or --pairs")
    else:
        rows = read_responses(args.responses)[: args.limit]
        result = show_difference(rows, args) if args.against else show_judges(rows, args)
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
