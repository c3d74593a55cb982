"""ScPO, whole: from M_0 to M_1 to M_2 without a label.

    python train.py                                              # the miniature, on a CPU in minutes
    python train.py --task gsm8k --model DIR --problems train.jsonl --test test.jsonl --out runs/gsm8k

Each round t: write new problems → sample k responses to every problem → vote and build pairs → optimise, starting from
M_{t-1} and with M_{t-1} as the reference → evaluate. The stages talk through files in runs/NAME/Mt/, made to be read:

    problems.jsonl    the questions: those given, then those the model wrote
    responses.jsonl   k responses to each (`python vote.py` shows their votes)
    rewards.jsonl     what the reward model thinks of each              (only with --supervision reward)
    pairs.jsonl       prompt, chosen, rejected, weight, votes, and the two reference log-probs
    log.jsonl         one line per optimiser step
    epochs.jsonl      what each epoch's checkpoint does on the dev problems       (only with --choose dev or votes)
    model/            M_t, a Hugging Face checkpoint folder
    eval_responses.jsonl, eval.json                           (only with test problems)

A finished file is not made again: a run that was stopped goes on when the same command is given once more. Answers are
not read, but for the evaluation and where an option asks for them: --supervision gold or semi, --choose dev.
"""

import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval import EVALUATION, correct, evaluate, gold_answer, majority, reward_responses, score, table
from model import Llama, RewardModel, read_json
from sample import (CHATS, SAMPLING_RULES, Task, Text, answer_problems, check_checkpoint, context_length,
                    load_checkpoint, read_problems, unlabelled, write_problems)
from scpo import SUPERVISION, build_pair, collate, nll_loss, scpo_loss, token_logps, unanimous
from vote import (InputError, check_options, option, parse_options, read_jsonl, response_answers, run_script,
                  show_votes, write_jsonl, write_text)


CHOICES = {
    "last": "no dev problems needed",
    "dev": "the best greedy accuracy on --dev (as the paper; needs labels)",
    "votes": "the highest vote share on --dev, without collapse to few answers (needs no label)",
}

CHOSEN_BY = {"dev": "greedy", "votes": "vote_share"}  # the score that decides


@dataclass
class Options:
    task: str = option("toy", "folder of tasks/: prompts, answer format and the defaults below")
    model: str | None = option(None, "M_0, a checkpoint folder in Hugging Face's Llama layout")
    problems: str | None = option(None, "JSON lines as the task's publisher ships them; answers are not read")
    test: str | None = option(None, "the same with answers, for the evaluation alone")
    dev: str | None = option(None, "the same, to choose an epoch by; answers are read only for --choose dev")
    out: str | None = option(None, "folder of the run, runs/TASK if not given; the same one again goes on after a stop")
    rounds: int = option(2, "rounds; M_t is trained on samples of M_{t-1} (paper: 2, a third adds little)")
    k: int | None = option(None, "responses per problem, which vote (paper: 8; ZebraLogic 16)")
    tau: tuple[float, ...] | None = option(None, "least vote share of the chosen answer, per round, the last one "
                                           "repeated (paper, GSM8K: 0.5 0.7)")
    temperature: float | None = option(None, "of the k responses and the new problems (paper: 0.7)")
    top_p: float | None = option(None, "share of probability kept at each token (paper: 0.9)")
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
    clip: float = option(1.0, "largest norm of the gradient")
    max_new_tokens: int | None = option(None, "tokens; a longer response is cut off and has no answer")
    limit: int | None = option(None, "only the first training and test problems, for a quick look")
    rows: int = option(512, "responses decoded at once; lower it if memory runs out")
    seed: int = option(0, "of sampling, ties and order of the pairs")
    chat: str = option("auto", f"prompt format: auto (from the checkpoint's files), {', '.join(CHATS)}")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps …")
    dtype: str = option("float32", "of sampling and of matrix products: float32, bfloat16; trained weights are float32")


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
    **dict.fromkeys(("rounds", "epochs", "batch_size", "micro_batch"), (lambda v: v >= 1, "at least 1")),
}


