"""Kill -9 a run on two processes at random moments; what it goes on to must be an undisturbed run.

    python bench/kill.py [--times 20] [--ranks 2] [--out bench/results/kill.json]

A small run of the toy task through every stage: two rounds, self-written problems, an epoch
selected by votes, a checkpoint after every second step. Each trial starts anew, is killed with all
its processes before the time that an undisturbed run takes, is started again, and must end with the
same files, bit by bit. The results of each number of processes are kept beside those of others.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.cli import ArgumentParser, InputError, integer, path_name, run_script
from common.files import read_json, write_json

RUN = ("--limit 24 --k 4 --new-problems 0 12 --epochs 3 --batch-size 8 --micro-batch-size 2 "
       "--max-num-seqs 32 --select votes --save-every 2").split()
TIMES = ("options.json", "results.json", "stages.json", "lock")  # files that hold paths or seconds


def start(n_ranks: int, out: Path) -> subprocess.Popen:
    """The run in a folder; what it says on stderr is in a file beside it."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", str(n_ranks)]
    with open(f"{out}.stderr", "w") as stderr:
        return subprocess.Popen(
            [*torchrun, str(ROOT / "train.py"), *RUN, "--out", str(out)], stderr=stderr,
            stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill(process: subprocess.Popen) -> None:
    """The launcher and its workers, which have sessions of their own; returns when all are gone."""
    command = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    workers = subprocess.run(command, capture_output=True, text=True).stdout.split()
    for pid in [process.pid, *map(int, workers)]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)


def files(run: Path) -> dict[str, bytes]:
    """All that a run leaves behind."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and path.name not in TIMES:
            found[str(path.relative_to(run))] = path.read_bytes()
    return found


def newest(run: Path) -> str:
    """Where it was killed: the file that was written last."""
    found = [path for path in run.rglob("*") if path.is_file()]
    if not found:
        return "nothing yet"
    return str(max(found, key=lambda path: path.stat().st_mtime).relative_to(run))


def undisturbed(folder: Path, n_ranks: int) -> tuple[dict[str, bytes], float]:
    """The files and the seconds of a whole run. The first start is slow, so there are two."""
    for name in ("cold", "whole"):
        started = time.time()
        if start(n_ranks, folder / name).wait():
            last = Path(f"{folder / name}.stderr").read_text()[-300:]
            raise InputError(f"the undisturbed run failed, try train.py alone: {last}")
    return files(folder / "whole"), time.time() - started


def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--times", type=integer(1), default=20, help="trials")
    parser.add_argument("--ranks", type=integer(1), default=2, help="processes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=path_name, default=str(ROOT / "bench/results/kill.json"),
                        help="where and how each trial ended")
    args = parser.parse_args()
    rng, trials = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        expected, seconds = undisturbed(folder, args.ranks)
        print(f"undisturbed: {seconds:.1f} s, {len(expected)} files")
        while len(trials) < args.times:
            out, moment = folder / f"run-{len(trials)}", rng.uniform(0.35, 1.0) * seconds
            shutil.rmtree(out, ignore_errors=True)
            process = start(args.ranks, out)
            time.sleep(moment)
            if process.poll() is not None:  # it was faster this time
                continue
            kill(process)
            place, code = newest(out), start(args.ranks, out).wait()
            same = files(out) == expected
            trials.append({"last_written": place, "exit_code": code, "same": same})
            print(f"{len(trials):2}. killed after {moment:5.1f} s, last written {place}, exit code "
                  f"then {code}: {'the same in the end' if same else 'NOT the same'}", flush=True)
            if code:
                trials[-1]["stderr"] = Path(f"{out}.stderr").read_text()
                print(trials[-1]["stderr"], flush=True)
    n_same = sum(trial["same"] and trial["exit_code"] == 0 for trial in trials)
    print(f"{n_same} of {args.times} ended well and with the same files")
    write_json(args.out, {**read_json(Path(args.out)), str(args.ranks): trials})


if __name__ == "__main__":
    run_script(main)
