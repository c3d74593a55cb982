"""How good is a checkpoint, or a file of responses? Accuracy, and how consistent it is.

    python eval.py --model runs/toy/M2/model                       # the toy task's test problems
    python eval.py --model DIR --task gsm8k --problems test.jsonl --out m0.jsonl
    python eval.py --responses runs/toy/M2/eval_responses.jsonl

A file of responses made elsewhere needs `responses` (k texts) in each line; `gold` for accuracy;
`greedy`, one text, for greedy accuracy; and `id`, if bench/analyse.py is to compare it.
"""

import json
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.checks import check_lengths
from common.cli import ArgumentParser, InputError, path_name, printable, run_script
from common.files import check_out, read_responses, write_new
from common.journal import Journal
from common.options import add_sampling_options, load_checkpoint, parse_args
from model import Llama
from sample import GREEDY, SamplingParams, answer_problems
from tasks.chat import ChatTokenizer
from tasks.task import Task, gold_answer, normalize_gold, read_problems
from tasks.zebralogic.puzzle import is_easy, right_cells
from vote import extract_answer, response_answers, ended_flags

# Random numbers come from (seed, round, what for), here the same for every model: round 0, and
# what for = 4, since train.py has 1 to 3.
EVALUATING = (0, 4)


def evaluate_checkpoint(
    folder: Path, path: str, args: Namespace, out: str | Path | None, name: str
) -> list[dict]:
    """Let the model in a folder answer a file of problems. Returns the lines of `out`.

    out: the file that the caller makes of them; finished batches are kept beside it meanwhile.
    """
    task = Task.load(args.task)
    problems = read_problems(path, task, args.limit)
    check_lengths(path, folder, task, args)
    model, tokenizer = load_checkpoint(folder, args.chat, args.device, args.dtype, args.system)
    params = SamplingParams.from_args(args)
    journal = Journal(out, folder, args) if out else None
    return evaluate(model, tokenizer, task, problems, args.k, params, args.seed, journal, name)


def evaluate(
    model: Llama, tokenizer: ChatTokenizer, task: Task, problems: list[dict], k: int,
    params: SamplingParams, seed: int, journal: Journal | None = None, name: str = "",
) -> list[dict]:
    """One greedy response and k samples to each problem, with its gold answer."""
    seeds = [seed, *EVALUATING]
    rows = answer_problems(model, tokenizer, task, problems, 1 + k, params, seed=seeds,
                           first_sample=GREEDY, journal=journal,
                           desc=f"{name}: a greedy response and {k} samples")
    for row, problem in zip(rows, problems):
        row["greedy"], row["greedy_ended"] = row["responses"].pop(0), row["ended"].pop(0)
        row["gold"] = gold_answer(problem, task.name)
        del row["response_ids"]  # nobody trains on these
    return rows


# --------------------------------------------------------------------------------------------
# Scores


def score(rows: list[dict], task: str) -> dict:
    """Means over the problems, from 0 to 1, and standard errors of the accuracies.

    Accuracies are over the `graded` problems, whose gold answer can be read; None
    stands where there are none, or no greedy response. Puzzles have four greedy
    scores: whole puzzles, easy and hard ones, and cells (all are wrong in a
    response without an answer).
    """
    scores = [score_row(row, task) for row in rows]
    graded = sum(row_scores["self_consistency"] is not None for row_scores in scores)
    result: dict = {"problems": len(rows), "graded": graded, "k": len(rows[0]["responses"])}
    names = dict.fromkeys(name for row_scores in scores for name in row_scores)
    for name in names:
        values = [row_scores[name] for row_scores in scores if row_scores.get(name) is not None]
        if name == "greedy_cells":
            right, cells = np.sum(values, axis=0)
            result[name] = float(right / cells)
            continue
        result[name] = float(np.mean(values)) if values else None
        if name in ("greedy", "self_consistency"):
            result[f"{name}_se"] = None
            if values:
                result[f"{name}_se"] = float(np.std(values) / len(values) ** 0.5)
    return result


