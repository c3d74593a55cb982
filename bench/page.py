"""See the votes: one page of HTML, each problem with its responses grouped by answer.

    python bench/page.py runs/toy/M1/responses.jsonl --out votes.html  # the pairs marked
    python bench/page.py runs/gsm8k --task gsm8k --out votes.html
    python bench/page.py runs/toy --out votes.html     # M0, M1, M2 on the test, side by side

The page needs no network and runs no script; what a model wrote is escaped.
"""

import sys
from collections import defaultdict
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import ArgumentParser, InputError, path_name, run_script
from common.files import check_out, read_jsonl, read_responses, write_text
from vote import EXTRACTORS, count_votes, response_answers

STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #2a7d2a; --bad: #b3372f }
@media (prefers-color-scheme: dark) { :root { --good: #7fce7f; --bad: #ff9a90 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere }
details { border-top: 1px solid var(--line); padding: .5rem 0 }
summary { cursor: pointer }
.columns { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 1.5rem }
h3 { margin: 1rem 0 0; font-size: 1rem } h4 { margin: .8rem 0 .2rem; font-size: 1rem }
p { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem }
.votes { float: right; margin-left: 1rem; opacity: .7; font-variant-numeric: tabular-nums }
.gold, .chosen { color: var(--good) } .rejected { color: var(--bad) }
"""


def votes_page(title: str, models: dict[str, list[dict]], pairs: list[dict], task: str) -> str:
    """models: for each name its lines of responses, on the same problems in the same order."""
    marks: dict[str, dict[int, str]] = defaultdict(dict)  # by problem and response
    for pair in pairs:
        for side in ("chosen", "rejected"):
            if f"sample_{side}" in pair:
                marks[str(pair["id"])][pair[f"sample_{side}"]] = side
    problems = []
    for rows in zip(*models.values(), strict=True):
        columns, shares = [], []
        for name, row in zip(models, rows):
            votes, column = answer_groups(row, marks[str(row["id"])], task)
            shares.append(f"{max(votes)} of {len(votes)}")
            heading = f"<h3>{escape(name)}</h3>" if len(models) > 1 else ""
            columns.append(f"<div>{heading}{column}</div>")
        problems.append(
            f"<details><summary><span class=votes>{' → '.join(shares)}</span>"
            f"{escape(str(rows[0].get('question') or rows[0]['id']))}</summary>"
            f"<div class=columns>{''.join(columns)}</div></details>")
    return (f"<!doctype html><html lang=en><meta charset=utf-8>"
            "<meta name=viewport content='width=device-width'>"
            f"<title>{escape(title)}</title>"
            f"<style>{STYLE}</style><h1>{escape(title)}</h1><p>{len(problems)} problems; at the "
            f"right the votes of the most consistent answer. Right answers are green, where they "
            f"are known.</p>{''.join(problems)}</html>\n")


def answer_groups(row: dict, marks: dict[int, str], task: str) -> tuple[list[int], str]:
    """The votes of each response, and the responses under their answers, the most voted first."""
    answers = response_answers(row, task)
    groups, votes = defaultdict(list), count_votes(answers)
    for i, answer in enumerate(answers):
        groups[answer].append(i)
    shown = []
    for answer, members in sorted(groups.items(), key=lambda group: -len(group[1])):
        name = "no answer" if answer is None else answer
        gold = " class=gold" if answer is not None and answer == row.get("gold") else ""
        shown.append(f"<h4{gold}>{len(members)} × {escape(name)}</h4>")
        for i in members:
            mark = f"<b class={marks[i]}>{marks[i]} </b>" if i in marks else ""
            shown.append(f"<p>{mark}{escape(row['responses'][i].strip())}</p>")
    for i, text in enumerate(row.get("extra_responses", []), len(answers)):
        if i in marks:
            shown.append(f"<h4>of the hotter ones</h4><p><b class={marks[i]}>{marks[i]} </b>"
                         f"{escape(text.strip())}</p>")
    return votes, "".join(shown)


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("what", help="a responses.jsonl, or the folder of a run")
    parser.add_argument("--task", default="toy", choices=EXTRACTORS, help="whose answers")
    parser.add_argument("--out", type=path_name, default="votes.html", help="must not exist yet")
    args = parser.parse_args()
    check_out(args.out)
    path, pairs = Path(args.what), []
    if path.is_dir():
        models = {}
        for t in range(len(list(path.glob("M*/eval_responses.jsonl")))):
            models[f"M{t}"] = read_responses(path / f"M{t}/eval_responses.jsonl")
        if not models:
            raise InputError(f"{path}: has no M*/eval_responses.jsonl; give a run or a file")
    else:
        models = {path.name: read_responses(path)}
        if path.with_name("pairs.jsonl").exists():
            pairs = read_jsonl(path.with_name("pairs.jsonl"))
    write_text(Path(args.out), votes_page(str(path), models, pairs, args.task))
    print(f"{args.out}: written")


if __name__ == "__main__":
    run_script(main)
