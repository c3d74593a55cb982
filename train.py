"""ScPO, whole: from M_0 to M_1 to M_2 without a label.

    python train.py                                              # the miniature, on a CPU in minutes
    python train.py --task gsm8k --model DIR --problems train.jsonl --test test.jsonl --out runs/gsm8k
    torchrun --nproc-per-node 8 train.py …                       # the same on 8 GPUs, for models of 8B parameters

Each round t: write new problems → sample k responses to every problem → vote and build pairs → optimise, starting from
M_{t-1} and with M_{t-1} as the reference → evaluate. The stages talk through files in runs/NAME/Mt/, made to be read:

    problems.jsonl    the questions: those given, then those the model wrote
    responses.jsonl   k responses to each (`python vote.py` shows their votes)
    rewards.jsonl     what the reward model thinks of each              (only with --supervision reward)
    pairs.jsonl       prompt, chosen, rejected, weight, votes, and the two reference log-probs
    log.jsonl         one line per optimiser step
    progress-N/       weights and optimiser after N steps; deleted when the round's training is done
    epochs.jsonl      what each epoch's checkpoint does on the dev problems       (only with --choose dev or votes)
    model/            M_t, a Hugging Face checkpoint folder
    eval_responses.jsonl, eval.json                           (only with test problems)

A finished file is not made again: a run that was stopped goes on when the same command is given once more. Answers are
not read, but for the evaluation and where an option asks for them: --supervision gold or semi, --choose dev.
"""

import fcntl
import gc
import json
import math
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from tqdm import tqdm

from eval import (CHOICES, CHOSEN_BY, EVALUATION, RewardModel, best_epoch, evaluate, gold_answer, reward_responses,
                  score, score_epoch, table)
from model import Llama, after_first, gathered, memory, rank_and_size, shared, summed, training_flops
from sample import (SAMPLING_RULES, SamplingOptions, Task, Text, answer_problems, check_checkpoint, context_length,
                    load_checkpoint, read_problems, unlabelled, usable_device, write_problems)
from scpo import (SUPERVISION, accumulate, build_pair, learning_rate, pair_logps, precision, sequences, share_out,
                  unanimous)
from vote import (InputError, check_options, option, parse_options, read_json, read_jsonl, response_answers,
                  run_script, show_votes, write_jsonl, write_text)


@dataclass
class Options(SamplingOptions):
    task: str = option("toy", "folder of tasks/: prompts, answer format, values for most options without a default")
    model: str | None = option(None, "M_0, a checkpoint folder in Hugging Face's Llama layout")
    problems: str | None = option(None, "JSON lines as the task's publisher ships them; answers are not read")
    test: str | None = option(None, "problems with answers, for the evaluation alone")
    dev: str | None = option(None, "problems to choose an epoch by; their answers are read only for --choose dev")
    out: str | None = option(None, "folder of the run, runs/TASK if not given; the same one again goes on after a stop")
    rounds: int = option(2, "rounds; M_t is trained on samples of M_{t-1} (paper: 2, a third adds little)")
    k: int | None = option(None, "responses per problem, which vote (paper: 8; ZebraLogic 16)")
    tau: tuple[float, ...] | None = option(None, "least vote share of the chosen answer, per round, the last one "
                                           "repeated (paper, GSM8K: 0.5 0.7)")
    temperature: float | None = option(None, "of the k responses and the new problems (paper: 0.7)")
    extra: int = option(8, "responses at the extra temperature when all k agree, to find one to reject (paper: 8)")
    extra_temperature: float = option(1.2, "of those (paper: 1.2)")
    new_problems: tuple[int, ...] | None = option(None, "problems the model writes, per round, the last one repeated")
    writer: str | None = option(None, "checkpoint folder of the model that writes new problems, M_{t-1} if not given "
                                      "(paper: Llama-3 Instruct 8B)")
    supervision: str = option("scpo", "who decides the pair; " + "; ".join(f"{n}: {s}" for n, s in SUPERVISION.items()))
    reward_model: str | None = option(None, "checkpoint folder in ArmoRM's layout, for --supervision reward")
    no_weight: bool = option(False, "w(x) = 1 on the votes' pairs (paper, Table 4)")
    beta: float | None = option(None, "β, how far the log-ratios may move from M_{t-1} (paper: 0.5)")
    alpha: float | None = option(None, "α, weight of the NLL term, which holds the chosen log-prob up (paper: 1)")
    lr: float | None = option(None, "peak learning rate, cosine to 0 (paper: 5e-6 for 8B)")
    warmup: float = option(0.05, "share of the steps with a rising learning rate")
    epochs: int | None = option(None, "passes over a round's pairs (paper: up to 10)")
    choose: str = option("last", "epoch that becomes M_t; " + "; ".join(f"{n}: {s}" for n, s in CHOICES.items()))
    batch_size: int | None = option(None, "pairs per optimiser step (paper: 16)")
    micro_batch: int = option(8, "pairs in memory at once; gradients accumulate up to the batch size")
    recompute: bool = option(False, "keep of each block its input alone and compute it again in the backward pass: a "
                                    "third more time for a fraction of the memory")
    checkpoint_every: int = option(200, "optimiser steps between two copies of weights and optimiser on disk")
    clip: float = option(1.0, "largest norm of the gradient")
    seed: int = option(0, "of sampling, ties and order of the pairs")
    dtype: str = option("float32", "of sampling and of matrix products: float32, bfloat16; trained weights are float32")
    dry_run: bool = option(False, "show what memory and how many tokens a round will take, and stop")


