"""Print the tables and examples of README.md and RESULTS.md, and draw figures, from result files.

    python bench/report.py                       # from bench/results/ into README.md and RESULTS.md
    python bench/report.py --study runs/study/study.jsonl        # keep this study in bench/results/
    python bench/report.py --run runs/toy                        # keep this default run there

Nothing between the marks <!-- NAME --> and <!-- end --> of these files and of bench/README.md is
written by hand. A test prints them again and compares.
"""

import json
import re
import shutil
import statistics
import sys
import textwrap
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.study import SETTINGS
from common.cli import ArgumentParser, InputError, run_script
from common.files import read_json, read_jsonl, write_json, write_text
from eval import percent, table
from vote import show_pair, show_votes

RESULTS = ROOT / "bench/results"
FIGURES = ROOT / "bench/figures"
Lines = list[dict]  # of study.jsonl

# --------------------------------------------------------------------------------------------
# Statistics over the seeds

# Student's t for a two-sided 95 % interval, by the number of runs.
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


def cell(numbers: list[float], scale: float = 100.0) -> str:
    """Mean ± standard error over seeds, in %."""
    mean = f"{scale * statistics.fmean(numbers):.1f}"
    if len(numbers) < 2:
        return mean
    return f"{mean} ± {scale * statistics.stdev(numbers) / len(numbers) ** 0.5:.1f}"


def interval(numbers: list[float]) -> tuple[float, float, float]:
    """Mean of a difference over seeds and its 95 % interval: (mean, low, high)."""
    mean = statistics.fmean(numbers)
    if len(numbers) < 2:
        return mean, float("-inf"), float("inf")
    half = T95[len(numbers)] * statistics.stdev(numbers) / len(numbers) ** 0.5
    return mean, mean - half, mean + half


def verdict(numbers: list[float], above: float = 0.0) -> str:
    """Whether the whole interval of a difference is above a bound, or below it, or neither."""
    _, low, high = interval(numbers)
    if low > above:
        return "holds"
    return "does not hold" if high < above else "within noise"


def difference(numbers: list[float]) -> str:
    mean, low, high = (100 * x for x in interval(numbers))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def values(lines: Lines, setting: str, model: str, *names: str) -> list[float]:
    """One number per seed: a result of M_t, or an entry of it, as values(…, "M1", "pairs")."""
    numbers = []
    for line in sorted(lines, key=lambda line: line["seed"]):
        if line["setting"] == setting:
            found = line["results"][model]
            for name in names:
                found = found[name]
            numbers.append(found)
    return numbers


def minus(lines: Lines, a: str, b: str, *names: str) -> list[float]:
    """Differences by seed of a result: a and b are "SETTING MODEL"."""
    names = names or ("greedy",)
    return [x - y for x, y in zip(values(lines, *a.split(), *names),
                                  values(lines, *b.split(), *names), strict=True)]


# --------------------------------------------------------------------------------------------
# Tables of RESULTS.md


def main_table(
    lines: Lines, rows: list[tuple[str, str]], shift: dict[str, int] | None = None
) -> str:
    """A row per round of each (setting, name). shift: what is added to a setting's rounds."""
    table = ["| | | greedy % | gain | self-consistency % | vote share % | pairs |",
             "|---|---|---|---|---|---|---|"]
    for setting, name in rows:
        models = next(line for line in lines if line["setting"] == setting)["results"]
        for model in models:
            if model == "M0" and setting != rows[0][0]:  # all start from the same M0
                continue
            gain = pairs = ""
            if model != "M0":
                before = f"{setting} M{int(model[1:]) - 1}"
                gain = cell(minus(lines, f"{setting} {model}", before))
                pairs = f"{statistics.fmean(values(lines, setting, model, 'pairs')):.0f}"
            shown = f"M{int(model[1:]) + (shift or {}).get(setting, 0)}"
            cells = [name, shown, cell(values(lines, setting, model, "greedy")), gain]
            for score in ("self_consistency", "vote_share"):
                cells.append(cell(values(lines, setting, model, score)))
            table.append(f"| {' | '.join([*cells, pairs])} |")
    return "\n".join(table)


def named(*settings: str) -> list[tuple[str, str]]:
    return [(setting, SETTINGS[setting][0]) for setting in settings]


THRESHOLDS = {0.1: "tau-0.1", 0.3: "tau-0.3", 0.5: "scpo", 0.7: "tau-0.7", 0.9: "tau-0.9"}


