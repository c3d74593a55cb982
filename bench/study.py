"""The whole study of the miniature: every comparison of the paper, over several seeds, as tables and figures.

    python bench/study.py                                       # 5 seeds, 2½ hours on two cores; stop it at any time
    python bench/study.py --settings scpo coin --seeds 3        # part of it
    python bench/study.py --problems dev --out runs/tuning --seeds 1 --settings scpo lr-1e-4 alpha-1

Every run is `python train.py` with the options of SETTINGS, in OUT/SETTING-SEED; runs that exist are kept, and the
files that two runs would make alike (M0's evaluation, the responses of round 1) are copied from the seed's run of ScPO.
A seed changes samples, ties, order of the pairs and the questions the model writes; the given questions, the test
problems and M0 stay the same. With --results FILE the tables replace those between the marks in that Markdown file, and
the figures are drawn in bench/figures/ (which needs matplotlib).
"""

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from eval import (RewardModel, majority, order_shares, pair_quality, percent, reward_responses,  # noqa: E402
                  votes_and_accuracy)
from sample import Task, load_checkpoint  # noqa: E402
from tasks.toy import make  # noqa: E402
from vote import (InputError, check_options, count_votes, option, parse_options, read_jsonl, read_responses,  # noqa: E402
                  response_answers, run_script, write_jsonl, write_text)

TOY = ROOT / "tasks/toy"
# setting: (row name, options of train.py, rounds). {out} is the study's folder, {seed} the run's seed. † reads labels.
LABELLED = ["--problems", "{out}/train-with-answers.jsonl"]
SETTINGS = {
    "scpo": ("ScPO", [], 3),
    "unweighted": ("ScPO, w = 1", ["--no-weight"], 2),
    "semi": ("ScPO, semi-supervised †", ["--supervision", "semi", *LABELLED], 2),
    "gold": ("IRPO, gold †", ["--supervision", "gold", "--new-problems", "0", *LABELLED], 2),
    "reward": ("IRPO, reward model", ["--supervision", "reward", "--new-problems", "0"], 2),
    "lmsi": ("LMSI", ["--supervision", "lmsi"], 2),
    "given": ("ScPO, no self-written problems", ["--new-problems", "0"], 2),
    "coin": ("control: a coin decides which is chosen", ["--supervision", "coin"], 2),
    "test-queries": ("ScPO, third round on the test questions",
                     ["--model", "{out}/scpo-{seed}/M2/model", "--problems", str(TOY / "test.jsonl"), "--tau", "0.7",
                      "--new-problems", "1000"], 1),
    "tau-0.1": ("τ = 0.1k", ["--tau", "0.1"], 1),
    "tau-0.3": ("τ = 0.3k", ["--tau", "0.3"], 1),
    "tau-0.7": ("τ = 0.7k", ["--tau", "0.7"], 1),
    "tau-0.9": ("τ = 0.9k", ["--tau", "0.9"], 1),
    "reward-own": ("IRPO, reward model taught on problems of the task's length †",
                   ["--supervision", "reward", "--reward-model", "{out}/reward-own"], 1),
    "right-votes": ("ScPO on the problems whose vote is right †", ["--problems", "{out}/right-votes-{seed}.jsonl"], 1),
    "right-votes-gold": ("IRPO, gold, on the same problems †",
                         ["--supervision", "gold", "--problems", "{out}/right-votes-{seed}.jsonl"], 1),
    "choose-last": ("6 epochs, the last", ["--epochs", "6", "--choose", "last"], 1),
    "choose-dev": ("6 epochs, best greedy accuracy on dev †", ["--epochs", "6", "--choose", "dev"], 1),
    "choose-votes": ("6 epochs, highest vote share on dev", ["--epochs", "6", "--choose", "votes"], 1),
    "gold-6": ("IRPO, gold, 6 epochs †", ["--supervision", "gold", "--epochs", "6", *LABELLED], 1),
    "alpha-0": ("α = 0", ["--alpha", "0"], 1),
    "beta-0.1": ("β = 0.1", ["--beta", "0.1"], 1),
}
# `lr-1e-4` is ScPO with --lr 1e-4, and so on: one option moved, all others as the task sets them.
MOVABLE = ("lr", "alpha", "beta", "epochs", "tau", "k")
THRESHOLDS = {0.1: "tau-0.1", 0.3: "tau-0.3", 0.5: "scpo", 0.7: "tau-0.7", 0.9: "tau-0.9"}  # of round 1
# What the first samples depend on, beside the questions.
SAMPLES = ("model", "test", "k", "temperature", "top_p", "extra", "extra_temperature", "max_new_tokens", "limit",
           "seed")