RULES = SAMPLING_RULES | {
    "k": (lambda v: v >= 2, "a vote needs at least 2 responses per problem"),
    "tau": (lambda v: 0 < v <= 1, "a share of the votes, above 0, at most 1 (0.5 is 4 of 8)"),
    "temperature": (lambda v: v > 0, "must be above 0: k greedy responses would all be the same"),
    "extra_temperature": (lambda v: v > 0, "must be above 0"),
    "new_problems": (lambda v: v >= 0, "a count, 0 for none"),
    "extra": (lambda v: v >= 0, "a count, 0 for none"),
    "supervision": (lambda v: v in SUPERVISION, f"choose from {', '.join(SUPERVISION)}"),
    "choose": (lambda v: v in CHOICES, f"choose from {', '.join(CHOICES)}"),
    "lr": (lambda v: 0 < v < math.inf, "must be above 0"),
    "beta": (lambda v: 0 < v < math.inf, "must be above 0"),
    "alpha": (lambda v: 0 <= v < math.inf, "must not be negative"),
    "clip": (lambda v: v > 0, "must be above 0"),
    "warmup": (lambda v: 0 <= v <= 1, "a share of the steps, from 0 to 1"),
    **dict.fromkeys(("rounds", "epochs", "batch_size", "micro_batch", "checkpoint_every"),
                    (lambda v: v >= 1, "at least 1")),
}
FILES = ("model", "problems", "test", "dev", "reward_model")  # which the miniature ships


def complete(options: Options, task: Task) -> Options:
    """The options with what was not given filled in from the task's defaults; refuses values that cannot work."""
    defaults = {"out": f"runs/{task.name}"} | task.defaults | {name: task.file(name) for name in FILES}
    absent = {f.name: defaults.get(f.name) for f in fields(options) if getattr(options, f.name) is None}
    options = replace(options, **{name: tuple(v) if isinstance(v, list) else v for name, v in absent.items()})
    if options.choose != "last" and options.dev is None:
        raise InputError(f"--choose {options.choose}: needs --dev, problems that are neither trained nor tested on")
    if options.supervision == "reward" and options.reward_model is None:
        raise InputError("--supervision reward: needs --reward-model, a checkpoint folder in ArmoRM's layout")
    check_options(options, RULES)
    return options


def read_golds(path: str, task: Task, limit: int | None, asked_by: str) -> dict:
    """The canonical gold answers of a problem file by id, None where there is none. Refuses a file without any."""
    golds = {problem["id"]: gold_answer(problem, task.name) for problem in read_problems(path, task, limit)}
    if not any(golds.values()):
        raise InputError(f"{asked_by}: no problem in {path} has an answer")
    return golds


# Options that may change when a run goes on; so may the number of ranks.
MACHINE = ("out", "rounds", "rows", "micro_batch", "device", "recompute", "checkpoint_every", "dry_run")


