"""Which epoch's model becomes M_t: `--select` of train.py.

The paper takes the best of up to ten by accuracy on labelled dev problems. The default takes the
last one, and so reads no label.
"""

import json
import random
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.cli import InputError
from common.files import NUMBER
from common.journal import Journal
from common.options import load_checkpoint
from eval import EVALUATING, is_correct, majority_vote
from sample import SamplingParams, answer_problems
from tasks.task import Task, gold_answer, read_problems
from vote import response_answers


def score_epochs(source: Path, folder: Path, args: Namespace, name: str) -> list[dict]:
    """How good the models after each epoch, in folder/epochs, are on the dev problems.

    Epoch 0 is M_{t-1} in `source`: by votes, half the variety of its answers must remain.
    """
    task, params = Task.load(args.task), SamplingParams.from_args(args)
    problems, k = read_problems(args.dev, task, args.limit), args.k
    first = 0
    if args.select == "dev":
        first, k, params = 1, 1, replace(params, temperature=0.0)
    rows = []
    for epoch in range(first, args.epochs + 1):
        checkpoint = folder / f"epochs/{epoch}" if epoch else source
        model, tokenizer = load_checkpoint(checkpoint, args.chat, args.device, args.dtype,
                                           args.system)
        journal = Journal(folder / "epochs.jsonl", checkpoint, args)
        responses = answer_problems(model, tokenizer, task, problems, k, params,
                                    seed=[args.seed, *EVALUATING], journal=journal,
                                    desc=f"{name}, epoch {epoch}")
        rows.append({"epoch": epoch, **score_epoch(responses, problems, args)})
        print(f"{name}, {json.dumps(rows[-1])} on dev")
        del model  # before the next one is loaded
    return rows


def score_epoch(responses: list[dict], problems: list[dict], args: Namespace) -> dict:
    """Greedy accuracy, or how the k samples agree, which reads no answer."""
    answers = [response_answers(row, args.task) for row in responses]
    if args.select == "dev":
        right = []
        for [answer], problem in zip(answers, problems):
            gold = gold_answer(problem, args.task)
            if gold is not None:
                right.append(is_correct(answer, gold, args.task))
        return {"greedy": float(np.mean(right))}
    winners, shares = set(), []
    for row, given in zip(responses, answers):
        winner, votes = majority_vote(given, random.Random(str(row["id"])))
        winners.add(winner)
        shares.append(votes / len(given))
    return {"vote_share": float(np.mean(shares)), "different_answers": len(winners)}


def best_epoch(rows: list[dict], args: Namespace, path: Path) -> int:
    """The epoch to keep, from the lines of epochs.jsonl; of equal ones the first.

    path: that file. Raises InputError if its lines are not those that score_epochs makes.
    """
    first, scores = 0, ["vote_share", "different_answers"]
    if args.select == "dev":
        first, scores = 1, ["greedy"]
    good = [row["epoch"] for row in rows] == list(range(first, args.epochs + 1))
    for row in rows:
        good = good and all(isinstance(row.get(name), NUMBER[0]) for name in scores)
    if not good:
        wanted = f"the {' and '.join(scores)} of the epochs {first} to {args.epochs}"
        raise InputError(f"{path}: must have {wanted}; delete the file to make it anew")
    epochs = [row for row in rows if row["epoch"] > 0]
    if args.select == "dev":
        return max(epochs, key=lambda row: row["greedy"])["epoch"]
    # A model that gives every problem one answer agrees with itself best of all.
    least = 0.5 * rows[0]["different_answers"]
    varied = [row for row in epochs if row["different_answers"] >= least]
    return max(varied or epochs[:1], key=lambda row: row["vote_share"])["epoch"]
