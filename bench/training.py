"""Seconds and memory of a training step, beside TRL's DPOTrainer.

    python bench/training.py --model DIR --problems test.jsonl [--dtype bfloat16] [--out F --name N]

The file has `question` and `answer`, as GSM8K's: of its first 8 problems each gives a pair, its own
answer over the next one's. Both make the same optimizer steps of 8 pairs on the same weights, in
fp32 or in bf16 products of fp32 weights, with AdamW, w = 1 and α = 0, which TRL can express too.
Each way to split the 8 pairs is its own process: printed are the seconds of a step after the first,
the highest memory of the process, and the losses, which must agree. The best split of each side
counts.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from statistics import median

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.speed import keep_row, machine, matrix_limit
from common.cli import ArgumentParser, InputError, integer, run_script
from common.distributed import init_distributed
from common.files import read_jsonl
from common.throughput import GIB, training_flops
from common.training import load_for_training
from scpo import encode_pair, pair_logps
from tasks.task import Task
from train import forward_backward

PAIRS, LR, BETA = 8, 1e-5, 0.1


def texts_of_pairs(args: Namespace) -> list[dict]:
    """Lines of pairs.jsonl: each problem's own answer over that of the next one."""
    task, rows = Task.load(args.task), read_jsonl(args.problems, ("question", "answer"))[:PAIRS]
    pairs = []
    for i, row in enumerate(rows):
        pairs.append({
            "id": str(i), "prompt": task.prompt_for(row, is_chat=False), "weight": 1.0,
            "chosen": " " + row["answer"], "ended_chosen": True,
            "rejected": " " + rows[(i + 1) % PAIRS]["answer"], "ended_rejected": True})
    return pairs


def ours(args: Namespace) -> dict:
    """Steps of train.py, without its files."""
    init_distributed(torch.device("cpu"), getattr(torch, args.dtype))
    options = Namespace(
        device="cpu", dtype=args.dtype, chat="plain", system=None, beta=BETA, alpha=0.0,
        activation_checkpointing=args.checkpointing, micro_batch_size=args.micro_batch)
    model, tokenizer = load_for_training(Path(args.model), options)
    data = [encode_pair(pair, tokenizer) for pair in texts_of_pairs(args)]
    with torch.no_grad():
        for pair in data:
            chosen, rejected = pair_logps(model, [pair])
            pair.reference_chosen_logp = chosen.item()
            pair.reference_rejected_logp = rejected.item()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    times, losses = [time.perf_counter()], []
    for _ in range(args.steps):
        optimizer.zero_grad()
        losses.append(forward_backward(model, data, options)["loss"])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        times.append(time.perf_counter())
    return {"times": times, "losses": losses, "flops": training_flops(model, data)}


def trl(args: Namespace) -> dict:
    """The same with DPOTrainer, whose reference is computed beforehand too."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    rows = []
    for pair in texts_of_pairs(args):
        rows.append({name: pair[name] for name in ("prompt", "chosen", "rejected")})
    times, losses = [], []

    class Watch(TrainerCallback):
        def on_train_begin(self, *_, **__):
            times.append(time.perf_counter())

        def on_step_end(self, *_, **__):
            times.append(time.perf_counter())

        def on_log(self, _, __, ___, logs=None, **____):
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=args.micro_batch, max_steps=args.steps,
            gradient_accumulation_steps=PAIRS // args.micro_batch, learning_rate=LR, beta=BETA,
            lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1,
            bf16=args.dtype == "bfloat16", gradient_checkpointing=args.checkpointing,
            precompute_ref_log_probs=True, save_strategy="no", report_to=[], use_cpu=True,
            max_length=None, disable_tqdm=True)
        trainer = DPOTrainer(
            AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), args=config,
            train_dataset=Dataset.from_list(rows), callbacks=[Watch()],
            processing_class=AutoTokenizer.from_pretrained(args.model))
        trainer.train()
    return {"times": times, "losses": losses}


def measure(args: Namespace, side: str, micro_batch: int, checkpointing: bool) -> dict:
    """One side and one split, in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--micro-batch", str(micro_batch)]
    for name in ("model", "task", "problems", "dtype", "steps"):
        command += [f"--{name}", str(getattr(args, name))]
    if checkpointing:
        command.append("--checkpointing")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError(f"{side}: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    how = f"{micro_batch} at once" + ", checkpointing" * checkpointing
    losses = " ".join(f"{loss:.4f}" for loss in found["losses"])
    print(f"{side:5} {how:28} {found['seconds']:7.1f} s  {found['gib']:5.1f} GiB  losses {losses}")
    return {"side": side, "how": how, **found}


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", required=True, help="checkpoint folder")
    add("--task", default="gsm8k", help="whose prompts to read")
    add("--problems", required=True, help="JSON lines, `question` and `answer`")
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="of products")
    add("--steps", type=integer(2), default=3, help="of the optimizer; the first is not timed")
    add("--splits", type=integer(1), nargs="+", default=[8, 4, 2], help="pairs at once")
    add("--out", help="a JSON file to add the best of both to, under --name")
    add("--name", default="training", help="of the row in that file")
    add("--side", choices=["ours", "trl"], help="only this one, in this process")
    add("--micro-batch", type=integer(1), default=8, help="with --side")
    add("--checkpointing", action="store_true", help="with --side")
    return parser


def main() -> None:
    args = options().parse_args()
    if args.side:
        found = {"ours": ours, "trl": trl}[args.side](args)
        times = found.pop("times")
        steps = [after - before for before, after in zip(times[1:], times[2:])]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
        print(json.dumps({**found, "seconds": median(steps), "gib": peak}), flush=True)
        os._exit(0)  # process groups and trainers end noisily
    rows, limits = [], []
    for split in args.splits:
        for checkpointing in (False, True):
            limits.append(matrix_limit(getattr(torch, args.dtype), torch.device("cpu")))
            rows += [measure(args, side, split, checkpointing) for side in ("trl", "ours")]
    best = {}
    for side in ("ours", "trl"):
        best[side] = min((row for row in rows if row["side"] == side), key=lambda r: r["seconds"])
    ratio = best["trl"]["seconds"] / best["ours"]["seconds"]
    share = best["ours"]["flops"] / best["ours"]["seconds"] / median(limits)
    print(f"best of each: TRL {best['trl']['seconds']:.1f} s ({best['trl']['how']}), ours "
          f"{best['ours']['seconds']:.1f} s ({best['ours']['how']}): {ratio:.2f} times as fast, in "
          f"{100 * best['ours']['gib'] / best['trl']['gib']:.0f} % of the memory; "
          f"{100 * share:.0f} % of the limit of {median(limits) / 1e9:.0f} GFLOP/s")
    if args.out:
        keep_row(args.out, args.name, {
            "model": Path(args.model).name, "dtype": args.dtype, **best, "ratio": ratio,
            "share_of_limit": share, "machine": machine(torch.device("cpu"))})


if __name__ == "__main__":
    run_script(main)