def score_row(row: dict, task: str) -> dict:
    """What one problem contributes to each score."""
    answers, ended = response_answers(row, task), ended_flags(row)
    winner, votes = majority_vote(answers, random.Random(str(row["id"])))
    unparsed = []  # as ZeroEval counts: a table with blank cells is parsed, though it cannot vote
    for text, complete in zip(row["responses"], ended):
        unparsed.append(complete and extract_answer(text, task) is None)
    scores = {"greedy": None, "self_consistency": None, "vote_share": votes / len(answers),
              "sample_accuracy": None, "unparsed": float(np.mean(unparsed)),
              "truncated": 1 - float(np.mean(ended))}
    gold = normalize_gold(row.get("gold"), task)
    if gold is None:
        return scores
    scores["self_consistency"] = is_correct(winner, gold, task)
    scores["sample_accuracy"] = float(np.mean([is_correct(a, gold, task) for a in answers]))
    if "greedy" in row:
        greedy = None
        if row.get("greedy_ended", True):
            greedy = extract_answer(row["greedy"], task)
        scores["greedy"] = is_correct(greedy, gold, task)
        if task == "zebralogic":
            scores["greedy_cells"] = right_cells(greedy, gold)
            scores["greedy_easy" if is_easy(gold) else "greedy_hard"] = scores["greedy"]
    return scores


def majority_vote(answers: Sequence[str | None], rng: random.Random) -> tuple[str | None, int]:
    """The most frequent answer and its votes; a tie is drawn; (None, 0) if there is no answer.

    Not a function of scpo.py: a change of the method must not move the scale that
    measures it. (It shares the extractors and the sampling with the method, and
    changing those does move it.)
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return None, 0
    most = max(votes.values())
    return rng.choice([answer for answer, count in votes.items() if count == most]), most


def is_correct(answer: str | None, gold: str, task: str) -> float:
    """The task's metric, 1.0 or 0.0: the same answer, or every cell of a puzzle."""
    if task == "zebralogic":
        right, cells = right_cells(answer, gold)
        return float(right == cells)
    return float(answer == gold)


def warn_of_collapse(rows: list[dict], task: str) -> None:
    """A model that answers everything alike agrees with itself best of all."""
    answers = {answer for row in rows for answer in response_answers(row, task)}
    if not any(any(row["ended"]) for row in rows):
        print("WARNING: every response was cut off; raise --max-new-tokens, or lower --lr")
    elif len(answers) == 1 and len(rows) > 1:
        answer = printable(str(answers.pop()))
        print(f"WARNING: every response to every problem has the answer {answer}: the model has "
              "collapsed, or the answers are not understood; lower --lr")


# --------------------------------------------------------------------------------------------
# As a script

COLUMNS = {
    "greedy": "greedy",
    "greedy_cells": "cells",
    "greedy_easy": "easy",
    "greedy_hard": "hard",
    "self_consistency": "self-consistency",
    "vote_share": "vote share",
    "unparsed": "unparsed",
    "truncated": "cut off",
}


def table(results: dict[str, dict]) -> str:
    """Results by model, aligned: shares in %, accuracies ± standard error over the problems."""
    names = [name for name in COLUMNS if any(name in result for result in results.values())]
    of_run = [name for name in ("pairs", "seconds") if any(name in r for r in results.values())]
    lines = [["", *(COLUMNS[name] for name in names), *of_run]]
    for model, result in results.items():
        cells = [percent(result.get(name), result.get(f"{name}_se")) for name in names]
        for name in of_run:
            cells.append(f"{result[name]:.0f}" if name in result else "–")
        lines.append([model, *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = []
    for line in lines:
        rows.append("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
    return "\n".join(rows)


def percent(value: float | None, standard_error: float | None = None) -> str:
    if value is None:
        return "–"
    if standard_error is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ± {100 * standard_error:.1f}"


def main() -> None:
    parser = ArgumentParser(__doc__)
    add_sampling_options(parser)
    parser.add_argument("--responses", type=path_name, help="score this file instead of a model")
    parser.add_argument("--out", type=path_name,
        help="keep the responses of a model here; must not exist yet")
    args = parse_args(parser, problems="test")
    if args.responses:
        if args.out:
            raise InputError("--out: keeps a model's responses; --responses has its file already")
        rows = read_responses(args.responses)[: args.limit]
    else:
        check_out(args.out)
        rows = evaluate_checkpoint(args.model, args.problems, args, args.out, "eval")
        if args.out:
            write_new(args.out, rows)
    result = score(rows, args.task)
    print(table({args.responses or args.model: result}))
    if result["graded"] < result["problems"]:
        print(f"{result['graded']} of {result['problems']} problems have a gold answer that can be "
              "read: accuracy is over these")
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
