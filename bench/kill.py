"""Kill -9 a run on two processes at random moments; what it goes on to is compared with an undisturbed run.

    python bench/kill.py [--times 20] [--ranks 2]

A small run of the miniature through every stage: two rounds, self-written problems, an epoch chosen by votes, a copy of
the optimiser on disk after every second step. Each trial starts anew, is killed with all its processes before the time
that an undisturbed run takes, is started again, and must end with the same files, bit by bit.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vote import InputError, option, parse_options, run_script  # noqa: E402

RUN = ["--limit", "24", "--k", "4", "--new-problems", "0", "12", "--epochs", "3", "--batch-size", "8", "--micro-batch",
       "2", "--rows", "32", "--choose", "votes", "--checkpoint-every", "2"]


@dataclass
class Options:
    times: int = option(20, "trials")
    ranks: int = option(2, "processes")
    seed: int = option(0, "of the moments")


def start(ranks: int, out: Path) -> subprocess.Popen:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return subprocess.Popen([*torchrun, str(ROOT / "train.py"), *RUN, "--out", str(out)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill(process: subprocess.Popen) -> None:
    """The launcher and its workers, which have sessions of their own, at once; returns when they are gone."""
    workers = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout
    found = [process.pid, *map(int, workers.split())]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in found[1:]):
        time.sleep(0.05)


def files(run: Path) -> dict[str, bytes]:
    """All that a run leaves behind, but for the seconds it took."""
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*"))
            if p.is_file() and p.name not in ("options.json", "results.json", "lock")}


def newest(run: Path) -> str:
    """Where it was killed: the file that was written last."""
    found = [path for path in run.rglob("*") if path.is_file()]
    return str(max(found, key=lambda path: path.stat().st_mtime).relative_to(run)) if found else "nothing yet"


def main() -> None:
    options = parse_options(Options, __doc__)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for name in ("cold", "whole"):  # the first start of all is slow
            started = time.time()
            if start(options.ranks, Path(folder) / name).wait():
                raise InputError("the undisturbed run failed; try train.py alone")
            seconds.append(time.time() - started)
        expected, done, same = files(Path(folder) / "whole"), 0, 0
        print(f"undisturbed: {seconds[1]:.1f} s, {len(expected)} files")
        while done < options.times:
            out, moment = Path(folder) / f"run-{done}", draw.uniform(0.35, 1.0) * seconds[1]  # later than the start-up
            shutil.rmtree(out, ignore_errors=True)
            process = start(options.ranks, out)
            time.sleep(moment)
            if process.poll() is not None:  # it was faster this time
                continue
            kill(process)
            place, ended = newest(out), start(options.ranks, out).wait() == 0
            done, alike = done + 1, ended and files(out) == expected
            same += alike
            print(f"{done:2}. killed after {moment:5.1f} s, last written {place}: "
                  + ("the same in the end" if alike else "NOT the same" if ended else "DID NOT go on"), flush=True)
    print(f"{same} of {options.times} ended with the same files")


if __name__ == "__main__":
    run_script(main)
