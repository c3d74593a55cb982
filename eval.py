"""How good is a checkpoint, or a file of responses? Greedy and self-consistency accuracy, and how consistent it is.

    python eval.py --model runs/toy/M2/model                                  # the miniature's test problems
    python eval.py --model DIR --task gsm8k --problems test.jsonl --out m0.jsonl
    python eval.py --responses runs/toy/M2/eval_responses.jsonl --against runs/toy/M0/eval_responses.jsonl

A file of responses made elsewhere needs, per line, `id` and `responses` (k texts); `gold` for accuracy; `greedy` (one
text) for greedy accuracy. With `--against`, the difference on the problems both files share gets a paired bootstrap
interval. Where gold is known, it also says how well votes tell right from wrong: Somers' D (paper, Tables 6 and 7), and
the order of correct and wrong responses, by votes and by a reward model (Figure 3):

    python eval.py --responses runs/toy/M0/eval_responses.jsonl --reward-model tasks/toy/reward
    python eval.py --pairs runs/gsm8k/M1/pairs.jsonl --task gsm8k --problems train.jsonl         # Table 5's margin

Letters in shape comments
    B  conversations      T  longest conversation      C  hidden_size      O  num_objectives
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model import Checkpoint, Config, Llama, gathered, rank_and_size
from sample import (SAMPLING_RULES, SamplingOptions, Task, Text, answer_problems, check_checkpoint, check_out,
                    load_checkpoint, prepare, read_problems)
from scpo import choose_winner, collate
from tasks.zebralogic.puzzle import gold_table, right_cells
from vote import (InputError, check_options, count_votes, extract_answer, option, parse_options, read_jsonl,
                  read_responses, response_answers, run_script, same_answer, was_ended, write_jsonl)

EVALUATION = (0, 4)  # behind the seed: evaluation draws the same numbers for every model, and others than a round does


def gold_answer(problem: dict, task: str) -> str | None:
    """The canonical gold answer of a problem as its publisher ships it, or None if it has none or a blanked one."""
    answer, solution = problem.get("answer"), problem.get("solution")
    if task == "zebralogic":
        return gold_table(solution)
    if task == "math":
        return extract_answer(str(solution or "") if answer is None else rf"\boxed{{{answer}}}", task)
    if answer is None:
        return None
    return extract_answer(str(answer), task) or extract_answer(f"#### {answer}", task)


def gold_of(row: dict, task: str) -> str | None:
    """The gold answer in a line of responses, whoever wrote it there."""
    return gold_answer({"answer": row.get("gold"), "solution": row.get("gold")}, task)


def correct(answer: str | None, gold: str, task: str) -> bool:
    """The task's metric: the same answer, of a puzzle every cell."""
    if task != "zebralogic":
        return same_answer(answer, gold, task)
    right, cells = right_cells(answer, gold)
    return right == cells


def majority(answers: Sequence[str | None], task: str, draw: random.Random) -> tuple[str | None, int]:
    """The answer with the most votes and its votes; a tie is drawn; (None, 0) if no response has an answer."""
    votes = count_votes(answers, task)
    winner = choose_winner(answers, votes, len(answers), 0.0, draw)
    return (None, 0) if winner is None else (answers[winner], votes[winner])


def score_row(row: dict, task: str) -> dict:
    """What one problem contributes: `greedy` and `self_consistency` (1, 0, or None without gold), shares of the k."""
    answers = response_answers(row, task)
    ended = was_ended(row)
    winner, votes = majority(answers, task, random.Random(str(row["id"])))
    gold = gold_of(row, task)
    greedy = extract_answer(row["greedy"], task) if row.get("greedy_ended", True) and "greedy" in row else None
    scores = {
        "greedy": None if gold is None or "greedy" not in row else float(correct(greedy, gold, task)),
        "self_consistency": None if gold is None else float(correct(winner, gold, task)),
        "vote_share": votes / len(answers),
        "sample_accuracy": None if gold is None else float(np.mean([correct(a, gold, task) for a in answers])),
        "unparsed": float(np.mean([e and extract_answer(t, task) is None for t, e in zip(row["responses"], ended)])),
        "truncated": 1 - float(np.mean(ended))}
    if task == "zebralogic" and gold is not None and "greedy" in row:
        right, cells = right_cells(greedy, gold)
        houses = len(json.loads(gold)["solution"])
        shape = houses, cells // houses
        easy = shape[0] == 2 or shape in ((3, 2), (3, 3))  # ZeroEval's split of October 2024: 280 of its 1,000 puzzles
        scores |= {"greedy_cells": (right, cells), "greedy_easy" if easy else "greedy_hard": scores["greedy"]}
    return scores


