"""Tokens per second of sample.generate beside llama.cpp's own engine, on the same weights.

    python bench/llamacpp.py --binary llama-batched-bench --gguf F.gguf --model DIR --dtype bfloat16

`llama-batched-bench` of llama.cpp decodes a number of rows that share one prompt, and draws no
tokens: it says what the engine can do without a sampler. Ours draws them, all --max-new-tokens of
every row. The GGUF file must hold the model's weights in the same precision
(`convert_hf_to_gguf.py DIR --outtype bf16`). The sides take turns, each in its own process.
"""

import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.speed import keep_row, machine
from common.cli import ArgumentParser, InputError, integer, run_script
from common.options import load_checkpoint
from sample import SamplingParams, generate

# Whether llama.cpp keeps the cache of all rows as one, in which they share the prompt's part.
CACHES = {"one cache": ["--kv-unified"], "a cache for each row": []}


def ours(args: Namespace) -> float:
    model, _ = load_checkpoint(args.model, "plain", "auto", args.dtype)
    prompt = list(range(100, 100 + args.prompt))
    params = SamplingParams(0.7, 0.9, args.max_new_tokens, max_num_seqs=args.rows)
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        generate(model, [prompt], args.rows, params, seed=[0])
    return args.rows * args.max_new_tokens / (time.perf_counter() - started)


def llama_cpp(args: Namespace, options: list[str]) -> float:
    tokens = args.prompt + args.max_new_tokens + 8  # of a row, with its dummy token
    command = [args.binary, "-m", args.gguf, "-npp", str(args.prompt), "-ntg",
               str(args.max_new_tokens), "-npl", str(args.rows), "-pps", "-c",
               str(args.rows * tokens), "-t", str(torch.get_num_threads()),
               "--output-format", "jsonl", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not found:
        raise InputError(f"--binary {args.binary}: {done.stderr.strip()[-300:]}")
    times = json.loads(found[-1])
    return args.rows * args.max_new_tokens / (times["t_pp"] + times["t_tg"])


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--binary", required=True, help="llama-batched-bench")
    add("--gguf", required=True, help="the model's weights for llama.cpp")
    add("--model", required=True, help="the same as a checkpoint folder")
    add("--dtype", default="bfloat16", choices=["float32", "bfloat16"], help="of the weights")
    add("--rows", type=integer(1), default=128, help="decoded at once")
    add("--prompt", type=integer(1), default=100, help="tokens, which all rows share")
    add("--max-new-tokens", type=integer(1), default=64, help="of each row")
    add("--repeats", type=integer(1), default=3, help="measured rounds")
    add("--out", help="a JSON file to add the medians to, under --name")
    add("--name", default="llama.cpp", help="of the row in that file")
    add("--ours", action="store_true", help="only this side, in this process")
    return parser


def main() -> None:
    args = options().parse_args()
    if args.ours:
        print(json.dumps({"rate": ours(args)}))
        return
    rates: dict[str, list[float]] = {"ours": [], **{name: [] for name in CACHES}}
    for _ in range(args.repeats):
        done = subprocess.run([sys.executable, *sys.argv, "--ours"], capture_output=True, text=True)
        if done.returncode != 0:
            raise InputError(done.stderr.strip()[-300:])
        rates["ours"].append(json.loads(done.stdout.splitlines()[-1])["rate"])
        for name, more in CACHES.items():
            rates[name].append(llama_cpp(args, more))
    medians = {side: median(numbers) for side, numbers in rates.items()}
    best = max(CACHES, key=lambda name: medians[name])
    ratio = medians["ours"] / medians[best]
    print(f"ours {medians['ours']:.0f} tok/s; llama.cpp, {best}: {medians[best]:.0f}; ratio "
          f"{ratio:.2f}")
    if args.out:
        keep_row(args.out, args.name, {
            "model": Path(args.model).name, "dtype": args.dtype, "rows": args.rows,
            "prompt": args.prompt, "max_new_tokens": args.max_new_tokens, "rates": medians,
            "best": best, "ratio": ratio, "machine": machine(torch.device("cpu"))})


if __name__ == "__main__":
    run_script(main)