def open_run(options: Options) -> Path:
    """The run's folder. One begun with other options is refused, since its files would be mixed up."""
    run, now = Path(options.out), json.loads(json.dumps(asdict(options)))
    before = read_json(run / "options.json")
    differing = [f"{name} was {before.get(name)}, is {now[name]}" for name in now
                 if before.get(name) != now[name] and name not in MACHINE]
    if differing and any(run.glob("M*/")):
        raise InputError(f"--out {run}: begun with other options ({'; '.join(differing)}); choose another --out")
    try:
        if now != before and rank_and_size()[0] == 0:
            write_text(run / "options.json", json.dumps(now, indent=2) + "\n")
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--out {run}: is a file; choose another name for the run's folder") from error
    return run


@contextmanager
def alone(run: Path) -> Iterator[Path]:
    """Keep a second process out of the run's folder. The lock ends with the process, however that ends."""
    if rank_and_size()[0] > 0:
        yield run
        return
    with open(run / "lock", "a") as file:  # "w" would touch it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"--out {run}: another process is at work there; wait for it, or choose another --out"
                             ) from error
        except OSError:
            pass  # some network file systems have no locks
        yield run


def sampling(options: Options, *use: int) -> dict:
    """How a model is sampled. use: what for, (t, 1), (t, 2) or EVALUATION; no two share random numbers."""
    return {"seed": [options.seed, *use]} | {
        name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens", "rows")}


def per_round(values: tuple, t: int) -> float | int:
    """The t-th of an option given per round, the last one repeated; rounds count from 1."""
    return values[min(t, len(values)) - 1]


# ---------------------------------------------------------------------------------------------------------------------
# What will it take?

GIB = 2**30
CONTEXT = 3 * GIB  # of a GPU, for CUDA's and NCCL's own needs
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by what the GPU's name contains


def budget(options: Options, task: Task) -> None:
    """Print memory by number of ranks, tokens and steps. Raises InputError if it cannot fit in the device seen here."""
    model, text = Llama.on_meta(options.model), Text(options.model, options.chat)
    problems = read_problems(options.problems, task, options.limit)
    longest = max(len(text.encode_prompt(text.prompt(task, problem))) for problem in problems)
    how = {"prompt": longest, "response": options.max_new_tokens, "batch_size": options.batch_size,
           "micro_batch": options.micro_batch, "rows": options.rows, "recompute": options.recompute}
    needs = {ranks: memory(model, getattr(torch, options.dtype), ranks, **how)
             for ranks in sorted({1, 2, 4, 8, rank_and_size()[1]})}
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters; prompts of up to {longest} tokens, responses of up to {options.max_new_tokens}\n"
          f"GiB per rank, ranks:  {''.join(f'{ranks:10}' for ranks in needs)}")
    for kind in needs[1]:
        print(f"{kind:<22}{''.join(f'{kinds[kind] / GIB:10.1f}' for kinds in needs.values())}")
    for t in range(1, options.rounds + 1):
        asked = len(problems) + per_round(options.new_problems, t)
        steps = options.epochs * math.ceil(asked / options.batch_size)
        print(f"M{t}: up to {asked} problems x {options.k} = {asked * options.k} responses, "
              f"{asked * options.k * options.max_new_tokens / 1e6:.1f}M tokens; up to {steps} steps of "
              f"{options.batch_size} pairs")
    device, mine = usable_device(options.device), needs[rank_and_size()[1]]
    room = torch.cuda.get_device_properties(device).total_memory - CONTEXT if device.type == "cuda" else \
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    for name, change in (
            ("training", "more ranks, --recompute, a smaller --micro-batch or --max-new-tokens"),
            ("sampling", "--dtype bfloat16, smaller --rows or --max-new-tokens")):
        if mine[f"{name}, at most"] > room:
            raise InputError(f"--dry-run: {name} needs {mine[f'{name}, at most'] / GIB:.1f} GiB per rank, {device} has "
                             f"{room / GIB:.1f}; try {change}")
    print(f"fits in {device}, which has {room / GIB:.1f} GiB")


# ---------------------------------------------------------------------------------------------------------------------
# Stages 1-3: problems, responses, pairs


