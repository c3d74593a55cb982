"""The README's tables of the miniature: ScPO and its controls over several seeds, and how far its options may move.

    python bench/study.py                                        # everything over 5 seeds, three quarters of an hour
    python bench/study.py --model DIR --out runs/study-m0b --settings scpo --seeds 2      # the same from another M0
    python bench/study.py --problems dev --out runs/tuning --seeds 1 --settings scpo lr-1e-4 lr-2e-4 alpha-1 beta-0.1 …

Every run is `python train.py` with the options below. Runs that exist are kept: the study can be stopped at any time.
Prints Markdown: mean ± standard error over the seeds. A seed changes sampling, ties and the order of the pairs, and the
questions the model writes; the given questions, the problems it is measured on and M0 stay the same.
"""

import json
import random
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from eval import majority, percent  # noqa: E402
from tasks.toy import make  # noqa: E402
from vote import InputError, check_options, option, parse_options, read_jsonl, response_answers, run_script, write_jsonl  # noqa: E402

SETTINGS = {
    "scpo": ("ScPO", []),
    "given": ("ScPO, no self-written problems", ["--new-problems", "0"]),
    "coin": ("control: a coin decides which is chosen", ["--supervision", "coin"]),
    "gold": ("gold pairs (uses labels)", ["--supervision", "gold", "--new-problems", "0"]),
}
# `lr-1e-4` is ScPO with --lr 1e-4, and so on: one option moved, all others as the task sets them.
MOVABLE = ("lr", "alpha", "beta", "epochs", "tau")


@dataclass
class Options:
    model: str = option(str(make.HERE / "model"), "M0")
    out: str = option("runs/study", "folder of the runs")
    seeds: int = option(5, "runs per setting, seeds 0, 1, …")
    problems: str = option("test", "what the runs are measured on: test, or dev for choosing options")
    settings: tuple[str, ...] = option(tuple(SETTINGS), "rows to make; OPTION-VALUE, as lr-1e-4, moves one option")


def described(setting: str) -> tuple[str, list[str]]:
    """A setting's row name and its options of train.py."""
    name, _, value = setting.partition("-")
    if setting not in SETTINGS and (name not in MOVABLE or not value):
        raise InputError(f"--settings {setting}: unknown; choose from {', '.join(SETTINGS)}, or OPTION-VALUE with an "
                         f"option of {', '.join(MOVABLE)}")
    return SETTINGS.get(setting, (f"--{name} {value}", [f"--{name}", value]))


def train(options: Options, setting: str, seed: int) -> Path:
    """Run or continue one run; its folder."""
    folder = Path(options.out) / f"{setting}-{seed}"
    extra = ["--test", str(ROOT / f"tasks/toy/{options.problems}.jsonl"), *described(setting)[1]]
    if setting == "gold":  # the shipped training questions have no answers: the solver knows them
        labelled = Path(options.out) / "train-with-answers.jsonl"
        if not labelled.exists():
            rows = read_jsonl(ROOT / "tasks/toy/train.jsonl")
            write_jsonl(labelled, [row | {"answer": f"#### {make.solve(row['question'])}"} for row in rows])
        extra += ["--problems", str(labelled)]
    command = [sys.executable, str(ROOT / "train.py"), "--model", options.model, "--seed", str(seed), "--out", folder]
    if subprocess.run(command + extra, stdout=subprocess.DEVNULL).returncode:
        raise InputError(f"the run {folder} failed; its message stands above")
    return folder


def cell(values: list[float], scale: float = 100.0) -> str:
    """Mean ± standard error over seeds."""
    spread = f" ± {scale * statistics.stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{scale * statistics.fmean(values):.1f}{spread}"


def rows_of(name: str, folders: list[Path]) -> list[str]:
    """One line per round of a setting."""
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    lines = []
    for t in ("M0", "M1", "M2"):
        entries = [r[t] for r in results]
        step = "" if t == "M0" else cell([r[t]["greedy"] - r[f"M{int(t[1]) - 1}"]["greedy"] for r in results])
        pairs = "" if t == "M0" else f"{statistics.fmean(e['pairs'] for e in entries):.0f}"
        lines.append(f"| {name} | {t} | {cell([e['greedy'] for e in entries])} | {step} | "
                     f"{cell([e['self_consistency'] for e in entries])} | {cell([e['vote_share'] for e in entries])} | "
                     f"{pairs} |")
    return lines


def written_problems(folders: list[Path]) -> str:
    """How good the model's own problems of the last round are, by the solver."""
    written = answerable = right = 0
    for folder in folders:
        for row in read_jsonl(folder / "M2/responses.jsonl"):
            if "new" in row["id"]:
                gold = make.solve(row["question"])
                winner, _ = majority(response_answers(row, "toy"), "toy", random.Random(0))
                written, answerable = written + 1, answerable + (gold is not None)
                right += gold is not None and winner == str(gold)
    return (f"Self-written problems of round 2: {written / len(folders):.0f} a run, "
            f"{percent(answerable / max(written, 1))} % well-formed and answerable; on those the majority is right in "
            f"{percent(right / max(answerable, 1))} %.")


def doubtful_sums(folders: list[Path]) -> str:
    """How many sums each M_t gets right in its greedy responses: those M0's teacher often got wrong, and the others."""
    weak = make.documents(make.Options())[1].weak
    lines = []
    for t in ("M0", "M1", "M2"):
        texts = [row["greedy"] for folder in folders for row in read_jsonl(folder / t / "eval_responses.jsonl")]
        sums = [(int(a), int(sign + b), int(c)) for text in texts
                for a, sign, b, c in re.findall(r"(\d+) ([-+]) (\d+) = (\d+)", text)]
        doubtful, others = (percent(statistics.fmean(a + b == c for a, b, c in sums if ((a, b) in weak) == is_weak))
                            for is_weak in (True, False))
        lines.append(f"{t}, greedy: {doubtful} % of the doubtful sums right, {others} % of the others.")
    return "\n".join(lines)


def main() -> None:
    options = parse_options(Options, __doc__)
    check_options(options, {"seeds": (lambda v: v >= 1, "at least 1")})
    options.settings = tuple(dict.fromkeys(options.settings))
    names = {setting: described(setting)[0] for setting in options.settings}
    folders: dict[str, list[Path]] = {setting: [] for setting in options.settings}
    for seed in range(options.seeds):
        for setting in options.settings:
            folders[setting].append(train(options, setting, seed))
            print(f"{folders[setting][-1]}: done", file=sys.stderr)
    print("| | | greedy % | gain | self-consistency % | vote share % | pairs |\n|---|---|---|---|---|---|---|")
    for setting, runs in folders.items():
        print("\n".join(rows_of(names[setting], runs)))
    if "scpo" in folders:
        print("\n" + written_problems(folders["scpo"]))
        if Path(options.model) == make.HERE / "model":  # another M0 had another teacher
            print(doubtful_sums(folders["scpo"]))


if __name__ == "__main__":
    run_script(main)
