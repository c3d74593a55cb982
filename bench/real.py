"""What runs on a real model gave, in one small file of numbers: no text of a model or of others.

    python bench/real.py runs/svamp runs/svamp-w1 --problems train.jsonl --out svamp.jsonl

A line per run: the options that are not the defaults, the scores of M0, M1, …, the verdict on every
test problem (so that differences are paired), the pairs as numbers, and the first and the last
epoch of each training. The golds of --problems, which the training never reads, tell how often a
pair is right. The runs share M0.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train
from bench.analyse import bootstrap
from common.cli import ArgumentParser, InputError, run_script
from common.files import check_out, read_json, read_jsonl, write_jsonl
from common.options import parse_args
from common.training import epoch_means
from eval import is_correct, percent, score_row
from tasks.task import Task, read_golds, read_problems

ONLY_NAMES = ("model", "problems", "test", "dev", "answers", "writer", "reward_model")  # of paths


# --------------------------------------------------------------------------------------------
# From the folder of a run to its numbers


def describe(folder: Path, problems: str) -> dict:
    """The numbers of a run. Raises InputError if it is not finished, or not evaluated."""
    options, results = read_json(folder / "options.json"), read_json(folder / "results.json")
    if not results or not all("greedy" in scores for scores in results.values()):
        raise InputError(f"{folder}: has no results.json with the scores of all models; finish the "
                         "run first, with --test and without --no-eval")
    task = Task.load(options["task"])
    golds = read_golds(read_problems(problems, task), task, None, "--problems")
    run = {"options": changed_options(options), "hours": hours(folder), "models": {}, "rounds": {}}
    for name, scores in results.items():
        rows = read_jsonl(folder / name / "eval_responses.jsonl")
        run["models"][name] = {"scores": scores, "verdicts": verdicts(rows, options["task"])}
        if name != "M0":
            pairs = read_jsonl(folder / name / "pairs.jsonl")
            log = read_jsonl(folder / name / "log.jsonl")
            run["rounds"][name] = {"pairs": pair_numbers(pairs, golds, options["task"]),
                                   "steps": len(log), "epochs": [
                                       epoch_means(log, 0), epoch_means(log, log[-1]["epoch"])]}
    return run


def changed_options(options: dict) -> dict:
    """Those that are not the task's defaults; of a path only its last part."""
    needed = ["--task", options["task"], "--model", "M", "--problems", "P"]
    defaults, changed = vars(parse_args(train.options(), needed)), {}
    for name, value in options.items():
        if name not in ("out", "from", "task") and value != defaults.get(name):
            changed[name] = Path(value).name if value and name in ONLY_NAMES else value
    return changed


def hours(folder: Path) -> dict[str, float]:
    """Of each stage of the run."""
    stages = read_json(folder / "stages.json")["stages"]
    return {name: round(stage["seconds"] / 3600, 3) for name, stage in stages.items()}


def verdicts(rows: list[dict], task: str) -> dict[str, list]:
    """Of each test problem: what is right (1) or wrong (0), and the length of the greedy response.

    A list for each of these, in the order of `id`.
    """
    columns = {"id": [], "greedy": [], "self_consistency": [], "greedy_words": []}
    for row in rows:
        scores = score_row(row, task)
        if scores["greedy"] is None:  # nobody knows the answer
            continue
        columns["id"].append(row["id"])
        for name in ("greedy", "self_consistency"):
            columns[name].append(int(scores[name]))
        columns["greedy_words"].append(len(row["greedy"].split()))
    return columns


def pair_numbers(pairs: list[dict], golds: dict, task: str) -> dict:
    """How many pairs, how often the chosen response is right, and what is rejected."""
    chosen, rejected = [], Counter()
    for pair in pairs:
        gold = golds.get(pair["id"])
        if gold is None:  # a problem that the model wrote
            continue
        chosen.append(is_correct(pair["answer_chosen"], gold, task))
        if pair["rejected"] is None:
            continue
        if not pair["ended_rejected"]:
            rejected["cut off"] += 1
        elif pair["answer_rejected"] is None:
            rejected["no answer"] += 1
        else:
            right = is_correct(pair["answer_rejected"], gold, task)
            rejected["right" if right else "wrong"] += 1
    weights = [pair["weight"] for pair in pairs]
    return {"pairs": len(pairs), "with_gold": len(chosen), "mean_weight": float(np.mean(weights)),
            "chosen_accuracy": float(np.mean(chosen)) if chosen else None, "rejected": rejected}


