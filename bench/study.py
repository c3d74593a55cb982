"""The whole study of the toy task: every comparison of the paper, over several seeds.

    python bench/study.py                                       # 5 seeds, hours on two cores
    python bench/study.py --settings scpo coin --seeds 3        # part of it
    python bench/study.py --settings scpo ipo confidence        # and ideas of bench/gallery
    python bench/study.py --problems dev --seeds 1 --settings scpo lr-1e-4 alpha-1 # for tuning

Every run is `python train.py` with the options of SETTINGS, in OUT/SETTING-SEED. Runs that exist
are kept, so it can be stopped at any time; what two runs would make alike is taken over from the
seed's run of ScPO. A seed changes samples, ties, the order of the pairs and the questions that the
model writes; the given questions, the test problems and M0 stay.

What the tables need of each run goes to a line of OUT/study.jsonl. `bench/report.py` prints tables
and figures from such a file; the committed one is bench/results/study.jsonl.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.analyse import order_shares, pair_quality, votes_and_accuracy
from common.cli import ArgumentParser, InputError, integer, run_script
from common.files import read_json, read_jsonl, read_responses, write_json, write_jsonl
from common.options import load_checkpoint
from common.reward_model import RewardModel, reward_responses
from eval import majority_vote
from tasks.toy import make
from vote import count_votes, response_answers

TOY = ROOT / "tasks/toy"
# setting: (row name, options of train.py, rounds). {out} is the study's folder, {seed} the run's
# seed. † reads labels.
SETTINGS = {
    "scpo": ("ScPO", [], 3),
    "unweighted": ("ScPO, w = 1", ["--unweighted"], 2),
    "semi": ("ScPO, semi-supervised †", ["--method", "semi"], 2),
    "gold": ("IRPO, gold †", ["--method", "gold", "--new-problems", "0"], 2),
    "reward": ("IRPO, reward model", ["--method", "reward", "--new-problems", "0"], 2),
    "lmsi": ("LMSI", ["--method", "lmsi"], 2),
    "given": ("ScPO, no self-written problems", ["--new-problems", "0"], 2),
    "coin": ("control: a coin decides which is chosen", ["--method", "coin"], 2),
    "test-queries": (
        "ScPO, third round on the test questions",
        ["--model", "{out}/scpo-{seed}/M2/model", "--problems", str(TOY / "test.jsonl"),
         "--tau", "0.7", "--new-problems", "1000"],
        1,
    ),
    "tau-0.1": ("τ = 0.1k", ["--tau", "0.1"], 1),
    "tau-0.3": ("τ = 0.3k", ["--tau", "0.3"], 1),
    "tau-0.7": ("τ = 0.7k", ["--tau", "0.7"], 1),
    "tau-0.9": ("τ = 0.9k", ["--tau", "0.9"], 1),
    "reward-own": (
        "IRPO, reward model taught on problems of the task's length †",
        ["--method", "reward", "--reward-model", "{out}/reward-own"],
        1,
    ),
    "right-votes": (
        "ScPO on the problems whose vote is right †",
        ["--problems", "{out}/right-votes-{seed}.jsonl"],
        1,
    ),
    "right-votes-gold": (
        "IRPO, gold, on the same problems †",
        ["--method", "gold", "--problems", "{out}/right-votes-{seed}.jsonl"],
        1,
    ),
    "select-last": ("6 epochs, the last", ["--epochs", "6"], 1),
    "select-dev": (
        "6 epochs, best greedy accuracy on dev †", ["--epochs", "6", "--select", "dev"], 1),
    "select-votes": (
        "6 epochs, highest vote share on dev", ["--epochs", "6", "--select", "votes"], 1),
    "gold-6": ("IRPO, gold, 6 epochs †", ["--method", "gold", "--epochs", "6"], 1),
    "alpha-0": ("α = 0", ["--alpha", "0"], 1),
    "beta-0.1": ("β = 0.1", ["--beta", "0.1"], 1),
}
# The patches of bench/gallery, by name: each is applied to a copy of the code, which goes on from
# the samples of the seed's run of ScPO.
GALLERY = {
    "ipo": ("IPO's loss", [], 2),
    "entropy-weight": ("w(x) from the entropy of the answers", [], 2),
    "runner-up": ("the second most voted is rejected", [], 2),
    "all-pairs": ("every other answer is rejected", [], 2),
    "band": ("no pair where more than 0.75k agree", [], 2),
    "below-tau": ("no threshold τ", [], 2),
    "fixed-teacher": ("M0 answers and votes in all rounds", [], 2),
    "confidence": ("confidence as judge", [], 2),
    "random-nll": ("NLL on a random response", [], 2),
    "policy-gradient": (
        "policy gradient on the vote", ["--lr", "2e-5", "--epochs", "1"], 2),
}
# `lr-1e-4` is ScPO with --lr 1e-4, and so on: one option moved, all others as the task sets them.
MOVABLE = ("lr", "alpha", "beta", "epochs", "tau", "k")
LOCK = Lock()  # workers that need the same copy make it once
N_DEV = 200  # dev problems that select an epoch: the paper's 800 would take a day for as many runs


# --------------------------------------------------------------------------------------------
# The runs


def make_runs(args: Namespace) -> list[dict]:
    """Every run of the study, as lines of study.jsonl. ScPO's come first: others use them."""
    out = Path(args.out)
    groups = [[s for s in args.settings if s == "scpo"], [s for s in args.settings if s != "scpo"]]
    for group in groups:
        with ThreadPoolExecutor(args.workers) as pool:
            futures = []
            for setting in group:
                for seed in range(args.seeds):
                    futures.append(pool.submit(make_run, args, setting, seed))
            try:
                for future in futures:
                    future.result()
            except BaseException:  # neither after a failed run nor after Ctrl-C go on
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if group == ["scpo"] and "right-votes" in " ".join(args.settings):
            for seed in range(args.seeds):
                write_right_votes(out, seed)
    lines = []
    for setting in args.settings:
        lines += [describe_run(args, setting, seed) for seed in range(args.seeds)]
    return lines


