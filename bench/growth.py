"""How the cost of sampling grows: seconds and memory by the number of problems and of samples.

    python bench/growth.py                          # the toy; minutes
    python bench/growth.py --model DIR --task gsm8k --problems F.jsonl --sizes 8 16 32 --ks 4 8 16

Each line is a process of its own. Seconds should grow in proportion to problems · k, the memory of
the process with neither, since max_num_seqs bounds the rows at once; and of the cache, the part of
the prompts does not grow with k, as the k rows of a prompt share it.
"""

import json
import os
import resource
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.speed import add_job_options, keep_row, machine, read_prompts
from common.cli import ArgumentParser, InputError, integer, run_script
from common.options import load_checkpoint
from common.throughput import GIB
from sample import SamplingParams, generate, prefill
from tasks.task import Task

MIB = 2**20


def sample(args: Namespace) -> dict:
    """One configuration, in this process. No response ends early: all are as long."""
    model, tokenizer = load_checkpoint(args.model, "auto", "auto", args.dtype)
    prompts = read_prompts(args.problems, Task.load(args.task), tokenizer, args.size)
    params = SamplingParams(0.7, 0.9, args.max_new_tokens, args.max_num_seqs)
    generate(model, prompts[:1], args.k, params, seed=[0])  # warms up
    started = time.perf_counter()
    generate(model, prompts, args.k, params, seed=[0])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    with torch.inference_mode():
        cache, _ = prefill(model, prompts[:8], args.k, args.max_new_tokens)
    parts = {}
    for part in ("prompts", "rows"):
        tensors = [tensor for layer in getattr(cache, part) for tensor in layer]
        parts[part] = sum(tensor.nbytes for tensor in tensors) / MIB
    return {"seconds": seconds, "gib": peak, "cache_mib": parts}


def measure(args: Namespace, size: int, k: int) -> dict:
    command = [sys.executable, __file__, "--size", str(size), "--k", str(k)]
    for name in ("model", "task", "problems", "dtype", "max_new_tokens", "max_num_seqs"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(done.stderr.strip()[-300:])
    found = json.loads(done.stdout.splitlines()[-1])
    cache = found["cache_mib"]
    print(f"{size:5} problems × {k:2}  {found['seconds']:7.1f} s  {found['gib']:5.2f} GiB  "
          f"cache of 8 problems: prompts {cache['prompts']:.1f} MiB, rows {cache['rows']:.1f} MiB")
    return {"problems": size, "k": k, **found}


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add_job_options(parser)
    add = parser.add_argument
    add("--sizes", type=integer(1), nargs="+", default=[250, 500, 1000], help="problems")
    add("--ks", type=integer(1), nargs="+", default=[4, 8, 16], help="samples of each")
    add("--max-num-seqs", type=integer(1), default=512, help="rows decoded at once")
    add("--out", help="a JSON file to add the rows to, under --name")
    add("--name", default="toy", help="of the rows in that file")
    add("--size", type=integer(1), help="only so many problems, in this process, with --k")
    return parser


def main() -> None:
    args = options().parse_args()
    if args.size:
        print(json.dumps(sample(args)), flush=True)
        os._exit(0)
    rows = []
    for size in args.sizes:
        for k in args.ks:
            rows.append(measure(args, size, k))
    if args.out:
        keep_row(args.out, args.name, {
            "model": Path(args.model).name, "max_num_seqs": args.max_num_seqs,
            "max_new_tokens": args.max_new_tokens, "rows": rows,
            "machine": machine(torch.device("cpu"))})


if __name__ == "__main__":
    run_script(main)