FILES = ("model", "problems", "test", "dev", "reward_model")  # which the miniature ships


def complete(options: Options, task: Task) -> Options:
    """The options with what was not given filled in from the task's defaults; refuses values that cannot work."""
    options = replace(options, out=options.out or f"runs/{task.name}")
    for f in fields(options):
        if getattr(options, f.name) is None:
            default = task.file(f.name) if f.name in FILES else task.defaults.get(f.name)
            setattr(options, f.name, tuple(default) if isinstance(default, list) else default)
    if options.problems is None:
        raise InputError(f"--problems: task {task.name} ships none; give JSON lines with a `{task.text}` each")
    if options.model is None:
        raise InputError(f"--model: task {task.name} ships none; give a Llama checkpoint folder (Hugging Face layout)")
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


MACHINE = ("out", "rounds", "rows", "micro_batch", "device")  # options that may change when a run goes on


def open_run(options: Options) -> Path:
    """The run's folder. One begun with other options is refused, since its files would be mixed up."""
    run, now = Path(options.out), json.loads(json.dumps(asdict(options)))
    before = read_json(run / "options.json", "") if (run / "options.json").exists() else {}
    differing = [f"{name} was {before.get(name)}, is {now[name]}" for name in now
                 if before.get(name) != now[name] and name not in MACHINE]
    if differing and any(run.glob("M*/")):
        raise InputError(f"--out {run}: begun with other options ({'; '.join(differing)}); choose another --out")
    try:
        if now != before:
            write_text(run / "options.json", json.dumps(now, indent=2) + "\n")
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"--out {run}: is a file; choose another name for the run's folder") from error
    return run


def per_round(values: tuple, t: int) -> float | int:
    """The t-th of an option given per round, the last one repeated; rounds count from 1."""
    return values[min(t, len(values)) - 1]


# ---------------------------------------------------------------------------------------------------------------------
# Stages 1-3: problems, responses, pairs


def make_problems(model: Llama, text: Text, task: Task, options: Options, t: int) -> list[dict]:
    """The given questions, without their answers, and those that M_{t-1} or the --writer writes."""
    given = [unlabelled(p) for p in read_problems(options.problems, task, options.limit)]
    count = per_round(options.new_problems, t)
    if count == 0:
        print(f"M{t} problems: {len(given)} given, none written")
        return given
    test = [p["question"] for p in read_problems(options.test, task)] if options.test else []
    longest = context_length(model) - options.max_new_tokens
    writer = model, text
    if options.writer:
        writer = load_checkpoint(options.writer, "auto", options.device, options.dtype, named="--writer")
    new, dropped = write_problems(
        *writer, task, given, count, known=test, temperature=options.temperature, top_p=options.top_p,
        max_new_tokens=options.max_new_tokens, seed=[options.seed, t, 1], rows=options.rows, name=f"M{t}-new",
        fits=lambda problem: len(text.encode_prompt(text.prompt(task, problem))) <= longest)
    print(f"M{t} problems: {len(given)} given, {len(new)} of {count} written and kept; dropped: "
          + ", ".join(f"{n} {reason}" for reason, n in dropped.items()))
    for problem in new[:2]:
        print(f"    wrote: {problem['question']}")
    return given + new


def make_responses(model: Llama, text: Text, task: Task, problems: list[dict], options: Options, t: int) -> list[dict]:
    """k responses to each problem, and where all k agree some hotter ones that can only be rejected."""
    shared = {"top_p": options.top_p, "max_new_tokens": options.max_new_tokens, "rows": options.rows,
              "seed": [options.seed, t, 2]}
    rows = answer_problems(model, text, task, problems, options.k, temperature=options.temperature,
                           progress=f"M{t}: {options.k} responses", **shared)
    agreed = [row for row in rows if unanimous(response_answers(row, task.name), task.name)] if options.extra else []
    hotter = answer_problems(model, text, task, agreed, max(options.extra, 1), temperature=options.extra_temperature,
                             first_sample=options.k, progress=f"M{t}: extra responses", **shared)
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