def make_run(args: Namespace, setting: str, seed: int) -> None:
    """Run or continue one run."""
    folder, started = Path(args.out) / f"{setting}-{seed}", time.time()
    if (folder / f"M{describe(setting)[2]}/eval.json").exists():
        return
    threads = max(1, (os.cpu_count() or 1) // args.workers)
    code = patched_code(args, setting) if setting in GALLERY else ROOT
    script("train.py", *arguments(args, setting, seed), threads=threads, code=code)
    print(f"{folder}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)


def patched_code(args: Namespace, setting: str) -> Path:
    """A copy of the project with a patch of the gallery in it."""
    code = Path(args.out) / f"code-{setting}"
    with LOCK:
        if not code.exists():
            part = code.with_name(f"{code.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            ignored = shutil.ignore_patterns(".*", "runs", "tests", "__pycache__")
            shutil.copytree(ROOT, part, ignore=ignored)
            patch = ROOT / f"bench/gallery/{setting}.patch"
            subprocess.run(["git", "apply", "-p0", patch], cwd=part, check=True)
            part.rename(code)
    return code


def arguments(args: Namespace, setting: str, seed: int) -> list[str]:
    """The command line of a run, after `train.py`."""
    _, options, rounds = describe(setting)
    options = [option.format(out=args.out, seed=seed) for option in options]
    common = {
        "--model": args.model,
        "--test": str(TOY / f"{args.problems}.jsonl"),
        "--dev": f"{args.out}/dev.jsonl",
        "--rounds": str(rounds),
        "--seed": str(seed),
        "--out": f"{args.out}/{setting}-{seed}",
    }
    if setting != "scpo" and "scpo" in args.settings:
        common["--from"] = f"{args.out}/scpo-{seed}"
        if setting in GALLERY:
            common["--from"] += "/M1/responses.jsonl"
    for name, value in common.items():
        if name not in options:
            options += [name, value]
    return options


def describe(setting: str) -> tuple[str, list[str], int]:
    """A setting's row name, its options of train.py and its rounds."""
    name, _, value = setting.partition("-")
    if setting in SETTINGS or setting in GALLERY:
        return (SETTINGS | GALLERY)[setting]
    if name not in MOVABLE or not value:
        raise InputError(
            f"--settings {setting}: unknown; choose from {', '.join(SETTINGS | GALLERY)}, or "
            f"OPTION-VALUE with an option of {', '.join(MOVABLE)}")
    return f"--{name} {value}", [f"--{name}", value], 2


def script(
    *command: str | Path, threads: int = os.cpu_count() or 1, code: Path = ROOT
) -> None:
    """Run a script of the project, or of a patched copy of it.

    Raises InputError with its last line if it fails.
    """
    command = [str(part) for part in command]
    process = subprocess.run(
        [sys.executable, *command], cwd=code, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if process.returncode:
        last_line = process.stderr.strip().split("\n")[-1]
        raise InputError(f"{' '.join(command)} failed: {last_line}")


def prepare(args: Namespace) -> None:
    """What some settings read. Refuses a folder begun otherwise: its runs would be mixed up."""
    out, made_for = Path(args.out), {"model": args.model, "problems": args.problems}
    before = read_json(out / "study.json") or made_for
    if before != made_for:
        raise InputError(f"--out {out}: begun with {before}; choose another folder")
    write_json(out / "study.json", made_for)
    if not (out / "dev.jsonl").exists():
        write_jsonl(out / "dev.jsonl", read_jsonl(TOY / "dev.jsonl")[:N_DEV])
    if "reward-own" in args.settings and not (out / "reward-own").exists():
        part = out / "reward-own.part"
        script("-m", "tasks.toy.reward", "--m0", args.model, "--steps", "5", "--out", part)
        part.rename(out / "reward-own")


def write_right_votes(out: Path, seed: int) -> None:
    """The given questions whose vote is right among a seed's samples of M0, with their answers."""
    rows = []
    for row in read_jsonl(out / f"scpo-{seed}/M1/responses.jsonl"):
        gold = make.solve(row["question"])
        if winner(row) == str(gold):
            rows.append({"id": row["id"], "question": row["question"], "answer": f"#### {gold}"})
    write_jsonl(out / f"right-votes-{seed}.jsonl", rows)


def winner(row: dict) -> str | None:
    return majority_vote(response_answers(row, "toy"), random.Random(0))[0]


# --------------------------------------------------------------------------------------------
# What the tables need of a run


def describe_run(args: Namespace, setting: str, seed: int) -> dict:
    """A line of study.jsonl: the results of each round, and what the solver says of its files."""
    folder = Path(args.out) / f"{setting}-{seed}"
    results = read_json(folder / "results.json")
    for name, result in results.items():
        if (folder / f"{name}/pairs.jsonl").exists():
            result["quality"] = quality(folder / name)
            result["written"] = written_problems(folder / name)
        if setting == "scpo" and args.model == str(TOY / "model"):  # others had other teachers
            result["sums"] = sums(folder / name)
    line = {"setting": setting, "seed": seed, "results": results}
    if setting == "scpo":
        line["judges"] = judges(args, seed)
    return line


def quality(folder: Path) -> dict:
    """How often the chosen and the rejected responses of a round are right."""
    golds = {}
    for row in read_jsonl(folder / "problems.jsonl"):
        golds[row["id"]] = str(make.solve(row["question"]))
    pairs = read_jsonl(folder / "pairs.jsonl")
    frequent = [pair for pair in pairs if pair["rejected"] and pair["votes_rejected"] > 1]
    return {**pair_quality(pairs, golds, "toy"), "rejects_frequent": len(frequent) / len(pairs)}


def written_problems(folder: Path) -> dict[str, int]:
    """How many problems the model wrote, how many of them have an answer, and a right vote."""
    counts = {"written": 0, "answerable": 0, "right_vote": 0}
    for row in read_jsonl(folder / "responses.jsonl"):
        if "new" in row["id"]:
            gold = make.solve(row["question"])
            counts["written"] += 1
            counts["answerable"] += gold is not None
            counts["right_vote"] += gold is not None and winner(row) == str(gold)
    return counts


def sums(folder: Path) -> dict[str, list[int]]:
    """Sums in greedy responses, right and all: those M0's teacher often got wrong, and others."""
    weak = make.documents(make.options().parse_args([]))[1].weak
    counts = {"doubtful": [0, 0], "others": [0, 0]}
    for row in read_jsonl(folder / "eval_responses.jsonl"):
        for a, sign, b, c in re.findall(r"(\d+) ([-+]) (\d+) = (\d+)", row["greedy"]):
            total, n = int(a), int(sign + b)
            kind = counts["doubtful" if (total, n) in weak else "others"]
            kind[0] += total + n == int(c)
            kind[1] += 1
    return counts


def judges(args: Namespace, seed: int) -> dict:
    """Votes and the reward model as judges of M0 on the test problems; kept in a file."""
    path = Path(args.out) / f"judges-{seed}.json"
    if not path.exists():
        rows = read_responses(Path(args.out) / f"scpo-{seed}/M0/eval_responses.jsonl")
        judge, tokenizer = load_checkpoint(TOY / "reward", kind=RewardModel)
        rewards = reward_responses(judge, tokenizer, rows, 512, f"rewards {seed}")
        votes = [count_votes(response_answers(row, "toy")) for row in rows]
        found = {"reward": order_shares(rows, "toy", rewards),
                 "votes": order_shares(rows, "toy", votes)}
        many = Path(args.out) / f"m0-k16-{seed}.jsonl"
        if not many.exists():
            script("eval.py", "--model", args.model, "--problems", TOY / f"{args.problems}.jsonl",
                   "--k", "16", "--seed", str(seed), "--out", many)
        rows = read_responses(many)
        found["somers_d"] = {str(k): votes_and_accuracy(rows, "toy", k) for k in (2, 4, 8, 16)}
        write_json(path, found)
    return read_json(path)


# --------------------------------------------------------------------------------------------
# As a script


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", default=str(TOY / "model"), help="M0")
    add("--out", default="runs/study", help="folder of the runs")
    add("--seeds", type=integer(1), default=5, help="runs per setting, with seeds 0, 1, …")
    add("--problems", choices=("test", "dev"), default="test", help="what the runs are measured on")
    add("--settings", nargs="+", default=list(SETTINGS), help="rows to make; OPTION-VALUE, as "
        "lr-1e-4, moves one option")
    add("--workers", type=integer(1), default=2, help="runs at once, which share the cores")
    return parser


def main() -> None:
    args = options().parse_args()
    args.settings = list(dict.fromkeys(args.settings))
    args.model, args.out = str(Path(args.model).resolve()), str(Path(args.out).resolve())
    for setting in args.settings:
        describe(setting)
    prepare(args)
    lines = make_runs(args)
    write_jsonl(Path(args.out) / "study.jsonl", lines)
    from bench.report import main_table

    rows = [(setting, describe(setting)[0]) for setting in args.settings]
    print(main_table(lines, rows))
    print(json.dumps({"lines": len(lines), "file": f"{args.out}/study.jsonl"}))


if __name__ == "__main__":
    run_script(main)