def make_problems(source: Path, task: Task, options: Options, t: int) -> list[dict]:
    """The given questions, without their answers, and those that M_{t-1} or the --writer writes."""
    given = [unlabelled(p) for p in read_problems(options.problems, task, options.limit)]
    count = per_round(options.new_problems, t)
    if count == 0:
        print(f"M{t} problems: {len(given)} given, none written")
        return given
    test = [p["question"] for p in read_problems(options.test, task)] if options.test else []
    text, longest = Text(source, options.chat), context_length(Llama.on_meta(source)) - options.max_new_tokens
    chat = "auto" if options.writer else options.chat
    writer = load_checkpoint(options.writer or source, chat, options.device, options.dtype)
    new, dropped = write_problems(
        *writer, task, given, count, known=test, name=f"M{t}-new", **sampling(options, t, 1),
        fits=lambda problem: len(text.encode_prompt(text.prompt(task, problem))) <= longest)
    print(f"M{t} problems: {len(given)} given, {len(new)} of {count} written and kept; dropped: "
          + ", ".join(f"{n} {reason}" for reason, n in dropped.items()))
    for problem in new[:2]:
        print(f"    wrote: {problem['question']}")
    return given + new


def make_responses(source: Path, task: Task, problems: list[dict], options: Options, t: int) -> list[dict]:
    """k responses to each problem, and where all k agree some hotter ones that can only be rejected."""
    model, text = load_checkpoint(source, options.chat, options.device, options.dtype)
    how = sampling(options, t, 2)
    rows = answer_problems(model, text, task, problems, options.k, progress=f"M{t}: {options.k} responses", **how)
    agreed = [row for row in rows if unanimous(response_answers(row, task.name))] if options.extra else []
    hotter = answer_problems(model, text, task, agreed, max(options.extra, 1), first_sample=options.k,
                             progress=f"M{t}: extra responses", **how | {"temperature": options.extra_temperature})
    for row, more in zip(agreed, hotter):
        row["extra_responses"], row["extra_ended"] = more["responses"], more["ended"]
    print(f"M{t} responses: {len(rows)} problems × {options.k}, {len(agreed)} unanimous ones × {options.extra} more")
    for row in rows[:2]:
        print("    " + show_votes(row, task.name).replace("\n", "\n    "))
    return rows