DEV = 200  # dev problems that choose an epoch: the paper's 800, for as many runs as this, would take a day
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's t, by runs
FIGURES = ROOT / "bench/figures"
MARKS = ("claims", "methods", "written", "thresholds", "judges", "control", "epochs", "options")  # of RESULTS.md


@dataclass
class Options:
    model: str = option(str(make.HERE / "model"), "M0")
    out: str = option("runs/study", "folder of the runs")
    seeds: int = option(5, "runs per setting, seeds 0, 1, …, at most 10")
    problems: str = option("test", "what the runs are measured on: test, or dev for choosing options")
    settings: tuple[str, ...] = option(tuple(SETTINGS), "rows to make; OPTION-VALUE, as lr-1e-4, moves one option")
    workers: int = option(2, "runs at once; the cores are shared out among them")
    results: str | None = option(None, "Markdown file whose marked tables are replaced; needs all settings")


RULES = {
    "seeds": (lambda v: 1 <= v <= 10, "from 1 to 10"),
    "workers": (lambda v: v >= 1, "at least 1"),
    "problems": (lambda v: v in ("test", "dev"), "test or dev"),
}


# ---------------------------------------------------------------------------------------------------------------------
# The runs


def described(setting: str) -> tuple[str, list[str], int]:
    """A setting's row name, its options of train.py and its rounds."""
    name, _, value = setting.partition("-")
    if setting not in SETTINGS and (name not in MOVABLE or not value):
        raise InputError(f"--settings {setting}: unknown; choose from {', '.join(SETTINGS)}, or OPTION-VALUE with an "
                         f"option of {', '.join(MOVABLE)}")
    return SETTINGS.get(setting, (f"--{name} {value}", [f"--{name}", value], 2))


def arguments(options: Options, setting: str, seed: int) -> list[str]:
    """The command line of a run, after `train.py`."""
    _, given, rounds = described(setting)
    given = [text.format(out=options.out, seed=seed) for text in given]
    shared = {"--model": options.model, "--test": str(TOY / f"{options.problems}.jsonl"), "--rounds": str(rounds),
              "--dev": f"{options.out}/dev.jsonl", "--seed": str(seed), "--out": f"{options.out}/{setting}-{seed}"}
    return [part for name, value in shared.items() if name not in given for part in (name, value)] + given


def script(*command: str | Path, threads: int = os.cpu_count() or 1) -> None:
    """Run a script of the project. Raises InputError with its last line if it fails."""
    process = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if process.returncode:
        raise InputError(f"{' '.join(map(str, command))} failed: {process.stderr.strip()[-300:].splitlines()[-1:]}")


def prepare(options: Options) -> None:
    """What some settings read: the training questions with their answers, the solver's, and a part of dev.

    A folder begun from another M0 or measured on other problems is refused, since its runs would be mixed up.
    """
    out, made_for = Path(options.out), {"model": options.model, "problems": options.problems}
    before = json.loads((out / "study.json").read_text()) if (out / "study.json").exists() else made_for
    if before != made_for:
        raise InputError(f"--out {out}: begun with {before}; choose another folder")
    write_text(out / "study.json", json.dumps(made_for))
    rows = read_jsonl(TOY / "train.jsonl")
    for name, made in (("train-with-answers", [r | {"answer": f"#### {make.solve(r['question'])}"} for r in rows]),
                       ("dev", read_jsonl(TOY / "dev.jsonl")[:DEV])):
        if not (out / f"{name}.jsonl").exists():
            write_jsonl(out / f"{name}.jsonl", made)
    if "reward-own" in options.settings and not (out / "reward-own").exists():
        script("-m", "tasks.toy.reward", "--m0", options.model, "--steps", "5", "--out", out / "reward-own.part")
        (out / "reward-own.part").rename(out / "reward-own")