def score(rows: list[dict], task: str) -> dict:
    """Means over problems, in [0, 1], each accuracy with its standard error; None where gold or greedy is absent.

    ZebraLogic's four metrics are `greedy` (whole puzzles), `greedy_cells` (over all cells, those of a response without
    an answer wrong), `greedy_easy` and `greedy_hard`.
    """
    scores = [score_row(row, task) for row in rows]
    result: dict = {"problems": len(rows), "k": len(rows[0]["responses"])}
    for name in dict.fromkeys(name for s in scores for name in s):
        values = [s[name] for s in scores if s.get(name) is not None]
        if name == "greedy_cells":
            result[name] = sum(right for right, _ in values) / sum(cells for _, cells in values)
            continue
        result[name] = float(np.mean(values)) if values else None
        if name in ("greedy", "self_consistency"):
            result[f"{name}_se"] = float(np.std(values) / len(values) ** 0.5) if values else None
    return result


def paired_difference(a: list[dict], b: list[dict], task: str, name: str,
                      draws: int = 10_000) -> tuple[float, float, float]:
    """Mean of score `name` of a minus that of b on the problems they share, with its 95 % paired bootstrap interval.

    Raises InputError if no problem has that score in both.
    """
    others = {row["id"]: row for row in b}
    pairs = [(score_row(row, task)[name], score_row(others[row["id"]], task)[name]) for row in a if row["id"] in others]
    differences = np.array([x - y for x, y in pairs if x is not None and y is not None])
    if not len(differences):
        raise InputError(f"--against: the two files share no problem with a score for {name}")
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------------
# Analyses: can votes be trusted, and what would another judge say?


def order_shares(rows: list[dict], task: str, scores: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of all pairs of a correct and a wrong response to one problem, the shares that a judge orders right, ties and
    orders wrong (paper, Figure 3). scores: of each row's k responses, say their votes or rewards."""
    counts = {"right": 0, "tied": 0, "wrong": 0}
    for row, values in zip(rows, scores, strict=True):
        right = [correct(answer, gold_of(row, task), task) for answer in response_answers(row, task)]
        for a in (value for value, good in zip(values, right) if good):
            for b in (value for value, good in zip(values, right) if not good):
                counts["right" if a > b else "tied" if a == b else "wrong"] += 1
    return {name: count / max(1, sum(counts.values())) for name, count in counts.items()}


def somers_d(of: Sequence[float], given: Sequence[float]) -> float:
    """Somers' D(of | given): concordant less discordant pairs of points, over the pairs not tied on `given`."""
    (_, y), (_, x) = (np.unique(values, return_inverse=True) for values in (of, given))
    counts = np.zeros((y.max() + 1, x.max() + 1))  # points by value: pairs of cells, not of points
    np.add.at(counts, (y, x), 1)
    cells = list(np.ndindex(counts.shape))
    concordant = sum(counts[i, j] * counts[i + 1 :, j + 1 :].sum() for i, j in cells)
    discordant = sum(counts[i, j] * counts[i + 1 :, :j].sum() for i, j in cells)
    untied = (counts.sum() ** 2 - (counts.sum(0) ** 2).sum()) / 2
    return float((concordant - discordant) / untied) if untied else 0.0


def votes_and_accuracy(rows: list[dict], task: str, k: int) -> tuple[float, float]:
    """Somers' D(votes | accuracy) and D(accuracy | votes) among the most and the least voted of the first k responses
    of every problem, all with gold (paper, Tables 6 and 7; which direction it reports is not said)."""
    votes, right = [], []
    for row in rows:
        draw, answers = random.Random(f"{row['id']}"), response_answers(row, task)[:k]
        counts = count_votes(answers, task)
        most = draw.choice([i for i in range(k) if counts[i] == max(counts)])
        others = [i for i in range(k) if i != most]
        least = draw.choice([i for i in others if counts[i] == min(counts[j] for j in others)])
        for i in (most, least):
            votes.append(counts[i])
            right.append(correct(answers[i], gold_of(row, task), task))
    return somers_d(votes, right), somers_d(right, votes)


def pair_quality(pairs: list[dict], golds: dict, task: str) -> dict[str, float | None]:
    """Accuracy of the chosen and of the rejected responses, and its margin (paper, Table 5), where gold is known."""
    known = [pair for pair in pairs if golds.get(pair["id"]) is not None and pair["rejected"] is not None]
    chosen, rejected = (float(np.mean([correct(p[f"answer_{side}"], golds[p["id"]], task) for p in known])) if known
                        else None for side in ("chosen", "rejected"))
    return {"pairs": len(pairs), "with_gold": len(known), "chosen_accuracy": chosen, "rejected_accuracy": rejected,
            "margin": chosen - rejected if known else None}


# ---------------------------------------------------------------------------------------------------------------------
# A reward model


class Gating(nn.Module):
    """What a prompt asks of its answer: one weight per objective, from the prompt's final hidden state."""

    def __init__(self, hidden_size: int, num_objectives: int, gating_hidden_dim: int, gating_n_hidden: int,
                 gating_temperature: float):
        super().__init__()
        sizes = [hidden_size, *[gating_hidden_dim] * gating_n_hidden, num_objectives]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:]))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.temperature = gating_temperature

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return F.softmax(self.layers[-1](x) / self.temperature, dim=-1) * self.logit_scale  # (B, O)