def make_rewards(responses: list[dict], options: Options, t: int) -> list[dict]:
    """The reward model's score of each of the k responses."""
    judge, text = load_checkpoint(options.reward_model, "auto", options.device, options.dtype, RewardModel,
                                  "--reward-model")
    batch = max(1, options.rows // options.k)  # whole conversations, not rows that share a prompt
    scores = reward_responses(judge, text, responses, batch, f"M{t}: rewards")
    return [{"id": row["id"], "rewards": rewards} for row, rewards in zip(responses, scores)]


def make_pairs(responses: list[dict], rewards: list[dict], task: Task, options: Options, t: int) -> list[dict]:
    """At most one pair per problem, and one line on what became of the others. rewards: none, or of each response."""
    golds = {}
    if options.supervision in ("gold", "semi"):
        golds = read_golds(options.problems, task, options.limit, f"--supervision {options.supervision}")
    pairs, reasons, unparsed, cut = [], {}, 0, 0
    for i, row in enumerate(responses):
        hotter = {"responses": row.get("extra_responses", []), "ended": row.get("extra_ended", [])}
        answers = response_answers(row, task.name)
        unparsed += sum(e and a is None for a, e in zip(answers, row["ended"]))
        cut += row["ended"].count(False)
        pair, reason = build_pair(row, answers + response_answers(hotter, task.name), per_round(options.tau, t),
                                  task.name, random.Random(f"{options.seed}/{t}/{row['id']}"), options.supervision,
                                  golds.get(row["id"]), rewards[i]["rewards"] if rewards else (),
                                  not options.no_weight)
        reasons[reason] = reasons.get(reason, 0) + 1
        pairs += [pair] if pair else []
    without = sum(pair["rejected"] is not None and pair["answer_rejected"] is None for pair in pairs)
    spread = ", ".join(f"{n} {reason}" for reason, n in reasons.items() if reason != "pair")
    print(f"M{t} pairs: {len(pairs)} of {len(responses)} problems ({spread}); {without} reject a response without an "
          f"answer; of all responses {unparsed} had no answer, {cut} were cut off")
    if not pairs:
        raise InputError(f"no pair left of {len(responses)} problems ({spread}); lower --tau, raise --k or "
                         "--extra-temperature, or give problems the model can sometimes solve")
    for pair in pairs[:2]:
        print(f"    w {pair['weight']:.2f}")
        for side in ("chosen", "rejected") if pair["rejected"] is not None else ("chosen",):
            print(f"      {side}, {pair[f'votes_{side}']} votes: {' '.join(pair[side].split())}")
    return pairs


# ---------------------------------------------------------------------------------------------------------------------
# Stage 4: optimise


def encode(pair: dict, text: Text) -> dict:
    """The tokens of a pair: (prompt, response) of each side there is, and the three numbers the loss needs beside."""
    prompt = text.encode_prompt(pair["prompt"])
    sides = [side for side in ("chosen", "rejected") if pair[side] is not None]
    return {side: (prompt, text.encode_response(pair[side], pair[f"ended_{side}"])) for side in sides} | {
        name: pair.get(name) for name in ("weight", "reference_chosen_logp", "reference_rejected_logp")}


@torch.no_grad()
def add_reference(model: Llama, text: Text, pairs: list[dict], options: Options, t: int) -> None:
    """Store log M_{t-1}(y|x) of both responses in each pair: two numbers instead of a second model in memory."""
    found = {}
    parts = share_out(list(range(len(pairs))), options.micro_batch)
    for part in tqdm(parts, f"M{t}: reference", unit="batch", leave=False, disable=rank_and_size()[0] > 0):
        with precision(model, options.dtype):
            logps = pair_logps(model, [encode(pairs[i], text) for i in part or [0]])
        found |= zip(part, zip(*(side.tolist() for side in logps)))
    for i, (chosen, rejected) in gathered(found).items():
        pairs[i]["reference_chosen_logp"], pairs[i]["reference_rejected_logp"] = chosen, rejected


def save_progress(folder: Path, model: Llama, optimizer: torch.optim.Optimizer, log: list[dict]) -> None:
    """Weights, optimiser and log after len(log) steps, from which any number of ranks can go on. Nothing else has a
    state: the order of the pairs follows from seed, round and epoch, and training draws no random number."""
    place, first = folder / f"progress-{len(log)}", rank_and_size()[0] == 0
    beside = place.with_name(place.name + ".part")
    if first:
        shutil.rmtree(beside, ignore_errors=True)
    # A file per tensor: of one file per rank all would be held in memory until its end.
    files = dcp.FileSystemWriter(beside, single_file_per_rank=False, thread_count=4)
    dcp.save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer))), storage_writer=files)
    if first:
        write_jsonl(beside / "log.jsonl", log)
        beside.rename(place)
        forget_progress(folder, but=place)
    after_first()


def forget_progress(folder: Path, but: Path | None = None) -> None:
    """Delete what `save_progress` wrote, half-written copies too."""
    for path in folder.glob("progress-*"):
        if path != but:
            shutil.rmtree(path)


def load_progress(folder: Path, model: Llama, optimizer: torch.optim.Optimizer) -> list[dict]:
    """Go back to the last copy on disk; the log up to there, empty if there is none."""
    found = shared([path for path in folder.glob("progress-*") if path.suffix != ".part"])
    if not found:
        return []
    last = max(found, key=lambda path: int(path.name.removeprefix("progress-")))
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer)))
    dcp.load(state, checkpoint_id=last)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return read_jsonl(last / "log.jsonl")


class Speed:
    """Tokens per second of the steps so far, peak memory, and on a known GPU the share of its speed that was used."""

    def __init__(self, device: torch.device):
        self.device, self.started, self.tokens, self.flops = device, time.time(), 0, 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak_flops = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in name), None)

    def add(self, model: Llama, batch: list[dict]) -> None:
        self.tokens += sum(len(prompt) + len(response) for prompt, response in sequences(batch))
        self.flops += training_flops(model, sequences(batch))

    def gauges(self) -> dict[str, str]:
        seconds = time.time() - self.started
        shown = {"tok/s": f"{self.tokens / seconds:.0f}"}
        if self.device.type == "cuda":
            shown["GiB"] = f"{torch.cuda.max_memory_allocated(self.device) / GIB:.1f}"
        if self.peak_flops:
            shown["MFU"] = f"{100 * self.flops / seconds / self.peak_flops / rank_and_size()[1]:.0f}%"
        return shown