def tau_table(lines: Lines) -> str:
    table = ["| | pairs | chosen right % | rejected right % | margin | greedy % "
             "| self-consistency % |", "|---|---|---|---|---|---|---|"]
    for tau, setting in THRESHOLDS.items():
        cells = [f"τ = {tau}k", f"{statistics.fmean(values(lines, setting, 'M1', 'pairs')):.0f}"]
        for name in ("chosen_accuracy", "rejected_accuracy", "margin"):
            cells.append(cell(values(lines, setting, "M1", "quality", name)))
        for name in ("greedy", "self_consistency"):
            cells.append(cell(values(lines, setting, "M1", name)))
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def judges_of(lines: Lines) -> list[dict]:
    return [line["judges"] for line in lines if line["setting"] == "scpo"]


def judge_tables(lines: Lines) -> str:
    found = judges_of(lines)
    table = ["| M0's correct/wrong pairs of responses | right % | tied % | wrong % |",
             "|---|---|---|---|"]
    for judge, name in (("votes", "by votes"), ("reward", "by the reward model")):
        cells = [cell([f[judge][order] for f in found]) for order in ("right", "tied", "wrong")]
        table.append(f"| {name} | {' | '.join(cells)} |")
    table += ["", "| Somers' D, M0 | k = 2 | k = 4 | k = 8 | k = 16 |", "|---|---|---|---|---|"]
    for direction, name in enumerate(("of votes, given accuracy", "of accuracy, given votes")):
        cells = []
        for k in ("2", "4", "8", "16"):
            mean = statistics.fmean(f["somers_d"][k][direction] for f in found)
            cells.append(f"{mean:.2f}")
        table.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(table)


def inside(lines: Lines) -> str:
    """What happens inside ScPO's runs: its own problems, and the sums that M0 gets wrong."""
    counts = {}
    for name in ("written", "answerable", "right_vote"):
        counts[name] = sum(values(lines, "scpo", "M2", "written", name))
    n_runs = len(values(lines, "scpo", "M2", "greedy"))
    shown = [f"Self-written problems of round 2: {counts['written'] / n_runs:.0f} a run, "
             f"{percent(counts['answerable'] / counts['written'])} % well-formed and answerable; "
             f"on those the majority is right in "
             f"{percent(counts['right_vote'] / counts['answerable'])} %.", ""]
    for model in ("M0", "M1", "M2"):
        shares = {}
        for kind in ("doubtful", "others"):
            right, total = map(sum, zip(*values(lines, "scpo", model, "sums", kind)))
            shares[kind] = percent(right / total)
        shown.append(f"{model}, greedy: {shares['doubtful']} % of the doubtful sums right, "
                     f"{shares['others']} % of the others.")
    return "\n".join(shown)


def rejected_votes(lines: Lines, *settings: str) -> str:
    """Does round 1 reject rare slips or frequent mistakes?"""
    shares = []
    for setting in settings:
        share = cell(values(lines, setting, "M1", "quality", "rejects_frequent"))
        shares.append(f"{share} % of the pairs of “{SETTINGS[setting][0]}”")
    return f"The rejected answer has two votes or more in {', '.join(shares)}."


