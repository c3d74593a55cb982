"""How good is a checkpoint, or a file of responses? Greedy and self-consistency accuracy, and how consistent it is.

    python eval.py --model runs/toy/M2/model                                  # the miniature's test problems
    python eval.py --model DIR --task gsm8k --problems test.jsonl --out m0.jsonl
    python eval.py --responses runs/toy/M2/eval_responses.jsonl --against runs/toy/M0/eval_responses.jsonl

A file of responses made elsewhere needs, per line, `responses` (k texts); `gold` for accuracy; `greedy` (one text) for
greedy accuracy. With `--against`, the difference on the problems both files share gets a paired bootstrap interval.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model import Llama
from sample import CHATS, Task, Text, answer_problems, load_checkpoint, read_problems
from vote import (
    InputError,
    count_votes,
    extract_answer,
    option,
    parse_options,
    read_jsonl,
    response_answers,
    run_script,
    same_answer,
    write_jsonl,
)


def gold_answer(problem: dict, task: str) -> str | None:
    """The canonical gold answer of a problem, from a worked solution ending in `#### N` or a bare answer, or None."""
    if problem.get("answer") is None:
        return None
    answer = str(problem["answer"])
    return extract_answer(answer, task) or extract_answer(f"#### {answer}", task)


def majority(answers: Sequence[str | None], task: str, draw: random.Random) -> tuple[str | None, int]:
    """The answer with the most votes and its votes; a tie is drawn; (None, 0) if no response has an answer."""
    votes = count_votes(list(answers), task)
    most = max(votes, default=0)
    if most == 0:
        return None, 0
    return draw.choice(list(dict.fromkeys(a for a, v in zip(answers, votes) if v == most))), most


def score_row(row: dict, task: str) -> dict:
    """What one problem contributes: `greedy` and `self_consistency` (1, 0, or None without gold), shares of the k."""
    answers = response_answers(row, task)
    winner, votes = majority(answers, task, random.Random(str(row["id"])))
    gold, score = row.get("gold"), {"greedy": None, "self_consistency": None}
    if gold is not None:
        score["self_consistency"] = float(same_answer(winner, gold, task))
        if "greedy" in row:
            ended = row.get("greedy_ended", True)
            score["greedy"] = float(ended and same_answer(extract_answer(row["greedy"], task), gold, task))
    ended = row.get("ended") or [True] * len(answers)
    return score | {
        "vote_share": votes / len(answers),
        "sample_accuracy": None if gold is None else float(np.mean([same_answer(a, gold, task) for a in answers])),
        "unparsed": float(np.mean([e and a is None for a, e in zip(answers, ended)])),
        "truncated": 1 - float(np.mean(ended))}


def score(rows: list[dict], task: str) -> dict:
    """Means over problems, in [0, 1], each accuracy with its standard error; None where gold or greedy is absent."""
    scores = [score_row(row, task) for row in rows]
    result: dict = {"problems": len(rows), "k": len(rows[0]["responses"])}
    for name in scores[0]:
        values = [s[name] for s in scores if s[name] is not None]
        result[name] = float(np.mean(values)) if values else None
        if name in ("greedy", "self_consistency"):
            result[f"{name}_se"] = float(np.std(values) / len(values) ** 0.5) if values else None
    return result


def paired_difference(a: list[dict], b: list[dict], task: str, name: str,
                      draws: int = 10_000) -> tuple[float, float, float]:
    """Mean of score `name` of a minus that of b on the problems they share, with its 95 % paired bootstrap interval."""
    others = {row["id"]: row for row in b}
    pairs = [(score_row(row, task)[name], score_row(others[row["id"]], task)[name]) for row in a if row["id"] in others]
    if not pairs or any(value is None for pair in pairs for value in pair):
        raise InputError(f"--against: the two files share no problem with a score for {name}")
    differences = np.array([x - y for x, y in pairs])
    resampled = np.random.default_rng(0).choice(differences, (draws, len(differences))).mean(-1)  # (draws,)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)


def evaluate(model: Llama, text: Text, task: Task, problems: list[dict], *, k: int, temperature: float, top_p: float,
             max_new_tokens: int, seed: Sequence[int], rows: int, name: str) -> list[dict]:
    """One greedy response and k samples to each problem: lines for `eval_responses.jsonl`, with the gold answer."""
    shared = {"max_new_tokens": max_new_tokens, "rows": rows, "seed": seed, "top_p": top_p}
    greedy = answer_problems(model, text, task, problems, 1, temperature=0.0, progress=f"{name}: greedy", **shared)
    sampled = answer_problems(model, text, task, problems, k, temperature=temperature, progress=f"{name}: {k} samples",
                              **shared)
    return [row | {"greedy": g["responses"][0], "greedy_ended": g["ended"][0], "gold": gold_answer(problem, task.name)}
            for row, g, problem in zip(sampled, greedy, problems)]


def percent(value: float | None, se: float | None = None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" ± {100 * se:.1f}" if se is not None else "")


def table(results: dict[str, dict]) -> str:
    """Results by model as aligned text: accuracies in % ± standard error over the problems."""
    head = ["", "greedy", "self-consistency", "vote share", "unparsed", "cut off", "pairs", "seconds"]
    lines = [head] + [[
        name, percent(r.get("greedy"), r.get("greedy_se")),
        percent(r.get("self_consistency"), r.get("self_consistency_se")), percent(r.get("vote_share")),
        percent(r.get("unparsed")), percent(r.get("truncated")),
        str(r.get("pairs", "–")), f"{r['seconds']:.0f}" if "seconds" in r else "–"] for name, r in results.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


@dataclass
class Options:
    model: str | None = option(None, "checkpoint folder; for the toy task the shipped M0")
    task: str = option("toy", "folder of tasks/ with the prompts")
    problems: str | None = option(None, "JSON lines with `question` and `answer`")
    responses: str | None = option(None, "score this file instead of a model")
    against: str | None = option(None, "a second file of responses: report the paired difference to it")
    out: str | None = option(None, "where the responses of a model go; an existing file is not overwritten")
    k: int | None = option(None, "samples per problem for self-consistency")
    temperature: float | None = option(None, "of those samples")
    top_p: float | None = option(None, "share of probability kept at each token")
    max_new_tokens: int | None = option(None, "tokens; a longer response is cut off and counts as wrong")
    limit: int = option(0, "only the first problems; 0 takes all")
    seed: int = option(0, "of the sampling")
    rows: int = option(512, "responses decoded at once; lower it if memory runs out")
    chat: str = option("auto", f"prompt format: auto (from the checkpoint's files), {', '.join(CHATS)}")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps …")
    dtype: str = option("float32", "of the weights: float32, bfloat16")


def responses_of_model(options: Options, task: Task) -> list[dict]:
    """Load the checkpoint and let it answer, as the options say."""
    if options.out and Path(options.out).exists():
        raise InputError(f"--out {options.out}: exists already; choose another name")
    problems_file = options.problems or task.file("test")
    if problems_file is None:
        raise InputError(f"--problems: task {task.name} ships none; give a JSON-lines file with question and answer")
    chosen = {name: getattr(options, name) if getattr(options, name) is not None else task.defaults[name]
              for name in ("k", "temperature", "top_p", "max_new_tokens")}
    if chosen["k"] < 1:
        raise InputError(f"--k {chosen['k']}: at least 1 sample per problem")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: must be 0 or more")
    problems = read_problems(problems_file, options.limit)
    model, text = load_checkpoint(options.model or task.file("model"), options.chat, options.device, options.dtype)
    rows = evaluate(model, text, task, problems, seed=[options.seed], rows=options.rows, name="eval", **chosen)
    if options.out:
        write_jsonl(options.out, rows)
    return rows


def main() -> None:
    options = parse_options(Options, __doc__)
    task = Task.load(options.task)
    if options.responses:
        rows = read_jsonl(options.responses, required=("id", "responses"))
        if not rows:
            raise InputError(f"{options.responses}: holds no problem")
    else:
        rows = responses_of_model(options, task)
    result = score(rows, task.name)
    print(table({options.responses or options.model or "M0": result}))
    if result["self_consistency"] is None:
        print("no gold answers: consistency can be measured, accuracy cannot")
    if options.against:
        for name in ("greedy", "self_consistency"):
            mean, low, high = paired_difference(rows, read_jsonl(options.against, ("id", "responses")), task.name, name)
            print(f"{name} minus that of {options.against}: {100 * mean:+.1f} points, 95 % interval "
                  f"[{100 * low:+.1f}, {100 * high:+.1f}]")
    print(json.dumps(result))


if __name__ == "__main__":
    run_script(main)