@contextmanager
def signals() -> Iterator[list[int]]:
    """The SIGTERMs and SIGINTs that arrive meanwhile, instead of their usual effect."""
    caught: list[int] = []
    catch = lambda number, _: caught.append(number)
    before = {number: signal.signal(number, catch) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:  # after the last look
        raise KeyboardInterrupt


def optimise(model: Llama, text: Text, pairs: list[dict], options: Options, t: int, folder: Path,
             save: Callable[[int], None]) -> list[dict]:
    """Train θ, which starts at M_{t-1}, on the round's pairs; the lines of `log.jsonl`. `save(e)` follows epoch e.

    On SIGTERM and SIGINT it stops after the step, with its progress in `folder`, from where the next call goes on.
    """
    device = model.device
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0, fused=device.type == "cuda")
    encoded = [encode(pair, text) for pair in pairs]
    batches = math.ceil(len(pairs) / options.batch_size)  # per epoch; the last one may be smaller
    log, speed = load_progress(folder, model, optimizer), Speed(device)
    with signals() as caught, tqdm(total=len(pairs) * options.epochs, desc=f"M{t}: optimise", unit="pair", leave=False,
                                   disable=rank_and_size()[0] > 0, initial=sum(line["pairs"] for line in log)) as bar:
        for step in range(len(log), batches * options.epochs):
            epoch, place = divmod(step, batches)
            order = np.random.default_rng([options.seed, t, 3, epoch]).permutation(len(pairs))
            batch = [encoded[i] for i in order[place * options.batch_size : (place + 1) * options.batch_size]]
            lr = learning_rate(step, batches * options.epochs, options.warmup, options.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            gauges = accumulate(model, batch, micro_batch=options.micro_batch, beta=options.beta, alpha=options.alpha,
                                dtype=options.dtype)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
            log.append({"step": step, "epoch": epoch, "pairs": len(batch), "lr": lr, "grad_norm": norm, **gauges})
            bar.update(len(batch))
            speed.add(model, batch)
            shown = {name: f"{gauges[name]:.3f}" for name in ("loss", "margin") if name in gauges}
            bar.set_postfix(shown | speed.gauges(), refresh=False)
            if place + 1 == batches and (options.choose != "last" or epoch + 1 == options.epochs):
                save(epoch + 1)
            stopping = summed({"signals": len(caught)})["signals"]  # one rank's signal stops all
            if (step + 1) % options.checkpoint_every == 0 or stopping:
                save_progress(folder, model, optimizer, log)
            if stopping:
                summed({})  # all have come here: the first to leave must not take a connection that others still use
                raise KeyboardInterrupt
    moved = ", ".join(f"{name.replace('_logp', ' log-prob')} {log[0][name]:.3f} → {log[-1][name]:.3f}"
                      for name in ("loss", "chosen_logp", "rejected_logp") if name in log[0])
    print(f"M{t} optimise: {len(log)} steps of up to {options.batch_size} pairs; {moved}; "
          + ", ".join(f"{value} {name}" for name, value in speed.gauges().items()))
    return log


def save_model(model: Llama, source: Path, folder: Path) -> None:
    """Write M_t as a checkpoint folder with the tokenizer files of its source; it appears under its name when whole."""
    beside, first = folder.with_name(folder.name + ".part"), rank_and_size()[0] == 0
    if there(folder):  # of the same epoch, before a stop
        return
    if first:
        shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    if first:
        for path in sorted(source.iterdir()):
            weights = path.name == "config.json" or "safetensors" in path.name
            if path.suffix in (".json", ".jinja", ".model") and not weights:
                shutil.copyfile(path, beside / path.name)
        for path in beside.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())  # on the disk before the rename says so
        beside.rename(folder)
    after_first()  # nobody reads it before it is there


# ---------------------------------------------------------------------------------------------------------------------
# Stage 5: which epoch becomes M_t