class RewardModel(Checkpoint):
    """ArmoRM (arXiv 2406.12845; RLHFlow/ArmoRM-Llama3-8B-v0.1): a Llama body, O objectives, a gate that weighs them.

    With one objective the gate is constant, and this is a Bradley-Terry reward model with a linear head.
    """

    def __init__(self, config: Config, raw_config: dict):
        super().__init__(config, raw_config)
        sizes = {name: raw_config.get(name) for name in ("num_objectives", "gating_hidden_dim", "gating_n_hidden")}
        temperature = raw_config.get("gating_temperature")
        whole = all(isinstance(size, int) and size > 0 for size in sizes.values())
        if not whole or not isinstance(temperature, (int, float)) or temperature <= 0:
            raise InputError(f"the config.json of a reward model names {', '.join(sizes)} and gating_temperature, each "
                             "above 0; is this a language model's folder?")
        self.regression_layer = nn.Linear(config.hidden_size, sizes["num_objectives"], bias=False)
        self.register_buffer("reward_transform_matrix", torch.eye(sizes["num_objectives"]))  # takes verbosity out
        self.gating = Gating(config.hidden_size, **sizes, gating_temperature=temperature)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu") -> Self:
        """As for any checkpoint, but `dtype` is that of the body: the heads are small, and fp32 keeps scores apart."""
        model = super().from_pretrained(folder, torch.float32, device)
        model.model.to(dtype)
        return model

    def forward(self, tokens: Tensor, prompt_ends: Tensor, response_ends: Tensor) -> Tensor:
        """Scores (B,) of conversations tokens (B, T), padded on the right.

        prompt_ends (B,): position of the token that closes the prompt, where the gate reads; response_ends (B,): of the
        token that closes the response, where the objectives read.
        """
        hidden = self.model(tokens).float()  # (B, T, C); in bf16 different responses would tie
        rows = torch.arange(len(tokens), device=tokens.device)
        rewards = self.regression_layer(hidden[rows, response_ends]) @ self.reward_transform_matrix  # (B, O)
        return (self.gating(hidden[rows, prompt_ends]) * rewards).sum(-1)  # (B,)


@torch.inference_mode()
def reward_responses(model: RewardModel, text: Text, rows: list[dict], batch: int, progress: str) -> list[list[float]]:
    """The reward model's score of each of the k responses in each row, which it reads as conversations of one turn."""
    judged = [text.judged(row["question"], response) for row in rows for response in row["responses"]]
    sequences = [(prompt, response) for prompt, response, _ in judged]
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))  # alike lengths: little padding
    scores: dict[int, float] = {}
    device, (rank, ranks) = model.device, rank_and_size()
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    for chosen in tqdm(batches[rank::ranks], progress, unit="batch", leave=False, disable=rank > 0):
        tokens, _ = collate([sequences[i] for i in chosen])  # (B, T)
        ends = torch.tensor([sum(map(len, sequences[i])) - 1 for i in chosen])  # (B,) the last tokens
        closes = torch.tensor([judged[i][2] for i in chosen])
        scores |= zip(chosen, model(tokens.to(device), closes.to(device), ends.to(device)).tolist())
    scores, places = gathered(scores), iter(range(len(sequences)))
    return [[scores[next(places)] for _ in row["responses"]] for row in rows]


