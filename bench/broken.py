"""Break inputs at random: each must be refused in one line that names it, or do no harm.

    python bench/broken.py [--seed 0] [--count 400] [--out bench/results/broken.json]

A case is a copy of all inputs of the toy task (problems, responses, a checkpoint folder in two
files, a run that was stopped in its training) with one of them broken, or one option; a script
takes it, in a process of its own. Printed is what came of the cases, and those that went wrong.
Exits with 1 if there is one.
"""

import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")

import common.checkpoint
import eval as evaluation
import sample
import train
import vote
from common.cli import ArgumentParser, InputError, path_name, integer, run_script
from common.files import write_json, write_jsonl
from common.options import add_sampling_options
from model import Llama

SECONDS, WAIT = 20, 200  # a case that computes, or waits, for longer hangs
OUTCOMES = ("refused", "accepted", "traceback", "many lines", "hang", "not named", "changed",
            "control characters")
GOOD = OUTCOMES[:2]
SMALL = "--limit 3 --k 2 --max-new-tokens 40 --max-num-seqs 4 --model model".split()
TRAIN = [*SMALL, *"--rounds 1 --epochs 2 --batch-size 1 --lr 1e-5 --save-every 2 --test test.jsonl "
         "--problems problems.jsonl --dev dev.jsonl --select dev".split()]
ARGV = {train: [*TRAIN, "--out", "run"],
        sample: [*SMALL, "--problems", "problems.jsonl", "--out", "new.jsonl"],
        evaluation: [*SMALL, "--problems", "test.jsonl", "--out", "new.jsonl"]}
# A run may write these anew, whatever they held.
OF_THE_RUN = ("options.json", "stages.json", "results.json", "eval.json", "lock")
# What comes in place of a value in a JSON file, and of the value of an option.
VALUES = (None, True, -1, 0, 7, 10**6, 10**30, 1.5, math.nan, math.inf, "", "x", "1", "../x",
          "a\nb", "\x1b]0;x\x07\x1b[2J", "<|end_of_text|>", "\u202e", [], [None], ["x"], {},
          "W" * 9999)
TEXTS = ("", " ", "\n", "a\nb", "\x1b[2J", str(10**18), "-1", "0", "1e-46", "3e38", "1e400", "nan",
         "inf", "x", "٣", "0x10", "1.5", "/dev/null/x", "W" * 300, "--k", "model", "*", "meta")


class Case(NamedTuple):
    kind: str  # of what was broken
    script: ModuleType
    argv: list[str]
    names: list[str]  # one of which the refusal must say


# --------------------------------------------------------------------------------------------
# The inputs