def sequence_logps(model: Llama, sequences: list[tuple[list[int], list[int]]]) -> Tensor:
    """log p(response | prompt) of each (prompt, response), in nats, (R,) fp32. Prompt positions are not projected."""
    tokens, targets = (x.to(model.model.norm.weight.device) for x in collate(sequences))  # (R, T) each
    hidden = model.model(tokens)  # (R, T, C)
    row, position = targets.nonzero(as_tuple=True)  # (N,) each
    logps = token_logps(model.head(hidden[row, position - 1]), tokens[row, position])  # (N,) predicted one before
    return torch.zeros(len(tokens), device=tokens.device).index_add(0, row, logps)  # (R,)


def encode(pair: dict, text: Text) -> dict:
    """The tokens of a pair: (prompt, response) of each side there is, and the three numbers the loss needs beside."""
    prompt = text.encode_prompt(pair["prompt"])
    sides = [side for side in ("chosen", "rejected") if pair[side] is not None]
    return {side: (prompt, text.encode_response(pair[side], pair[f"ended_{side}"])) for side in sides} | {
        name: pair.get(name) for name in ("weight", "reference_chosen_logp", "reference_rejected_logp")}


def pair_logps(model: Llama, batch: list[dict]) -> tuple[Tensor, Tensor]:
    """log M(y+|x) and log M(y-|x) of encoded pairs, (B,) each, in one pass; the second is empty if none is rejected."""
    sequences = [e["chosen"] for e in batch] + [e["rejected"] for e in batch if "rejected" in e]
    logps = sequence_logps(model, sequences)  # (2B,)
    return logps[: len(batch)], logps[len(batch) :]


def precision(options: Options, model: Llama) -> torch.autocast | nullcontext:
    """bf16 matrix products over fp32 weights: bf16 weights would lose updates smaller than their 8 bits."""
    device = model.model.norm.weight.device.type
    return torch.autocast(device, torch.bfloat16) if options.dtype == "bfloat16" else nullcontext()


@torch.no_grad()
def add_reference(model: Llama, text: Text, pairs: list[dict], options: Options, t: int) -> None:
    """Store log M_{t-1}(y|x) of both responses in each pair: two numbers instead of a second model in memory."""
    for start in tqdm(range(0, len(pairs), options.micro_batch), f"M{t}: reference", unit="batch", leave=False):
        batch = pairs[start : start + options.micro_batch]
        with precision(options, model):
            logps = pair_logps(model, [encode(pair, text) for pair in batch])
        for pair, chosen, rejected in zip(batch, *(side.tolist() for side in logps)):
            pair["reference_chosen_logp"], pair["reference_rejected_logp"] = chosen, rejected