# ---------------------------------------------------------------------------------------------------------------------
# Responses of a model, and which epoch's model is best


def evaluate(model: Llama, text: Text, task: Task, problems: list[dict], *, k: int, name: str, **how) -> list[dict]:
    """One greedy response and k samples to each problem: lines for `eval_responses.jsonl`, with the gold answer."""
    greedy = answer_problems(model, text, task, problems, 1, progress=f"{name}: greedy", **how | {"temperature": 0.0})
    sampled = answer_problems(model, text, task, problems, k, progress=f"{name}: {k} samples", **how)
    return [row | {"greedy": g["responses"][0], "greedy_ended": g["ended"][0], "gold": gold_answer(problem, task.name)}
            for row, g, problem in zip(sampled, greedy, problems)]


CHOICES = {
    "last": "no dev problems needed",
    "dev": "the best greedy accuracy on --dev (as the paper; needs labels)",
    "votes": "the highest vote share on --dev, without collapse to few answers (needs no label)",
}
CHOSEN_BY = {"dev": "greedy", "votes": "vote_share"}  # the score that decides


def score_epoch(model: Llama, text: Text, task: Task, problems: list[dict], choose: str, **how) -> dict:
    """What --choose looks at: a checkpoint's greedy accuracy, or how its k samples agree, which reads no answer."""
    how |= {"k": 1, "temperature": 0.0} if choose == "dev" else {}
    responses = answer_problems(model, text, task, problems, **how)
    answers = [response_answers(row, task.name) for row in responses]
    if choose == "dev":
        golds = [gold_answer(problem, task.name) for problem in problems]
        right = [correct(answer, gold, task.name) for [answer], gold in zip(answers, golds) if gold is not None]
        return {"greedy": float(np.mean(right))}
    winners = [majority(given, task.name, random.Random(str(row["id"]))) for row, given in zip(responses, answers)]
    return {"vote_share": float(np.mean([votes / how["k"] for _, votes in winners])),
            "different_answers": len({answer for answer, _ in winners})}


def best_epoch(scores: list[dict], choose: str) -> int:
    """The epoch to keep, from each one's score on the dev problems; epoch 0 is M_{t-1}. A tie: the earlier one."""
    epochs = [row for row in scores if row["epoch"] > 0]
    if choose == "votes":
        # A model that gives every problem one answer is most consistent of all: half of M_{t-1}'s variety must remain.
        varied = [row for row in epochs if row["different_answers"] >= 0.5 * scores[0]["different_answers"]]
        epochs = varied or epochs[:1]
    return max(epochs, key=lambda row: row[CHOSEN_BY[choose]])["epoch"]


# ---------------------------------------------------------------------------------------------------------------------
# As a script


def percent(value: float | None, se: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" ± {100 * se:.1f}" if se is not None else "")


COLUMNS = {"greedy": "greedy", "greedy_cells": "cells", "greedy_easy": "easy", "greedy_hard": "hard",
           "self_consistency": "self-consistency", "vote_share": "vote share", "unparsed": "unparsed",
           "truncated": "cut off"}