def claims_table(lines: Lines) -> str:
    """Claims of the paper: its number, ours over the seeds, and whether it holds."""

    def better(a: str, b: str) -> list[float]:
        return minus(lines, a, b)

    def share(a: str, b: str) -> list[float]:
        return minus(lines, f"scpo {a}", f"scpo {b}", "vote_share")

    def margin(a: str, b: str) -> list[float]:
        return minus(lines, f"{a} M1", f"{b} M1", "quality", "margin")

    def less_help(a: str, b: str) -> list[float]:
        """How much more self-consistency adds to M_a than to M_b."""
        helps = {}
        for model in (a, b):
            pairs = zip(values(lines, "scpo", model, "self_consistency"),
                        values(lines, "scpo", model, "greedy"), strict=True)
            helps[model] = [x - y for x, y in pairs]
        return [x - y for x, y in zip(helps[a], helps[b], strict=True)]

    fewer_wrong = [f["reward"]["wrong"] - f["votes"]["wrong"] for f in judges_of(lines)]
    claims = [  # what is claimed, in the paper, here, and the bound that it must exceed
        ("M1 above M0, greedy", "+19.9; MATH +2.9", better("scpo M1", "scpo M0"), 0),
        ("M2 above M1, greedy", "+2.9; MATH +2.4", better("scpo M2", "scpo M1"), 0),
        ("a third round adds less than 2 points: M2 − M3", "−0.3; MATH −0.0",
         better("scpo M2", "scpo M3"), -0.02),
        ("a third round on the test questions above M3", "+1.1; MATH +0.2",
         better("test-queries M1", "scpo M3"), 0),
        ("ScPO less than 2 points below gold, M2", "−0.4; MATH −0.6",
         better("scpo M2", "gold M2"), -0.02),
        ("semi-supervised above gold, M2", "+2.4; MATH +0.2", better("semi M2", "gold M2"), 0),
        ("ScPO above reward model, M1", "+12.4; MATH −0.7; Zebra +5.7",
         better("scpo M1", "reward M1"), 0),
        ("ScPO above reward model, M2", "+13.8; MATH +1.6", better("scpo M2", "reward M2"), 0),
        ("ScPO above LMSI, M1", "+7.5; MATH +0.6; Zebra +0.8", better("scpo M1", "lmsi M1"), 0),
        ("ScPO above LMSI, M2", "+7.2; MATH +2.8; Zebra +1.3", better("scpo M2", "lmsi M2"), 0),
        ("weighted above w = 1, M1", "+2.5; MATH +1.4", better("scpo M1", "unweighted M1"), 0),
        ("weighted above w = 1, M2", "+1.3; MATH +1.0", better("scpo M2", "unweighted M2"), 0),
        ("vote share rises, M0 → M1", "yes (Figure 2)", share("M1", "M0"), 0),
        ("vote share rises, M1 → M2", "yes (Figure 2)", share("M2", "M1"), 0),
        ("margin of the pairs rises, τ = 0.1k → 0.3k", "MATH +26", margin("tau-0.3", "tau-0.1"), 0),
        ("margin of the pairs rises, τ = 0.3k → 0.5k", "MATH +13", margin("scpo", "tau-0.3"), 0),
        ("margin of the pairs rises, τ = 0.5k → 0.7k", "MATH +11", margin("tau-0.7", "scpo"), 0),
        ("the middle τ is best: 0.5k above 0.1k, M1", "MATH +1.9",
         better("scpo M1", "tau-0.1 M1"), 0),
        ("the middle τ is best: 0.5k above 0.7k, M1", "MATH +2.6",
         better("scpo M1", "tau-0.7 M1"), 0),
        ("self-consistency helps less, M0 → M1", "10.6 → 10.5; MATH 3.7 → 8.3",
         less_help("M0", "M1"), 0),
        ("self-consistency helps less, M1 → M2", "10.5 → 7.2; MATH 8.3 → 4.9",
         less_help("M1", "M2"), 0),
        ("votes order fewer pairs wrong than the reward model", "+11.3; MATH +20.6; Zebra +24.5",
         fewer_wrong, 0),
        ("self-written problems help, M2", "–", better("scpo M2", "given M2"), 0),
        ("an epoch selected by votes less than 2 points below one by labels", "–",
         better("select-votes M1", "select-dev M1"), -0.02),
        ("a vote is better than a coin, M1", "–", better("scpo M1", "coin M1"), 0),
    ]
    table = ["| claim | paper, points | here, points [95 % interval] | |", "|---|---|---|---|"]
    for claim, paper, numbers, above in claims:
        table.append(f"| {claim} | {paper} | {difference(numbers)} | {verdict(numbers, above)} |")
    return "\n".join(table)


def study_blocks(lines: Lines) -> dict[str, str]:
    """What RESULTS.md has between its marks."""
    methods = [s for s in SETTINGS if SETTINGS[s][2] > 1] + ["test-queries"]
    control = main_table(lines, named("reward-own", "right-votes", "right-votes-gold"))
    return {
        "claims": claims_table(lines),
        "methods": main_table(lines, named(*methods), {"test-queries": 2}),
        "written": inside(lines),
        "thresholds": tau_table(lines),
        "judges": judge_tables(lines),
        "epochs": main_table(
            lines, named("select-last", "select-dev", "select-votes", "gold-6")),
        "options": main_table(lines, named("alpha-0", "beta-0.1")),
        "control": f"{control}\n\n{rejected_votes(lines, 'right-votes', 'right-votes-gold')}",
    }


# --------------------------------------------------------------------------------------------
# The default run, in README.md


def describe_default_run(folder: Path) -> dict:
    """What README.md shows of `python train.py`: one problem, its pair, and the table.

    The problem is the first that gives a pair with 0 < w < 1.
    """
    pairs = {pair["id"]: pair for pair in read_jsonl(folder / "M1/pairs.jsonl")}
    for number, row in enumerate(read_jsonl(folder / "M1/responses.jsonl")):
        pair = pairs.get(row["id"])
        if pair and pair["weight"] < 1:
            results = read_json(folder / "results.json")
            return {"number": number, "row": row, "pair": pair, "results": results}
    raise InputError(f"--run {folder}: no pair has a weight below 1")