def learning_rate(step: int, steps: int, warmup: float, peak: float) -> float:
    """Linear rise over the first `warmup` share of the steps, then half a cosine to 0; steps count from 0."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def accumulate(model: Llama, batch: list[dict], options: Options) -> dict[str, float]:
    """Gradients of the batch's mean loss, in micro-batches, and the mean over the batch of every gauge.

    Each micro-batch's sum is divided by the pairs of the whole batch, so any split gives the same gradient.
    """
    totals: dict[str, float] = {}
    for start in range(0, len(batch), options.micro_batch):
        part = batch[start : start + options.micro_batch]
        column = lambda name: torch.tensor([e[name] for e in part], device=model.model.norm.weight.device)
        with precision(options, model):
            chosen, rejected = pair_logps(model, part)  # (B,) each
        lengths = torch.tensor([len(e["chosen"][1]) for e in part], device=chosen.device)  # (B,)
        losses = nll = nll_loss(chosen, lengths)  # (B,) all there is without a rejected response
        gauges = {"nll": nll, "chosen_logp": chosen}
        if len(rejected):
            losses, chosen_rewards, rejected_rewards = scpo_loss(
                chosen, rejected, column("reference_chosen_logp"), column("reference_rejected_logp"), lengths,
                column("weight"), options.beta, options.alpha)
            gauges |= {"rejected_logp": rejected, "chosen_reward": chosen_rewards, "rejected_reward": rejected_rewards,
                       "margin": chosen_rewards - rejected_rewards,
                       "accuracy": (chosen_rewards > rejected_rewards).float()}
        gauges = {"loss": losses, **gauges}
        (losses.sum() / len(batch)).backward()
        for name, values in gauges.items():
            totals[name] = totals.get(name, 0.0) + values.sum().item() / len(batch)
    return totals


def optimise(model: Llama, text: Text, pairs: list[dict], options: Options, t: int,
             save: Callable[[int], None]) -> list[dict]:
    """Train θ, which starts at M_{t-1}, on the round's pairs; the lines of `log.jsonl`. `save(e)` follows epoch e."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.0)
    encoded = [encode(pair, text) for pair in pairs]
    batches = math.ceil(len(pairs) / options.batch_size)  # per epoch; the last one may be smaller
    log = []
    with tqdm(total=len(pairs) * options.epochs, desc=f"M{t}: optimise", unit="pair", leave=False) as bar:
        for step in range(batches * options.epochs):
            epoch, place = divmod(step, batches)
            order = np.random.default_rng([options.seed, t, 3, epoch]).permutation(len(pairs))
            batch = [encoded[i] for i in order[place * options.batch_size : (place + 1) * options.batch_size]]
            lr = learning_rate(step, batches * options.epochs, options.warmup, options.lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            gauges = accumulate(model, batch, options)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip).item()
            optimizer.step()
            log.append({"step": step, "epoch": epoch, "pairs": len(batch), "lr": lr, "grad_norm": norm, **gauges})
            bar.update(len(batch))
            bar.set_postfix({name: f"{gauges[name]:.3f}" for name in ("loss", "margin") if name in gauges})
            if place + 1 == batches and (options.choose != "last" or epoch + 1 == options.epochs):
                save(epoch + 1)
    moved = ", ".join(f"{name.replace('_logp', ' log-prob')} {log[0][name]:.3f} → {log[-1][name]:.3f}"
                      for name in ("loss", "chosen_logp", "rejected_logp") if name in log[0])
    print(f"M{t} optimise: {len(log)} steps of up to {options.batch_size} pairs; {moved}")
    return log