def choose_epoch(source: Path, folder: Path, task: Task, options: Options, t: int) -> int:
    """Which epoch's checkpoint becomes M_t."""
    if options.choose == "last":
        return options.epochs

    def scores() -> list[dict]:
        problems, rows = read_problems(options.dev, task, options.limit), []
        for epoch in range(0 if options.choose == "votes" else 1, options.epochs + 1):
            path = folder / f"epochs/{epoch}" if epoch else source
            model, text = load_checkpoint(path, options.chat, options.device, options.dtype)
            rows.append({"epoch": epoch} | score_epoch(model, text, task, problems, options.choose, k=options.k,
                                                       progress=f"M{t}, epoch {epoch}: dev",
                                                       **sampling(options, *EVALUATION)))
            del model  # before the next one is loaded
        return rows

    rows, name = stage(folder / "epochs.jsonl", scores), CHOSEN_BY[options.choose]
    best = best_epoch(rows, options.choose)
    print(f"M{t} epochs: {name} on dev " + ", ".join(f"{100 * row[name]:.1f}" for row in rows) + f"; kept {best}")
    return best


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def there(path: Path) -> bool:
    """Whether the first rank sees it: a network file system may keep another's "no" for a while."""
    return shared(rank_and_size()[0] == 0 and path.exists())


def stage(path: Path, make: Callable[[], list[dict]]) -> list[dict]:
    """The lines of a stage's file. If it is not there yet all ranks make them together, and the first writes it."""
    if there(path):
        print(f"{path}: there already, kept")
        return read_jsonl(path)
    rows = make()
    if rank_and_size()[0] == 0:
        write_jsonl(path, rows)
    after_first()
    return rows


def record(folder: Path, values: dict, seconds: float) -> dict:
    """Merge what is known of M_t, in `folder`, into the run's results.json, adding up the seconds; M_t's entry."""
    path = folder.parent / "results.json"
    results = read_json(path)
    entry = results.setdefault(folder.name, {"seconds": 0.0})
    entry.update(values, seconds=round(entry["seconds"] + seconds, 1))
    if rank_and_size()[0] == 0:
        write_text(path, json.dumps(results, indent=2) + "\n")
    return entry


def free_memory() -> None:
    """Give back what models that went out of use still hold: a sharded one is a reference cycle, and NCCL cannot use
    what PyTorch keeps for itself."""
    gc.collect()
    torch.cuda.empty_cache()


def load_for_training(source: Path, options: Options) -> tuple[Llama, Text]:
    """M_{t-1} in fp32: whole, or on a GPU and among several ranks in parts."""
    if dist.is_initialized():
        device = usable_device(options.device)
        model, text = Llama.sharded(source, device, getattr(torch, options.dtype)), Text(source, options.chat)
    else:
        model, text = load_checkpoint(source, options.chat, options.device, "float32")
    model.model.recompute = options.recompute
    return model, text


def optimise_round(source: Path, folder: Path, responses: list[dict], rewards: list[dict], task: Task,
                   options: Options, t: int) -> list[dict]:
    """Stages 3 and 4: the pairs, and a checkpoint after each epoch that may become M_t."""
    model, text = load_for_training(source, options)

    def pairs_with_reference() -> list[dict]:
        if rank_and_size()[0] == 0:  # what was trained on other pairs is of no use
            forget_progress(folder)
            shutil.rmtree(folder / "epochs", ignore_errors=True)
        pairs = make_pairs(responses, rewards, task, options, t)
        if options.supervision != "lmsi":
            add_reference(model, text, pairs, options, t)
        return pairs

    save = lambda epoch: save_model(model, source, folder / f"epochs/{epoch}")
    pairs = stage(folder / "pairs.jsonl", pairs_with_reference)
    if not there(folder / f"epochs/{options.epochs}") and rank_and_size()[0] == 0:
        (folder / "log.jsonl").unlink(missing_ok=True)  # of a model that was deleted since: train it again
    stage(folder / "log.jsonl", lambda: optimise(model, text, pairs, options, t, folder, save))
    return pairs


def train_round(source: Path, folder: Path, task: Task, options: Options, t: int) -> None:
    """Stages 1-5: from M_{t-1} in `source` to M_t in `folder`/model."""
    started, rewards = time.time(), []
    problems = stage(folder / "problems.jsonl", lambda: make_problems(source, task, options, t))
    responses = stage(folder / "responses.jsonl", lambda: make_responses(source, task, problems, options, t))
    if options.supervision == "reward":
        rewards = stage(folder / "rewards.jsonl", lambda: make_rewards(responses, options, t))
    free_memory()  # of whole models in few bits: training begins with its own
    pairs = optimise_round(source, folder, responses, rewards, task, options, t)
    free_memory()
    best = choose_epoch(source, folder, task, options, t)
    record(folder, {"pairs": len(pairs)}, time.time() - started)  # before the model: then it is done
    if rank_and_size()[0] == 0:
        (folder / f"epochs/{best}").rename(folder / "model")
    after_first()