# --------------------------------------------------------------------------------------------
# From the numbers to tables


def tables(runs: dict[str, dict]) -> str:
    """The models of all runs, and the pairs that made them, in Markdown."""
    first = next(iter(runs))
    models = ["| | | greedy % | gain [95 % interval] | self-consistency % | gain [95 % interval] "
              "| vote share % | cut off % | words, greedy |",
              "|---|---|---|---|---|---|---|---|---|"]
    pairs = ["| | | pairs | w, mean | chosen right % | of the rejected: wrong | cut off "
             "| no answer | right | hours |", "|---|---|---|---|---|---|---|---|---|---|"]
    for name, run in runs.items():
        for model, result in run["models"].items():
            if model == "M0" and name != first:
                continue
            models.append(f"| {' | '.join([name, model, *score_cells(run, model, result)])} |")
        for model, numbers in run["rounds"].items():
            made, spent = numbers["pairs"], 0.0
            for stage, hours_of_stage in run["hours"].items():
                spent += hours_of_stage if stage.startswith(f"{model}/") else 0.0
            kinds = [str(made["rejected"].get(kind, 0))
                     for kind in ("wrong", "cut off", "no answer", "right")]
            pairs.append(f"| {name} | {model} | {made['pairs']} | {made['mean_weight']:.2f} | "
                         f"{percent(made['chosen_accuracy'])} | {' | '.join(kinds)} | "
                         f"{spent:.1f} |")
    return "\n".join([*models, "", *pairs, "", *between(runs)])


def score_cells(run: dict, model: str, result: dict) -> list[str]:
    """What the table says of a model; its gains are over the model of the round before."""
    scores, of_model, cells = result["scores"], result["verdicts"], []
    for name in ("greedy", "self_consistency"):
        gain = ""
        if model != "M0":
            before = run["models"][f"M{int(model[1:]) - 1}"]["verdicts"]
            gain = paired(of_model, before, name)
        cells += [f"{percent(scores[name])} ± {percent(scores[f'{name}_se'])}", gain]
    words = np.mean(of_model["greedy_words"])
    return [*cells, percent(scores["vote_share"]), percent(scores["truncated"]), f"{words:.0f}"]


def paired(a: dict[str, list], b: dict[str, list], name: str) -> str:
    """The mean difference on the same problems, with its 95 % interval, in points."""
    if a["id"] != b["id"]:
        raise InputError("the models answered different test problems")
    mean, low, high = bootstrap(np.subtract(a[name], b[name]))
    return f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def between(runs: dict[str, dict]) -> list[str]:
    """For each run after the first a line: M1 of the first run less M1 of this one."""
    (first, run), *others = runs.items()
    lines = []
    for name, other in others:
        both = run["models"]["M1"]["verdicts"], other["models"]["M1"]["verdicts"]
        lines.append(f"M1 of {first} less M1 of {name}: greedy {paired(*both, 'greedy')}, "
                     f"self-consistency {paired(*both, 'self_consistency')}.")
    return lines


# --------------------------------------------------------------------------------------------
# As a script


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("runs", nargs="+", help="folders of finished runs, the main one first")
    parser.add_argument("--problems", required=True, help="their problems, with gold answers")
    parser.add_argument("--out", help="a file to keep the numbers in")
    args = parser.parse_args()
    check_out(args.out)
    runs = {}
    for folder in map(Path, args.runs):
        if folder.name in runs:
            raise InputError(f"{folder}: two runs have this name; rename one of the folders")
        runs[folder.name] = describe(folder, args.problems)
    print(tables(runs))
    if args.out:
        write_jsonl(args.out, [{"name": name, **run} for name, run in runs.items()])
    print(json.dumps({name: list(run["models"]) for name, run in runs.items()}))


if __name__ == "__main__":
    run_script(main)