def save_model(model: Llama, source: str | Path, folder: Path) -> None:
    """Write M_t as a checkpoint folder with the tokenizer files of its source; it appears under its name when whole."""
    beside = folder.with_name(folder.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    for path in sorted(Path(source).iterdir()):
        weights = path.name == "config.json" or "safetensors" in path.name
        if path.suffix in (".json", ".jinja", ".model") and not weights:
            shutil.copyfile(path, beside / path.name)
    for path in beside.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # on the disk before the rename says so
    beside.rename(folder)


# ---------------------------------------------------------------------------------------------------------------------
# Stage 5: which epoch becomes M_t


def best_epoch(scores: list[dict], choose: str) -> int:
    """The epoch to keep, from each one's score on the dev problems; epoch 0 is M_{t-1}. A tie: the earlier one."""
    epochs = [row for row in scores if row["epoch"] > 0]
    if choose == "votes":
        # A model that gives every problem one answer is most consistent of all: half of M_{t-1}'s variety must remain.
        varied = [row for row in epochs if row["different_answers"] >= 0.5 * scores[0]["different_answers"]]
        epochs = varied or epochs[:1]
    return max(epochs, key=lambda row: row[CHOSEN_BY[choose]])["epoch"]


def score_epoch(source: str | Path, task: Task, options: Options, t: int, epoch: int) -> dict:
    """A checkpoint on the dev problems: its greedy accuracy, or how its k samples agree, which reads no answer."""
    model, text = load_checkpoint(str(source), options.chat, options.device, options.dtype)
    problems = read_problems(options.dev, task, options.limit)
    how = {"k": 1, "temperature": 0.0} if options.choose == "dev" else {
        "k": options.k, "temperature": options.temperature}
    rows = answer_problems(model, text, task, problems, **how, top_p=options.top_p, rows=options.rows,
                           max_new_tokens=options.max_new_tokens, seed=[options.seed, *EVALUATION],
                           progress=f"M{t}, epoch {epoch}: dev")
    answers = [response_answers(row, task.name) for row in rows]
    if options.choose == "dev":
        golds = read_golds(options.dev, task, options.limit, "--choose dev")
        right = [correct(answer, golds[row["id"]], task.name) for row, [answer] in zip(rows, answers)
                 if golds[row["id"]] is not None]
        return {"epoch": epoch, "greedy": float(np.mean(right))}
    winners = [majority(given, task.name, random.Random(str(row["id"]))) for row, given in zip(rows, answers)]
    return {"epoch": epoch, "vote_share": float(np.mean([votes / options.k for _, votes in winners])),
            "different_answers": len({answer for answer, _ in winners})}


def choose_epoch(source: str | Path, folder: Path, task: Task, options: Options, t: int) -> int:
    """Which epoch's checkpoint becomes M_t."""
    if options.choose == "last":
        return options.epochs
    epochs = range(0 if options.choose == "votes" else 1, options.epochs + 1)
    scores = stage(folder / "epochs.jsonl", lambda: [
        score_epoch(folder / f"epochs/{e}" if e else source, task, options, t, e) for e in epochs])
    best, name = best_epoch(scores, options.choose), CHOSEN_BY[options.choose]
    print(f"M{t} epochs: {name} on dev " + ", ".join(f"{100 * row[name]:.1f}" for row in scores) + f"; kept {best}")
    return best


# ---------------------------------------------------------------------------------------------------------------------
# The loop


def stage(path: Path, make) -> list[dict]:
    """The lines of a stage's file; made by `make()` and written if the file is not there yet."""
    if path.exists():
        print(f"{path}: there already, kept")
        return read_jsonl(path)
    rows = make()
    write_jsonl(path, rows)
    return rows


def record(run: Path, name: str, values: dict, seconds: float) -> dict:
    """Merge what is known of M_t into results.json, adding up the seconds; all results so far."""
    path = run / "results.json"
    results = read_json(path, "") if path.exists() else {}
    entry = results.setdefault(name, {"seconds": 0.0})
    entry.update(values, seconds=round(entry["seconds"] + seconds, 1))
    write_text(path, json.dumps(results, indent=2) + "\n")
    return results


def sample_round(source: str | Path, folder: Path, task: Task, options: Options,
                 t: int) -> tuple[list[dict], list[dict]]:
    """Stages 1 and 2, with a model of their own: it may have fewer bits than training needs, and is gone afterwards."""
    model, text = load_checkpoint(str(source), options.chat, options.device, options.dtype)
    problems = stage(folder / "problems.jsonl", lambda: make_problems(model, text, task, options, t))
    make = lambda: make_responses(model, text, task, problems, options, t)
    return problems, stage(folder / "responses.jsonl", make)


def optimise_round(source: str | Path, folder: Path, responses: list[dict], rewards: list[dict], task: Task,
                   options: Options, t: int) -> list[dict]:
    """Stages 3 and 4: the pairs, and a checkpoint after each epoch that may become M_t."""
    model, text = load_checkpoint(str(source), options.chat, options.device, "float32")

    def pairs_with_reference() -> list[dict]:
        pairs = make_pairs(responses, rewards, task, options, t)
        if options.supervision != "lmsi":
            add_reference(model, text, pairs, options, t)
        return pairs

    def optimised() -> list[dict]:
        shutil.rmtree(folder / "epochs", ignore_errors=True)  # of an attempt that was stopped
        save = lambda epoch: save_model(model, source, folder / f"epochs/{epoch}")
        return optimise(model, text, pairs, options, t, save)

    pairs = stage(folder / "pairs.jsonl", pairs_with_reference)
    if not (folder / f"epochs/{options.epochs}").exists():
        (folder / "log.jsonl").unlink(missing_ok=True)  # of a model that was deleted since: train it again
    stage(folder / "log.jsonl", optimised)
    return pairs


def train_round(source: str | Path, folder: Path, task: Task, options: Options, t: int) -> None:
    """Stages 1-5: from M_{t-1} in `source` to M_t in `folder`/model."""
    started, rewards = time.time(), []
    problems, responses = sample_round(source, folder, task, options, t)
    if options.supervision == "reward":
        rewards = stage(folder / "rewards.jsonl", lambda: make_rewards(responses, options, t))
    pairs = optimise_round(source, folder, responses, rewards, task, options, t)
    best = choose_epoch(source, folder, task, options, t)
    record(folder.parent, f"M{t}", {"pairs": len(pairs)}, time.time() - started)  # before the model: then it is done
    (folder / f"epochs/{best}").rename(folder / "model")


def evaluate_round(source: str | Path, run: Path, task: Task, options: Options, t: int) -> None:
    """Stage 6: M_t on the test problems."""
    folder, started = run / f"M{t}", time.time()
    if options.test is None or (folder / "eval.json").exists():
        return
    model, text = load_checkpoint(str(source), options.chat, options.device, options.dtype)
    rows = evaluate(model, text, task, read_problems(options.test, task, options.limit), k=options.k,
                    temperature=options.temperature, top_p=options.top_p, max_new_tokens=options.max_new_tokens,
                    seed=[options.seed, *EVALUATION], rows=options.rows, name=f"M{t}")
    result = score(rows, task.name)
    write_jsonl(folder / "eval_responses.jsonl", rows)
    results = record(run, f"M{t}", result, time.time() - started)
    write_text(folder / "eval.json", json.dumps(result, indent=2) + "\n")
    print(table({f"M{t}": results[f"M{t}"]}))
    for row in rows[:2]:
        print(f"    {row['question']}\n      greedy: {' '.join(row['greedy'].split())}   (gold {row['gold']})")


def main() -> None:
    options = parse_options(Options, __doc__)
    task = Task.load(options.task)
    options = complete(options, task)
    for path in filter(None, (options.problems, options.test, options.dev)):
        read_problems(path, task)  # a broken line shows now, not after an hour; so does what is needed later
    if options.supervision == "reward":
        check_checkpoint(options.reward_model, "auto", RewardModel, "--reward-model")
    if options.writer:
        check_checkpoint(options.writer, "auto", Llama, "--writer")
    if options.supervision in ("gold", "semi"):
        read_golds(options.problems, task, options.limit, f"--supervision {options.supervision}")
    if options.choose == "dev":
        read_golds(options.dev, task, options.limit, "--choose dev")
    run = open_run(options)
    print(f"ScPO on {task.name}: {options.rounds} rounds from {options.model}, files in {run}/")
    evaluate_round(options.model, run, task, options, 0)
    source: str | Path = options.model
    for t in range(1, options.rounds + 1):
        folder = run / f"M{t}"
        if not (folder / "model").exists():
            train_round(source, folder, task, options, t)
        shutil.rmtree(folder / "epochs", ignore_errors=True)  # those that were not chosen
        source = folder / "model"
        evaluate_round(source, run, task, options, t)
    results = read_json(run / "results.json", "")
    print(f"\n{task.name}, accuracy in % ± standard error over the test problems, self-consistency of {options.k}\n"
          f"{table(results)}\nmodels in {run}/M*/model, numbers in {run}/results.json, every stage in {run}/M*/*.jsonl")


if __name__ == "__main__":
    run_script(main)