def default_run_blocks(run: dict) -> dict[str, str]:
    votes = textwrap.indent(show_votes(run["row"], "toy"), "    ")
    results = f"```\n{table(run['results'])}\n```"
    return {"example": f"```\n{votes}\n{show_pair(run['pair'])}\n```", "default run": results}


# --------------------------------------------------------------------------------------------
# What was done to break it, in bench/README.md


def robustness_table() -> str:
    """Of each kind of trouble: how often it was tried, and how it ended."""
    table = ["| what was tried | how it ended | with |", "|---|---|---|"]
    for cells in (*broken_rows(), *kill_rows(), FULL_DISK, *mutant_rows(), *fuzz_rows()):
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


FULL_DISK = (
    "a full disk in each stage, within sampling and training; on 2 processes within both",
    "one line that names the file; then the files of an undisturbed run",
    "`python -m pytest tests/test_full_disk.py tests/test_ranks.py`")


def broken_rows() -> Iterator[tuple[str, ...]]:
    """A row for each kind of input."""
    result = read_json(RESULTS / "broken.json")
    for kind, counts in result["counts"].items():
        wrong = sum(counts.values()) - counts["refused"] - counts["accepted"]
        ends = (f"{counts['refused']} refused in one line that names it, {counts['accepted']} "
                f"did no harm, {wrong} went wrong")
        command = f"`python bench/broken.py --count {result['count']}`"
        yield f"{sum(counts.values())} times {BROKEN[kind]}", ends, command


BROKEN = {
    "checkpoint": "a broken checkpoint folder", "options": "a broken option",
    "problems": "a broken file of problems", "responses": "a broken responses.jsonl",
    "run": "a broken file of a run that goes on",
}


def kill_rows() -> Iterator[tuple[str, ...]]:
    for ranks, trials in sorted(read_json(RESULTS / "kill.json").items()):
        same = sum(trial["same"] and trial["exit_code"] == 0 for trial in trials)
        tried = f"{len(trials)} times `kill -9` at a random moment of a run on {ranks} process"
        yield (tried + ("es" if ranks != "1" else ""),
               f"{same} went on to the files of an undisturbed run, bit by bit",
               f"`python bench/kill.py --times {len(trials)} --ranks {ranks}`")


def mutant_rows() -> Iterator[tuple[str, ...]]:
    result = read_json(RESULTS / "mutants.json")
    if result:
        yield (f"{result['mutants']} mistakes put into the method, one at a time",
               f"{result['killed']} noticed by the tests",
               f"`python bench/mutants.py --count {result['mutants']}`")


def fuzz_rows() -> Iterator[tuple[str, ...]]:
    for target, numbers in sorted(read_json(RESULTS / "fuzz.json").items()):
        yield (f"{numbers['minutes']} minutes of a coverage-guided fuzzer on {FUZZED[target]}",
               f"{numbers['executions']:,} executions, {numbers['findings']} findings",
               f"`python bench/fuzz.py {target} --minutes {numbers['minutes']}`")


FUZZED = {"extract": "the extractors", "load": "the loaders of files"}

# --------------------------------------------------------------------------------------------
# Speed, in bench/README.md


def sampling_table(rows: dict) -> str:
    """Tokens per second beside transformers, from bench/sampling.py."""
    table = ["| samples | transformers, tok/s | here | ratio | of the machine's limit |",
             "|---|---|---|---|---|"]
    for row in rows.values():
        size = f"{MEASURED[row['model']]}, {row['dtype']}, {row['prompts']} prompts × {row['k']}"
        theirs = f"{row['rates'][row['best']]:,.0f} ({row['best'].partition(', ')[2]})"
        table.append(f"| {size}, up to {row['max_new_tokens']} tokens | {theirs} | "
                     f"{row['rates']['ours']:,.0f} | {row['ratio']:.1f} | "
                     f"{100 * row['share_of_limit']:.0f} % |")
    return "\n".join([*table, "", *machines(rows)])


def llamacpp_table(rows: dict) -> str:
    """Tokens per second beside llama.cpp's engine, from bench/llamacpp.py."""
    table = ["| a shared prompt | llama.cpp, tok/s | here | ratio |", "|---|---|---|---|"]
    for row in rows.values():
        table.append(
            f"| {MEASURED[row['model']]}, {row['dtype']}, {row['prompt']} tokens, "
            f"{row['rows']} rows of {row['max_new_tokens']} | {row['rates'][row['best']]:,.0f} "
            f"({row['best']}) | {row['rates']['ours']:,.0f} | {row['ratio']:.1f} |")
    return "\n".join([*table, "", *machines(rows)])