def table(results: dict[str, dict]) -> str:
    """Results by model as aligned text: shares in %, accuracies ± standard error over the problems."""
    names = [name for name in COLUMNS if any(name in r for r in results.values())]
    lines = [["", *(COLUMNS[name] for name in names), "pairs", "seconds"]]
    for model, r in results.items():
        lines.append([model, *(percent(r.get(name), r.get(f"{name}_se")) for name in names), str(r.get("pairs", "–")),
                      f"{r['seconds']:.0f}" if "seconds" in r else "–"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


@dataclass
class Options(SamplingOptions):
    responses: str | None = option(None, "score this file instead of a model")
    against: str | None = option(None, "a second file of responses: report the paired difference to it")
    reward_model: str | None = option(None, "checkpoint folder in ArmoRM's layout: how does it order the responses?")
    pairs: str | None = option(None, "a pairs.jsonl: how often are chosen and rejected right? Gold is in --problems")
    out: str | None = option(None, "where the responses of a model go; an existing file is not overwritten")


def responses_of_model(options: Options, task: Task) -> list[dict]:
    """Load the checkpoint and let it answer, as the options say."""
    if options.out:
        check_out(options.out)
    problems, model, text, how = prepare(options, task, "test")
    rows = evaluate(model, text, task, problems, seed=[options.seed, *EVALUATION], name="eval", **how)
    if options.out:
        write_jsonl(options.out, rows)
    return rows


def judges(rows: list[dict], options: Options, task: Task) -> dict:
    """Whether votes, and the reward model if one is given, tell right from wrong responses, where gold is known."""
    rows = [row for row in rows if gold_of(row, task.name) is not None]
    votes = [count_votes(response_answers(row, task.name), task.name) for row in rows]
    found = {"votes": order_shares(rows, task.name, votes)}
    if options.reward_model:
        if not all(isinstance(row.get("question"), str) for row in rows):
            raise InputError("--reward-model: the file of responses needs a `question` in each line")
        judge, text = load_checkpoint(options.reward_model, "auto", options.device, options.dtype, RewardModel,
                                      "--reward-model")
        batch = max(1, options.rows // len(rows[0]["responses"]))  # whole conversations, not rows that share a prompt
        found["reward"] = order_shares(rows, task.name, reward_responses(judge, text, rows, batch, "rewards"))
    for name, shares in found.items():
        print(f"correct/wrong pairs of responses by {name}: "
              + ", ".join(f"{100 * share:.1f} % {order}" for order, share in shares.items()))
    most = min(len(row["responses"]) for row in rows)
    somers = {k: votes_and_accuracy(rows, task.name, k) for k in (2, 4, 8, 16, 32) if k <= most}
    for k, (votes_given, accuracy_given) in somers.items():
        print(f"Somers' D at k = {k}: of votes given accuracy {votes_given:.2f}, of accuracy given votes "
              f"{accuracy_given:.2f}")
    return {"order": found, "somers_d": somers}


def show_pair_quality(options: Options, task: Task) -> None:
    pairs = read_jsonl(options.pairs, ("id", "answer_chosen", "rejected"))
    if options.problems is None:
        raise InputError("--pairs: needs --problems, the problems of the pairs with their answers")
    golds = {problem["id"]: gold_answer(problem, task.name) for problem in read_problems(options.problems, task)}
    result = pair_quality(pairs, golds, task.name)
    print(f"{result['pairs']} pairs; of {result['with_gold']} with a gold answer the chosen response is right in "
          f"{percent(result['chosen_accuracy'])} %, the rejected one in {percent(result['rejected_accuracy'])} %, "
          f"margin {percent(result['margin'])}")
    print(json.dumps(result))


def main() -> None:
    options = parse_options(Options, __doc__)
    check_options(options, SAMPLING_RULES)
    task = Task.load(options.task)
    if options.pairs:
        return show_pair_quality(options, task)
    if options.responses and options.out:
        raise InputError("--out: keeps the responses of a model; --responses has its file already")
    if options.reward_model:
        check_checkpoint(options.reward_model, "auto", RewardModel, "--reward-model")
    other = read_responses(options.against) if options.against else []
    given = read_responses(options.responses)[: options.limit] if options.responses else None
    rows = given or responses_of_model(options, task)
    result = score(rows, task.name)
    print(table({options.responses or options.model or "M0": result}))
    if result["self_consistency"] is not None:
        result |= judges(rows, options, task)
    elif options.reward_model:
        raise InputError("--reward-model: it is compared with gold answers, and no line has one")
    else:
        print("no gold answers: consistency can be measured, accuracy cannot")
    for name in ("greedy", "self_consistency") if other else ():
        if result[name] is not None:
            mean, low, high = paired_difference(rows, other, task.name, name)
            print(f"{name} minus that of {options.against}: {100 * mean:+.1f} points, 95 % interval "
                  f"[{100 * low:+.1f}, {100 * high:+.1f}]")
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