def make_inputs(folder: Path) -> None:
    """Of which each case breaks a copy."""
    toy = ROOT / "tasks/toy"
    for name, source in (("problems", "train"), ("test", "test"), ("dev", "dev")):
        lines = (toy / f"{source}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:4]))
    row = {"question": "How many?", "responses": ["#### 4", "#### 5"], "ended": [True, True],
           "gold": "4", "greedy": "#### 4", "greedy_ended": True}
    write_jsonl(folder / "responses.jsonl", [{"id": i, **row} for i in range(3)])
    common.checkpoint.SHARD_BYTES = 2 * 10**6
    shutil.copytree(toy / "model", folder / "model")
    (folder / "model/model.safetensors").unlink()
    Llama.from_pretrained(toy / "model").save_pretrained(folder / "model")
    summary, train.summary = train.summary, stop
    code, _, errors = run_in_child(Case("", train, ARGV[train], []), folder)
    train.summary = summary
    if code != 130:
        raise InputError(f"the whole inputs are refused: {errors}")
    for path in (folder / "mine.txt", folder / "run/mine.txt"):
        path.write_text("the user's")


def stop(log: list[dict]) -> None:
    """In place of a training's last line: it ends before its log is a file."""
    raise KeyboardInterrupt


def snapshot(folder: Path) -> dict[str, int]:
    """When each file was last changed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


# --------------------------------------------------------------------------------------------
# Breaking one


def break_value(value: Any, rng: random.Random) -> Any:
    """Something else in place of a value, or of one inside it, which may also be deleted."""
    if not isinstance(value, (dict, list)) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    broken = value.copy()
    if rng.random() < 0.15:
        del broken[key]
    else:
        broken[key] = break_value(value[key], rng)
    return broken


def break_json(data: bytes, rng: random.Random) -> bytes:
    return json.dumps(break_value(json.loads(data), rng)).encode()


def break_lines(data: bytes, rng: random.Random) -> bytes:
    """Fewer lines, or in another order, or one of them is broken."""
    lines = data.splitlines()
    i = rng.randrange(len(lines))
    if rng.random() < 0.2:
        lines = rng.choice([lines[:i], lines[::-1], lines + lines[:1]])
    else:
        lines[i] = break_json(lines[i], rng)
    return b"\n".join(lines)


def break_tensors(data: bytes, rng: random.Random) -> bytes:
    """The last weight is NaN, or the header says something else."""
    if rng.random() < 0.3:
        return data[:-4] + b"\xff\xff\xff\x7f"
    size = int.from_bytes(data[:8], "little")
    header = break_json(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def break_bytes(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    before, after = data[:place], data[place:]
    return rng.choice([b"", before, after, b"\x00" * len(data), b"\xff" + data, b"[" * 10**5,
                       data + data, before + b"\x1b[2J\r" + after, before + b"0" + after[1:]])


BREAK = {".json": break_json, ".jsonl": break_lines, ".safetensors": break_tensors}


def break_file(path: Path, rng: random.Random) -> None:
    """It is changed, by what it holds or by its bytes; or it is gone, or a folder."""
    data, chance = path.read_bytes(), rng.random()
    if chance < 0.7:
        path.write_bytes(BREAK[path.suffix](data, rng))
    elif chance < 0.9:
        path.write_bytes(break_bytes(data, rng))
    else:
        path.unlink()
        if chance < 0.95:
            path.mkdir()


def make_case(folder: Path, rng: random.Random) -> Case:
    """Break one of the inputs in a folder, or an option."""
    kind = rng.choice(["problems", "responses", "checkpoint", "run", "options"])
    script = rng.choice([train, sample, evaluation])
    if kind == "options":
        parser = train.options()
        if script is not train:
            parser = ArgumentParser(None)
            add_sampling_options(parser)
        option = rng.choice([action for action in parser._actions if action.nargs != 0])
        text = rng.choice(TEXTS)
        # Of an option that takes a file, its name is enough.
        names = [*option.option_strings, option.dest, f"{text}: ", repr(text)]
        return Case(kind, script, [*ARGV[script], f"{names[0]}={text}"], names)
    if kind == "responses":
        break_file(folder / "responses.jsonl", rng)
        script, option = rng.choice([(vote, []), (evaluation, ["--responses"])])
        return Case(kind, script, [*option, "responses.jsonl"], ["responses.jsonl"])
    if kind == "run":
        path = rng.choice(inputs_in(folder / "run"))
        break_file(path, rng)
        return Case(kind, train, ARGV[train], [path.name, str(path.parent.relative_to(folder))])
    if kind == "problems":
        used = [word for word in ARGV[script] if word.endswith(".jsonl") and word != "new.jsonl"]
        path = folder / rng.choice(used)
    else:
        path = rng.choice(inputs_in(folder / "model"))
    break_file(path, rng)
    argv = [*ARGV[script], *(["--out", "new"] if script is train else [])]
    # Other problems may give no pair, or not one answer.
    return Case(kind, script, argv, [path.name, "error: model", "no pair left", "has an answer"])


def inputs_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in BREAK and path.is_file())


# --------------------------------------------------------------------------------------------
# What comes of it


def run_in_child(case: Case, folder: Path) -> tuple[int | None, str, str]:
    """Run the script in the folder: its exit code, None if it hangs, its stdout and its stderr."""
    process = multiprocessing.get_context("fork").Process(target=run_here, args=(case, folder))
    process.start()
    process.join(WAIT)
    code = None if process.exitcode == -signal.SIGXCPU else process.exitcode
    process.kill()
    process.join()
    return code, *(Path(f"{folder}.{way}").read_text(errors="replace") for way in (1, 2))


def run_here(case: Case, folder: Path) -> None:
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, resource.RLIM_INFINITY))
    for way in (1, 2):
        os.dup2(os.open(f"{folder}.{way}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), way)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
    sys.argv = [f"{case.script.__name__}.py", *case.argv]
    run_script(case.script.main)


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """One of OUTCOMES, and the last line that the script showed."""
    before = snapshot(folder)
    code, shown, errors = run_in_child(case, folder)
    after, lines = snapshot(folder), errors.splitlines()
    last = (lines or shown.splitlines() or [""])[-1]
    changed = [name for name in before if after.get(name) != before[name]]
    changed = [name for name in changed if Path(name).name not in OF_THE_RUN]
    if code == 0:  # it went on, and its training ended
        changed = [name for name in changed if not name.startswith("run/M")]
    if code is None:
        return "hang", last
    if code not in (0, 2):
        return "traceback", last
    if changed:
        return "changed", f"{changed} {last}"
    if any(not c.isprintable() and c != "\n" for c in shown + errors):
        return "control characters", last
    if code == 0:
        return ("many lines" if lines else "accepted"), last
    if len(lines) != 1:
        return "many lines", last
    return ("refused" if any(name in last for name in case.names) else "not named"), last


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--seed", type=integer(0), default=0, help="of the cases")
    parser.add_argument("--count", type=integer(1), default=400, help="cases")
    parser.add_argument("--out", type=path_name, default=str(ROOT / "bench/results/broken.json"),
                        help="the numbers as JSON")
    args = parser.parse_args()
    counts, wrong = {}, []
    with tempfile.TemporaryDirectory() as temporary:
        whole, folder = Path(temporary) / "whole", Path(temporary) / "case"
        whole.mkdir()
        make_inputs(whole)
        for number in range(args.count):
            shutil.copytree(whole, folder)
            case = make_case(folder, random.Random(f"{args.seed} {number}"))
            name, line = outcome(case, folder)
            counts.setdefault(case.kind, Counter())[name] += 1
            if name not in GOOD:
                argv = " ".join([f"{case.script.__name__}.py", *case.argv])
                wrong.append({"case": number, "outcome": name, "names": case.names,
                              "command": argv, "line": line[:300]})
                print(f"case {number}, {name}, {case.names[0]}: {line[:300]!r}")
            shutil.rmtree(folder)
    shown = [name for name in OUTCOMES if any(count[name] for count in counts.values())]
    print(" ".join(f"{name:>12}" for name in ("", *shown)))
    for kind, count in sorted(counts.items()):
        print(" ".join(f"{value:>12}" for value in (kind, *(count[name] for name in shown))))
    write_json(args.out, {"seed": args.seed, "count": args.count, "counts": counts, "wrong": wrong})
    print(f"{len(wrong)} of {args.count} cases went wrong; the numbers are in {args.out}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    run_script(main)