def share(options: Options, setting: str, seed: int, argv: list[str]) -> None:
    """Copy what the seed's run of ScPO has made and this run would make alike: M0's evaluation, round 1's samples."""
    folder, scpo = Path(options.out) / f"{setting}-{seed}", Path(options.out) / f"scpo-{seed}"
    if folder.exists() or not (scpo / "M1/model").exists():
        return
    mine = json.loads(json.dumps(asdict(train.complete(parse_options(train.Options, "", argv), Task.load("toy")))))
    theirs = json.loads((scpo / "options.json").read_text())
    questions = [[(row["id"], row["question"]) for row in read_jsonl(run["problems"])] for run in (mine, theirs)]
    if questions[0] != questions[1] or any(mine[name] != theirs[name] for name in SAMPLES) or \
            mine["new_problems"][0] != theirs["new_problems"][0]:
        return
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(scpo / "M0", beside / "M0")
    (beside / "M1").mkdir()
    for name in ("problems.jsonl", "responses.jsonl"):
        shutil.copyfile(scpo / "M1" / name, beside / "M1" / name)
    write_text(beside / "results.json", json.dumps({"M0": results_of(scpo)["M0"]}))
    write_text(beside / "options.json", json.dumps(mine))
    beside.rename(folder)


def write_right_votes(options: Options, seed: int) -> None:
    """The given questions that the majority of a seed's samples of M0 gets right, with the solver's answers."""
    winner = lambda row: majority(response_answers(row, "toy"), "toy", random.Random(0))[0]
    golds = {row["id"]: make.solve(row["question"]) for row in read_jsonl(TOY / "train.jsonl")}
    rows = read_jsonl(Path(options.out) / f"scpo-{seed}/M1/responses.jsonl")
    write_jsonl(Path(options.out) / f"right-votes-{seed}.jsonl", [
        {"id": row["id"], "question": row["question"], "answer": f"#### {golds[row['id']]}"} for row in rows
        if winner(row) == str(golds[row["id"]])])