def evaluate_round(source: Path, folder: Path, task: Task, options: Options) -> None:
    """Stage 6: the round's model on the test problems."""
    started = time.time()
    if options.test is None or there(folder / "eval.json"):
        return
    model, text = load_checkpoint(source, options.chat, options.device, options.dtype)
    rows = evaluate(model, text, task, read_problems(options.test, task, options.limit), k=options.k,
                    name=folder.name, **sampling(options, *EVALUATION))
    result = score(rows, task.name)
    entry = record(folder, result, time.time() - started)
    if rank_and_size()[0] == 0:
        write_jsonl(folder / "eval_responses.jsonl", rows)
        write_text(folder / "eval.json", json.dumps(result, indent=2) + "\n")
    print(table({folder.name: entry}))
    for row in rows[:2]:
        print(f"    {row['question']}\n      greedy: {' '.join(row['greedy'].split())}   (gold {row['gold']})")


def join(device: torch.device) -> None:
    """Join the processes that torchrun started, one per GPU. A single GPU is a group of one, for FSDP's precision."""
    launched = dist.is_torchelastic_launched()
    if not launched and device.type != "cuda":
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = {} if launched else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    # A rank may wait for another's samples for hours; torchrun ends them all if one dies.
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(days=7), **group)
    if dist.get_rank() > 0:
        sys.stdout = open(os.devnull, "w")


def run_rounds(options: Options, task: Task, run: Path) -> None:
    """M_0 → M_1 → … in the run's folder, each evaluated, and the table of all."""
    print(f"ScPO on {task.name}: {options.rounds} rounds from {options.model}, files in {run}/")
    source = Path(options.model)
    evaluate_round(source, run / "M0", task, options)
    for t in range(1, options.rounds + 1):
        folder = run / f"M{t}"
        if not there(folder / "model"):
            train_round(source, folder, task, options, t)
        if rank_and_size()[0] == 0:
            shutil.rmtree(folder / "epochs", ignore_errors=True)  # those that were not chosen
            forget_progress(folder)
        source = folder / "model"
        evaluate_round(source, folder, task, options)
    results = read_json(run / "results.json")
    print(f"\n{task.name}, accuracy in % ± standard error over the test problems, self-consistency of {options.k}\n"
          f"{table(results)}\nmodels in {run}/M*/model, numbers in {run}/results.json, every stage in {run}/M*/*.jsonl")


def check_inputs(options: Options, task: Task) -> None:
    """Read every file and folder that some stage will need: a broken line shows now, not after hours."""
    for path in (options.problems, *filter(None, (options.test, options.dev))):
        read_problems(path, task)
    check_checkpoint(options.model, options.chat, Llama, "--model")
    if options.supervision == "reward":
        check_checkpoint(options.reward_model, "auto", RewardModel, "--reward-model")
    if options.writer:
        check_checkpoint(options.writer, "auto", Llama, "--writer")
    if options.supervision in ("gold", "semi"):
        read_golds(options.problems, task, options.limit, f"--supervision {options.supervision}")
    if options.choose == "dev":
        read_golds(options.dev, task, options.limit, "--choose dev")


def main() -> None:
    options = parse_options(Options, __doc__)
    task = Task.load(options.task)
    options = complete(options, task)
    join(usable_device(options.device))
    check_inputs(options, task)
    if options.dry_run:
        budget(options, task)
    else:
        with alone(open_run(options)) as run:
            run_rounds(options, task, run)
    if dist.is_initialized():
        dist.destroy_process_group()


def main_of_rank() -> None:
    """`main` as a script; a rank that fails among others ends at once, since NCCL's farewell would wait for them."""
    try:
        run_script(main)
    except BaseException as error:
        if rank_and_size()[1] == 1:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(error.code if isinstance(error, SystemExit) else 1)


if __name__ == "__main__":
    main_of_rank()