def growth_table(rows: dict) -> str:
    """Seconds and memory of sampling by problems and k, from bench/growth.py."""
    table = ["| | problems × k | seconds | ms per response | GiB | cache of 8 problems: prompts, "
             "MiB | rows, MiB |", "|---|---|---|---|---|---|---|"]
    for group in rows.values():
        for row in group["rows"]:
            n_responses = row["problems"] * row["k"]
            table.append(
                f"| {MEASURED[group['model']]} | {row['problems']} × {row['k']} | "
                f"{row['seconds']:.1f} | {1000 * row['seconds'] / n_responses:.2f} | "
                f"{row['gib']:.2f} | {row['cache_mib']['prompts']:.1f} | "
                f"{row['cache_mib']['rows']:.1f} |")
    return "\n".join([*table, "", *machines(rows)])


def training_table(rows: dict) -> str:
    """Seconds and memory of a step beside TRL, from bench/training.py."""
    if not rows:
        return "Not measured on this tree yet."
    table = ["| a step of 8 pairs | TRL, its best | here, its best | ratio | of TRL's memory | "
             "of the machine's limit |", "|---|---|---|---|---|---|"]
    for row in rows.values():
        sides = []
        for side in ("trl", "ours"):
            best = row[side]
            sides.append(f"{best['seconds']:.1f} s, {best['gib']:.1f} GiB ({best['how']})")
        memory = 100 * row["ours"]["gib"] / row["trl"]["gib"]
        table.append(f"| {MEASURED[row['model']]}, {row['dtype']} | {' | '.join(sides)} "
                     f"| {row['ratio']:.1f} "
                     f"| {memory:.0f} % | {100 * row['share_of_limit']:.0f} % |")
    return "\n".join([*table, "", *machines(rows)])


MEASURED = {"model": "the toy", "smollm2": "SmolLM2-135M", "qwen05": "Qwen2.5-Coder-0.5B"}


def machines(rows: dict) -> list[str]:
    return list(dict.fromkeys(f"Measured on: {row['machine']}." for row in rows.values()))


# --------------------------------------------------------------------------------------------
# As a script


def replace_block(text: str, name: str, block: str, source: str = "the file") -> str:
    """Put a block between its marks in a Markdown text."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise InputError(f"{source}: has no <!-- {name} --> … <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", text)


def files_with_blocks() -> dict[Path, str]:
    """README.md, RESULTS.md and bench/README.md as they should be."""
    texts = {}
    blocks = {ROOT / "README.md": default_run_blocks(read_json(RESULTS / "default.json")),
              ROOT / "bench/README.md": {
                  "robustness": robustness_table(),
                  "sampling": sampling_table(read_json(RESULTS / "sampling.json")),
                  "llamacpp": llamacpp_table(read_json(RESULTS / "llamacpp.json")),
                  "growth": growth_table(read_json(RESULTS / "growth.json")),
                  "training": training_table(read_json(RESULTS / "training.json"))}}
    if (RESULTS / "study.jsonl").exists():
        blocks[ROOT / "RESULTS.md"] = study_blocks(read_jsonl(RESULTS / "study.jsonl"))
    for path, named_blocks in blocks.items():
        text = path.read_text(encoding="utf-8")
        for name, block in named_blocks.items():
            text = replace_block(text, name, block, path.name)
        texts[path] = text
    return texts


def draw_figures(lines: Lines) -> None:
    from bench import figures  # needs matplotlib

    figures.draw(lines, FIGURES)


def keep(args: Namespace) -> None:
    """Put a study or a default run into bench/results/."""
    RESULTS.mkdir(exist_ok=True)
    if args.study:
        study_blocks(read_jsonl(args.study, ("setting", "seed", "results")))  # it is whole
        shutil.copyfile(args.study, RESULTS / "study.jsonl")
    if args.run:
        write_json(RESULTS / "default.json", describe_default_run(Path(args.run)))


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--study", help="a study.jsonl to keep in bench/results/")
    parser.add_argument("--run", help="the folder of a default run, to keep what README.md shows")
    args = parser.parse_args()
    keep(args)
    for path, text in files_with_blocks().items():
        write_text(path, text)
        print(f"{path.name}: written")
    if (RESULTS / "study.jsonl").exists():
        draw_figures(read_jsonl(RESULTS / "study.jsonl"))
        print(f"{FIGURES.relative_to(ROOT)}/: drawn")
    print(json.dumps({"results": sorted(path.name for path in RESULTS.iterdir())}))


if __name__ == "__main__":
    run_script(main)
