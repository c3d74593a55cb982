"""Tokens per second of sample.generate beside transformers' generate, in one process.

    python bench/sampling.py                                     # the toy, 64 problems × 8
    python bench/sampling.py --model DIR --task gsm8k --problems test.jsonl --prompts 16 \\
        --dtype bfloat16 --max-new-tokens 160 --batches 16 4 1

Both hold the same weights and get the same prompts: k samples of each, temperature 0.7, top_p 0.9,
until a response ends by itself. Ours takes all in one batch. transformers gets several batch sizes
(its prompts are padded on the left, its top_k is off), and its best one counts.

Only the tokens before a response's stop token count. They draw different random numbers, so rates
are compared, not times. After one unmeasured round they take turns at going first; printed are all
rounds, the medians and their ratios, and the share of the machine's limit: the floating point
operations of the job by those of a plain matrix product, measured in the same process.
"""

import sys
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.speed import (add_job_options, keep_row, machine, matrix_limit, read_prompts,
                         sampling_flops)
from common.cli import ArgumentParser, InputError, integer, run_script
from common.options import load_checkpoint
from sample import SamplingParams, generate
from tasks.task import Task


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add_job_options(parser)
    add = parser.add_argument
    add("--prompts", type=integer(1), default=64, help="problems, from the start of that file")
    add("--batches", type=integer(1), nargs="+", default=[64, 1],
        help="prompts at once in transformers")
    add("--repeats", type=integer(1), default=3, help="measured rounds")
    add("--out", help="a JSON file to add the medians to, under --name")
    add("--name", default="toy", help="of the row in that file")
    return parser


def main() -> None:
    args = options().parse_args()
    try:
        import transformers
    except ImportError as error:
        advice = "pip install transformers"
        raise InputError(f"transformers, to compare with, is not installed: {advice}") from error
    model, tokenizer = load_checkpoint(args.model, "auto", "auto", args.dtype)
    device, dtype = model.device, getattr(torch, args.dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    theirs = theirs.eval().to(device)
    prompts = read_prompts(args.problems, Task.load(args.task), tokenizer, args.prompts)
    params = SamplingParams(0.7, 0.9, args.max_new_tokens, max_num_seqs=args.k * len(prompts))
    stop_ids = torch.tensor(tokenizer.stop_ids, device=device)
    flops = []

    def ours(seed: int) -> int:
        responses = generate(
            model, prompts, args.k, params, seed=[seed], stop_ids=tokenizer.stop_ids)
        flops.append(sampling_flops(model, prompts, responses))
        return sum(len(response.tokens) for row in responses for response in row)

    def transformers_generate(size: int, seed: int) -> int:
        torch.manual_seed(seed)
        n_tokens = 0
        for start in range(0, len(prompts), size):
            batch = prompts[start : start + size]
            longest = max(map(len, batch))
            padded = [[tokenizer.eos_id] * (longest - len(prompt)) + prompt for prompt in batch]
            mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch]
            out = theirs.generate(
                torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device), do_sample=True,
                temperature=params.temperature, top_p=params.top_p, top_k=0,
                max_new_tokens=params.max_new_tokens, num_return_sequences=args.k,
                eos_token_id=tokenizer.stop_ids, pad_token_id=tokenizer.eos_id)
            stops = torch.isin(out[:, longest:], stop_ids)
            n_tokens += int((stops.cumsum(-1) == 0).sum())
        return n_tokens

    sides = {"ours": ours}
    for size in args.batches:
        sides[f"transformers, {size} prompts at once"] = partial(transformers_generate, size)
    rates: dict[str, list[float]] = {side: [] for side in sides}
    shares = []
    for repeat in range(args.repeats + 1):
        order = list(sides) if repeat % 2 else list(sides)[::-1]
        limit = matrix_limit(dtype, device)
        for side in order:
            started = time.perf_counter()
            n_tokens = sides[side](repeat)
            seconds = time.perf_counter() - started
            if repeat > 0:  # round 0 warms up
                rates[side].append(n_tokens / seconds)
                if side == "ours":
                    shares.append(flops[-1] / seconds / limit)
            print(f"round {repeat}  {side:36} {n_tokens / seconds:9.0f} tok/s  ({n_tokens} tokens)")
    medians = {side: median(numbers) for side, numbers in rates.items()}
    best = max(list(medians)[1:], key=lambda side: medians[side])
    ratio = medians["ours"] / medians[best]
    print(f"ours {medians['ours']:.0f} tok/s; {best}: {medians[best]:.0f}; ratio {ratio:.2f}; "
          f"{100 * median(shares):.0f} % of the limit of {limit / 1e9:.0f} GFLOP/s")
    print(f"{machine(device)}, transformers {transformers.__version__}")
    if args.out:
        keep_row(args.out, args.name, {
            "model": Path(args.model).name, "dtype": args.dtype, "prompts": len(prompts),
            "k": args.k, "max_new_tokens": args.max_new_tokens, "rates": medians, "best": best,
            "ratio": ratio, "share_of_limit": median(shares), "limit_flops": limit,
            "machine": machine(device), "transformers": transformers.__version__})


if __name__ == "__main__":
    run_script(main)