def make_run(options: Options, setting: str, seed: int) -> Path:
    """Run or continue one run; its folder."""
    argv, folder = arguments(options, setting, seed), Path(options.out) / f"{setting}-{seed}"
    if not (folder / f"M{described(setting)[2]}/eval.json").exists():
        started = time.time()
        share(options, setting, seed, argv)
        script("train.py", *argv, threads=max(1, (os.cpu_count() or 1) // options.workers))
        print(f"{folder}: {time.time() - started:.0f} s", file=sys.stderr, flush=True)
    return folder


def make_runs(options: Options) -> dict[str, list[Path]]:
    """The folders of every setting's runs. ScPO's come first: others start from them."""
    folders = {}
    first = [setting for setting in options.settings if setting == "scpo"]
    for group in (first, [setting for setting in options.settings if setting != "scpo"]):
        with ThreadPoolExecutor(options.workers) as pool:
            futures = {setting: [pool.submit(make_run, options, setting, seed) for seed in range(options.seeds)]
                       for setting in group}
            try:
                folders |= {setting: [future.result() for future in runs] for setting, runs in futures.items()}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # neither after a failed run nor after Ctrl-C go on
                raise
        if group == ["scpo"] and "right-votes" in " ".join(options.settings):
            for seed in range(options.seeds):
                write_right_votes(options, seed)
    return {setting: folders[setting] for setting in options.settings}


# ---------------------------------------------------------------------------------------------------------------------
# Numbers


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def values(folders: list[Path], t: str, name: str) -> list[float]:
    """A result of M_t, one number per run."""
    return [results_of(folder)[t][name] for folder in folders]


def cell(numbers: list[float], scale: float = 100.0) -> str:
    """Mean ± standard error over seeds."""
    spread = f" ± {scale * statistics.stdev(numbers) / len(numbers) ** 0.5:.1f}" if len(numbers) > 1 else ""
    return f"{scale * statistics.fmean(numbers):.1f}{spread}"


def interval(numbers: list[float]) -> tuple[float, float, float]:
    """Mean of a difference over seeds and its 95 % interval (Student's t)."""
    mean = statistics.fmean(numbers)
    half = T95[len(numbers)] * statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("inf")
    return mean, mean - half, mean + half


def verdict(numbers: list[float], above: float = 0.0) -> str:
    """Whether the whole interval of a difference, paired by seed, is above a bound, or below it, or neither."""
    _, low, high = interval(numbers)
    return "holds" if low > above else "does not hold" if high < above else "within noise"


def difference(numbers: list[float]) -> str:
    mean, low, high = (100 * x for x in interval(numbers))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def rows_of(name: str, folders: list[Path], shift: int = 0) -> list[str]:
    """One line per round of a setting; its rounds count from `shift`."""
    results = [results_of(folder) for folder in folders]
    lines = []
    for t in results[0]:
        entries, before, shown = [r[t] for r in results], f"M{int(t[1:]) - 1}", f"M{int(t[1:]) + shift}"
        step = "" if t == "M0" else cell([r[t]["greedy"] - r[before]["greedy"] for r in results])
        pairs = "" if t == "M0" else f"{statistics.fmean(e['pairs'] for e in entries):.0f}"
        lines.append(f"| {name} | {shown} | {cell([e['greedy'] for e in entries])} | {step} | "
                     f"{cell([e['self_consistency'] for e in entries])} | {cell([e['vote_share'] for e in entries])} | "
                     f"{pairs} |")
    return lines


def written_problems(folders: list[Path]) -> str:
    """How good the model's own problems of round 2 are, by the solver."""
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


def inside(options: Options, folders: list[Path]) -> str:
    """What happens inside ScPO's runs."""
    shipped = Path(options.model) == make.HERE / "model"  # another M0 had another teacher
    return written_problems(folders) + ("\n\n" + doubtful_sums(folders) if shipped else "")


def qualities(folders: list[Path]) -> list[dict]:
    """Accuracy of the chosen and rejected responses of round 1, by the solver, one entry per run."""
    golds = {row["id"]: str(make.solve(row["question"])) for row in read_jsonl(folders[0] / "M1/problems.jsonl")}
    return [pair_quality(read_jsonl(folder / "M1/pairs.jsonl"), golds, "toy") for folder in folders]


def rejected_votes(runs: dict[str, list[Path]], settings: tuple[str, ...]) -> str:
    """Does round 1 reject rare slips or frequent mistakes?"""
    share = lambda folder: statistics.fmean(p["votes_rejected"] > 1 for p in read_jsonl(folder / "M1/pairs.jsonl"))
    return "The rejected answer has two votes or more in " + ", ".join(
        f"{cell([share(folder) for folder in runs[setting]])} % of the pairs of “{described(setting)[0]}”"
        for setting in settings) + "."


def analysis(options: Options, seed: int) -> dict:
    """Votes and rewards as judges of M0 on the test problems, from 16 samples of that seed; kept in a file."""
    path = Path(options.out) / f"judges-{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    rows = read_responses(Path(options.out) / f"scpo-{seed}/M0/eval_responses.jsonl")
    judge, text = load_checkpoint(str(TOY / "reward"), "auto", "cpu", "float32", RewardModel)
    found = {"reward": order_shares(rows, "toy", reward_responses(judge, text, rows, 512, f"rewards {seed}"))}
    found["votes"] = order_shares(rows, "toy", [count_votes(response_answers(r, "toy"), "toy") for r in rows])
    many = Path(options.out) / f"m0-k16-{seed}.jsonl"
    if not many.exists():
        script("eval.py", "--model", options.model, "--problems", TOY / f"{options.problems}.jsonl", "--k", "16",
               "--seed", seed, "--out", many)
    rows = read_responses(many)
    found["somers_d"] = {k: votes_and_accuracy(rows, "toy", k) for k in (2, 4, 8, 16)}
    write_text(path, json.dumps(found))
    return json.loads(path.read_text())


# ---------------------------------------------------------------------------------------------------------------------
# Tables


HEAD = "| | | greedy % | gain | self-consistency % | vote share % | pairs |\n|---|---|---|---|---|---|---|"


def main_table(runs: dict[str, list[Path]], settings: tuple[str, ...]) -> str:
    lines = [HEAD]
    for setting in settings:
        rows = rows_of(described(setting)[0], runs[setting], shift=2 if setting == "test-queries" else 0)
        lines += rows if setting == "scpo" else rows[1:]  # all start from M0, or from a row above
    return "\n".join(lines)


def tau_table(runs: dict[str, list[Path]]) -> str:
    lines = ["| | pairs | chosen right % | rejected right % | margin | greedy % | self-consistency % |",
             "|---|---|---|---|---|---|---|"]
    for tau, setting in THRESHOLDS.items():
        found = qualities(runs[setting])
        columns = [f"{statistics.fmean(quality['pairs'] for quality in found):.0f}"]
        columns += [cell([q[key] for q in found]) for key in ("chosen_accuracy", "rejected_accuracy", "margin")]
        columns += [cell(values(runs[setting], "M1", name)) for name in ("greedy", "self_consistency")]
        lines.append(f"| τ = {tau}k | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def judge_tables(found: list[dict]) -> str:
    lines = ["| M0's correct/wrong pairs of responses | right % | tied % | wrong % |", "|---|---|---|---|"]
    for judge, name in (("votes", "by votes"), ("reward", "by the reward model")):
        lines.append(f"| {name} | " + " | ".join(
            cell([f[judge][order] for f in found]) for order in ("right", "tied", "wrong")) + " |")
    lines += ["", "| Somers' D, M0 | k = 2 | k = 4 | k = 8 | k = 16 |", "|---|---|---|---|---|"]
    for direction, name in enumerate(("of votes, given accuracy", "of accuracy, given votes")):
        means = [statistics.fmean(f["somers_d"][k][direction] for f in found) for k in ("2", "4", "8", "16")]
        lines.append(f"| {name} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    return "\n".join(lines)


def minus(runs: dict[str, list[Path]], a: tuple[str, str], b: tuple[str, str], name: str = "greedy") -> list[float]:
    """Differences by seed: result `name` of (setting, M_t) a less that of b."""
    return [x - y for x, y in zip(values(runs[a[0]], a[1], name), values(runs[b[0]], b[1], name))]


def claims_table(runs: dict[str, list[Path]], found: list[dict]) -> str:
    """Claims of the paper: its number, ours over the seeds, and whether it holds."""
    apart = lambda a, b: [x - y for x, y in zip(a, b)]
    share = lambda a, b: minus(runs, ("scpo", a), ("scpo", b), "vote_share")
    help_of_votes = {t: apart(values(runs["scpo"], t, "self_consistency"), values(runs["scpo"], t, "greedy"))
                     for t in ("M0", "M1", "M2")}
    margins = {tau: [quality["margin"] for quality in qualities(runs[s])] for tau, s in THRESHOLDS.items()}
    better = lambda a, b: minus(runs, tuple(a.split()), tuple(b.split()))
    # what is claimed, in the paper, here, and the bound that the difference must exceed
    claims = [
        ("M1 above M0, greedy", "+19.9; MATH +2.9", better("scpo M1", "scpo M0"), 0),
        ("M2 above M1, greedy", "+2.9; MATH +2.4", better("scpo M2", "scpo M1"), 0),
        ("a third round adds less than 2 points: M2 − M3", "−0.3; MATH −0.0", better("scpo M2", "scpo M3"), -.02),
        ("a third round on the test questions above M3", "+1.1; MATH +0.2", better("test-queries M1", "scpo M3"), 0),
        ("ScPO less than 2 points below gold, M2", "−0.4; MATH −0.6", better("scpo M2", "gold M2"), -.02),
        ("semi-supervised above gold, M2", "+2.4; MATH +0.2", better("semi M2", "gold M2"), 0),
        ("ScPO above reward model, M1", "+12.4; MATH −0.7; Zebra +5.7", better("scpo M1", "reward M1"), 0),
        ("ScPO above reward model, M2", "+13.8; MATH +1.6", better("scpo M2", "reward M2"), 0),
        ("ScPO above LMSI, M1", "+7.5; MATH +0.6; Zebra +0.8", better("scpo M1", "lmsi M1"), 0),
        ("ScPO above LMSI, M2", "+7.2; MATH +2.8; Zebra +1.3", better("scpo M2", "lmsi M2"), 0),
        ("weighted above w = 1, M1", "+2.5; MATH +1.4", better("scpo M1", "unweighted M1"), 0),
        ("weighted above w = 1, M2", "+1.3; MATH +1.0", better("scpo M2", "unweighted M2"), 0),
        ("vote share rises, M0 → M1", "yes (Figure 2)", share("M1", "M0"), 0),
        ("vote share rises, M1 → M2", "yes (Figure 2)", share("M2", "M1"), 0),
        ("margin of the pairs rises, τ = 0.1k → 0.3k", "MATH +26", apart(margins[0.3], margins[0.1]), 0),
        ("margin of the pairs rises, τ = 0.3k → 0.5k", "MATH +13", apart(margins[0.5], margins[0.3]), 0),
        ("margin of the pairs rises, τ = 0.5k → 0.7k", "MATH +11", apart(margins[0.7], margins[0.5]), 0),
        ("the middle τ is best: 0.5k above 0.1k, M1", "MATH +1.9", better("scpo M1", "tau-0.1 M1"), 0),
        ("the middle τ is best: 0.5k above 0.7k, M1", "MATH +2.6", better("scpo M1", "tau-0.7 M1"), 0),
        ("self-consistency helps less, M0 → M1", "10.6 → 10.5; MATH 3.7 → 8.3",
         apart(help_of_votes["M0"], help_of_votes["M1"]), 0),
        ("self-consistency helps less, M1 → M2", "10.5 → 7.2; MATH 8.3 → 4.9",
         apart(help_of_votes["M1"], help_of_votes["M2"]), 0),
        ("votes order fewer pairs wrong than the reward model", "+11.3; MATH +20.6; Zebra +24.5",
         [f["reward"]["wrong"] - f["votes"]["wrong"] for f in found], 0),
        ("self-written problems help, M2", "–", better("scpo M2", "given M2"), 0),
        ("an epoch chosen by votes less than 2 points below one by labels", "–",
         better("choose-votes M1", "choose-dev M1"), -.02),
        ("a vote is better than a coin, M1", "–", better("scpo M1", "coin M1"), 0)]
    return "\n".join(["| claim | paper, points | here, points [95 % interval] | |", "|---|---|---|---|", *(
        f"| {claim} | {paper} | {difference(numbers)} | {verdict(numbers, above)} |"
        for claim, paper, numbers, above in claims)])


def replace_block(text: str, name: str, block: str) -> str:
    """Put a table between its marks in a Markdown text."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.S)
    if not pattern.search(text):
        raise InputError(f"--results: the file has no <!-- {name} --> … <!-- end -->")
    return pattern.sub(lambda match: f"{match[1]}\n{block}\n\n{match[2]}", text)


def all_blocks(options: Options, runs: dict[str, list[Path]], found: list[dict]) -> dict[str, str]:
    """The tables of RESULTS.md by MARKS."""
    methods = [s for s in SETTINGS if SETTINGS[s][2] > 1 or s == "test-queries"]
    return {"claims": claims_table(runs, found), "methods": main_table(runs, methods),
            "written": inside(options, runs["scpo"]),
            "thresholds": tau_table(runs), "judges": judge_tables(found),
            "control": main_table(runs, ["reward-own", "right-votes", "right-votes-gold"]) + "\n\n"
            + rejected_votes(runs, ("right-votes", "right-votes-gold")),
            "epochs": main_table(runs, ["choose-last", "choose-dev", "choose-votes", "gold-6"]),
            "options": main_table(runs, ["alpha-0", "beta-0.1"])}


def write_results(options: Options, runs: dict[str, list[Path]]) -> None:
    """Put the tables into the Markdown file, and draw the figures."""
    from bench.figures import draw  # needs matplotlib

    found = [analysis(options, seed) for seed in range(options.seeds)]
    text = Path(options.results).read_text()
    for name, block in all_blocks(options, runs, found).items():
        text = replace_block(text, name, block)
    points = {tau: (values(runs[s], "M1", "greedy"), statistics.fmean(values(runs[s], "M1", "pairs")))
              for tau, s in THRESHOLDS.items()}
    draw(values, runs, found, points, FIGURES)
    write_text(options.results, text)


def check(options: Options) -> None:
    """Refuse now what would only show after the runs."""
    check_options(options, RULES)
    for setting in options.settings:
        described(setting)
    if options.results:
        if absent := set(SETTINGS) - set(options.settings):
            raise InputError(f"--results: needs every setting, {', '.join(sorted(absent))} are left out")
        if options.seeds < 2:
            raise InputError("--results: needs --seeds 2 or more, for the intervals")
        import bench.figures  # noqa: F401  says so if matplotlib is missing

        if not Path(options.results).exists():
            raise InputError(f"--results {options.results}: no such file; copy RESULTS.md, whose marks it fills in")
        text = Path(options.results).read_text()
        for name in MARKS:
            replace_block(text, name, "")


def main() -> None:
    options = parse_options(Options, __doc__)
    options.settings = tuple(dict.fromkeys(options.settings))
    options.model, options.out = (str(Path(path).resolve()) for path in (options.model, options.out))
    check(options)
    prepare(options)
    runs = make_runs(options)
    print(main_table(runs, options.settings))
    if "scpo" in runs:
        print("\n" + inside(options, runs["scpo"]))
    if options.results:
        write_results(options, runs)


if __name__ == "__main__":
    run_script(main)
