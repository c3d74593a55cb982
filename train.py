"""ScPO, whole: from M_0 to M_1 to M_2 without a label.

    python train.py                                            # the toy task, on a CPU in minutes
    python train.py --task gsm8k --model DIR --problems train.jsonl --test test.jsonl
    torchrun --nproc-per-node 8 train.py …                     # on 8 GPUs, for 8B parameters

Each round t makes M_t from M_{t-1} in the six steps of scpo.py. They talk through files that one
can read, in runs/NAME/Mt/:

    problems.jsonl        step 1: the questions, first those given, then those the model wrote
    responses.jsonl       step 2: k responses to each (`python vote.py` shows their votes), and
                          extra ones where all agree
    rewards.jsonl         what a reward model thinks of each (only with --method reward)
    pairs.jsonl           steps 3 to 5: prompt, chosen, rejected (null with lmsi), weight, votes
    reference.jsonl       step 6: log M_{t-1}(y|x) of both: two numbers, and no second model
    log.jsonl             step 6: a line per optimizer step
    checkpoint-N/         weights and optimizer after N steps, until the round is done
    epochs/N/             the model after N epochs, until the round is done
    epochs.jsonl          how good each epoch's model is on the dev problems (only with --select)
    model/                M_t, a Hugging Face checkpoint folder
    eval_responses.jsonl  greedy and sampled responses to the test problems; eval.json has scores

A finished file is not made again, so a run that was stopped goes on with the same command. Answers
are read for the evaluation alone, and where an option asks: --method gold or semi, --select dev.
"""

import math
import random
import time
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from common.checks import check_inputs, fits_context
from common.cli import ArgumentParser, InputError, printable, run_script
from common.distributed import (all_gather_dict, all_reduce, farewell, init_distributed, leave,
                                on_main, progress_bar, micro_batches_of_rank, world_size)
from common.files import remove, sampled_ids, write_json
from common.journal import Journal
from common.options import (add_run_options, add_sampling_options, add_training_options,
                            load_checkpoint, parse_args, usable_device)
from common.reward_model import make_rewards
from common.runs import OF_TRAINING, Run, open_run, per_round, write_results
from common.selection import best_epoch, score_epochs
from common.throughput import Throughput
from common.training import (caught_signals, check_metrics, check_pairs, free_memory,
                             load_for_training, restart_if_models_are_gone, restore_checkpoint,
                             save_checkpoint, save_model, summary)
from eval import evaluate_checkpoint, score, table, warn_of_collapse
from model import Llama
from sample import SamplingParams, answer_problems, write_problems
from scpo import (EncodedPair, NoPair, encode_pair, gold_pair, is_unanimous,
                  most_consistent, pair_logps, pair_metrics, pair_weight, reward_pair, scpo_pair)
from tasks.task import Task, read_golds, read_problems, unlabeled
from vote import (count_votes, ended_flags, response_answers, show_pair, show_votes)

# Random numbers come from (seed, round, what for). Pairs are drawn by the text SEED/ROUND/ID.
WRITING, ANSWERING, SHUFFLING = 1, 2, 3


def train(args: Namespace, run: Run) -> None:
    """M_0 → M_1 → … in the run's folder, each evaluated, and the table of all."""
    print(f"ScPO on {args.task}: {args.rounds} rounds from {args.model}, files in {run.folder}/")
    source = Path(args.model)
    evaluate_model(source, args, run, 0)
    for t in range(1, args.rounds + 1):
        if run.has(f"M{t}/model"):
            on_main(remove, run.folder / f"M{t}", *OF_TRAINING)  # if a kill left them
            run.keep(f"M{t}/model")
        else:
            train_round(source, args, run, t)
        source = run.folder / f"M{t}/model"
        evaluate_model(source, args, run, t)
    results = on_main(write_results, run)
    print(f"\n{args.task}, accuracy in % ± standard error over the test problems, "
          f"self-consistency of {args.k}\n{table(results)}\nmodels in {run.folder}/M*/model, "
          f"numbers in {run.folder}/results.json, every stage in {run.folder}/M*/*.jsonl")


def train_round(source: Path, args: Namespace, run: Run, t: int) -> None:
    """The six steps of scpo.py: from M_{t-1} in the folder `source` to M_t."""
    folder = run.folder / f"M{t}"
    problems = run.stage(f"M{t}/problems.jsonl", make_problems, source, args, folder, t)
    responses = run.stage(f"M{t}/responses.jsonl", make_responses, source, problems, args, folder,
                          t, same_ids_as=problems)
    rewards = []
    if args.method == "reward":
        rewards = run.stage(
            f"M{t}/rewards.jsonl", make_rewards, responses, args, t, same_ids_as=problems)
    if not run.has(f"M{t}/pairs.jsonl"):  # what was trained on other pairs is of no use
        stale = ("reference.jsonl", "log.jsonl", "epochs.jsonl", *OF_TRAINING)
        on_main(remove, folder, *stale)
    pairs = run.stage(
        f"M{t}/pairs.jsonl", make_pairs, responses, rewards, args, t, pairs_of=responses)
    train_model(source, pairs, args, run, t)


# --------------------------------------------------------------------------------------------
# Steps 1 and 2: problems and responses


def make_problems(source: Path, args: Namespace, folder: Path, t: int) -> list[dict]:
    """The given questions, without their answers, and those that M_{t-1} or the --writer writes."""
    task = Task.load(args.task)
    everything = read_problems(args.problems, task, args.limit)
    fits, count = fits_context(source, task, args), per_round(args.new_problems, t)
    given = [unlabeled(problem) for problem in everything if fits(problem)]
    if len(given) < len(everything):
        print(f"M{t} problems: {len(everything) - len(given)} given ones are left out, too long")
    if not given:
        raise InputError(f"{args.problems}: all problems are too long; lower --max-new-tokens")
    if count == 0:
        print(f"M{t} problems: {len(given)} given, none written")
        return given
    tests = read_problems(args.test, task) if args.test else []
    known = [problem["question"] for problem in tests]
    chat, system = ("auto", None) if args.writer else (args.chat, args.system)
    writer, tokenizer = load_checkpoint(
        args.writer or source, chat, args.device, args.dtype, system)
    journal = Journal(folder / "problems.jsonl", args.writer or source, args)
    new, dropped = write_problems(
        writer, tokenizer, task, given, count, SamplingParams.from_args(args),
        seed=[args.seed, t, WRITING], known=known, fits=fits, journal=journal, name=f"M{t}-new")
    reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
    print(f"M{t} problems: {len(given)} given, {len(new)} of {count} written and kept; "
          f"dropped: {reasons}")
    for problem in new[:2]:
        print(f"    wrote: {printable(problem['question'])}")
    return given + new


def make_responses(
    source: Path, problems: list[dict], args: Namespace, folder: Path, t: int
) -> list[dict]:
    """k responses to each problem; where all agree, hotter ones too, to find one to reject."""
    task = Task.load(args.task)
    model, tokenizer = load_checkpoint(source, args.chat, args.device, args.dtype, args.system)
    params, seed = SamplingParams.from_args(args), [args.seed, t, ANSWERING]
    journal = Journal(folder / "responses.jsonl", source, args)
    rows = answer_problems(model, tokenizer, task, problems, args.k, params, seed=seed,
                           journal=journal, desc=f"M{t}: {args.k} responses")
    unanimous, no_answer, cut_off = [], 0, 0
    for row in rows:
        answers = response_answers(row, args.task)
        no_answer += answers.count(None)
        cut_off += row["ended"].count(False)
        if is_unanimous(answers):
            unanimous.append(row)
    if unanimous and args.extra:
        params = replace(params, temperature=args.extra_temperature)
        hotter = answer_problems(model, tokenizer, task, unanimous, args.extra, params, seed=seed,
                                 first_sample=args.k, journal=journal,
                                 desc=f"M{t}: extra responses")
        for row, extra in zip(unanimous, hotter):
            row["extra_responses"], row["extra_ended"] = extra["responses"], extra["ended"]
            row["response_ids"] = row.pop("response_ids")  # behind what people read
            row["extra_response_ids"] = extra["response_ids"]
    print(f"M{t} responses: {len(rows)} problems × {args.k}, of which {no_answer} without an answer"
          f", {cut_off} of them cut off; {len(unanimous)} unanimous ones × {args.extra} more")
    warn_of_collapse(rows, args.task)
    for row in rows[:2]:
        print("    " + show_votes(row, args.task).replace("\n", "\n    "))
    return rows


# --------------------------------------------------------------------------------------------
# Steps 3, 4 and 5: votes, pairs and their weights


def make_pairs(responses: list[dict], rewards: list[dict], args: Namespace, t: int) -> list[dict]:
    """The lines of pairs.jsonl; printed is what became of the problems without one."""
    golds = {}  # stays empty where --method reads no answer
    if args.method in ("gold", "semi"):
        task = Task.load(args.task)
        problems = read_problems(args.problems, task, args.limit)
        golds = read_golds(problems, task, args.answers, f"--method {args.method}")
    scores = {row["id"]: row["rewards"] for row in rewards}
    pairs, skipped = [], Counter()
    for row in responses:
        try:
            pairs += pairs_of_problem(
                row, golds.get(row["id"]), scores.get(row["id"]), args, t)
        except NoPair as reason:
            skipped[str(reason)] += 1
    others = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
    no_answer = [pair for pair in pairs if pair.get("answer_rejected", "") is None]
    print(f"M{t} pairs: {len(pairs)} from {len(responses)} problems (others: {others}); "
          f"{len(no_answer)} reject a response without an answer")
    if not pairs:
        raise InputError(f"no pair left of {len(responses)} problems ({others}); lower --tau, "
                         "raise --k or --extra-temperature, or give problems that the model can "
                         "sometimes solve")
    for pair in pairs[:2]:
        print(show_pair(pair))
    return pairs


def pairs_of_problem(
    row: dict, gold: str | None, rewards: list[float] | None, args: Namespace, t: int
) -> list[dict]:
    """From one line of responses.jsonl to its lines of pairs.jsonl. Raises NoPair.

    gold: the right answer, if --method looks at it. rewards: of the k responses, likewise.
    """
    extra = {"responses": row.get("extra_responses", []), "ended": row.get("extra_ended", [])}
    answers = response_answers(row, args.task) + response_answers(extra, args.task)
    votes = count_votes(answers, len(row["responses"]))
    choices = choose_pairs(row, answers, votes, gold, rewards, args, t)
    return [pair_line(row, answers, votes, *choice) for choice in choices]


def pair_line(
    row: dict, answers: list[str | None], votes: list[int], chosen: int, rejected: int | None,
    weight: float,
) -> dict:
    """A choice as a line of pairs.jsonl.

    chosen, rejected: indices among the responses and the extra ones. A rejected None has the loss
    weight · NLL, and stands in all lines of a round or in none. A weight may be negative.
    """
    texts = row["responses"] + row.get("extra_responses", [])
    ended = ended_flags(row) + row.get("extra_ended", [])
    pair = {"id": row["id"], "prompt": row["prompt"], "chosen": None, "rejected": None,
            "weight": weight, "k": len(row["responses"])}
    sampled, ids = sampled_ids(row), {}
    for side, i in (("chosen", chosen), ("rejected", rejected)):
        if i is not None:
            pair[side] = texts[i]
            pair[f"votes_{side}"] = votes[i]
            pair[f"answer_{side}"] = answers[i]
            pair[f"sample_{side}"] = i
            pair[f"ended_{side}"] = ended[i]
            ids[f"ids_{side}"] = sampled[i]
    return {**pair, **ids}  # the tokens stand behind what people read


def choose_pairs(
    row: dict, answers: list[str | None], votes: list[int], gold: str | None,
    rewards: list[float] | None, args: Namespace, t: int,
) -> list[tuple[int, int | None, float]]:
    """What --method makes of a problem's responses: the chosen one, the rejected one, and w(x).

    It is one pair in all methods of the paper; a list, since there could be several.
    """
    k, tau = len(row["responses"]), per_round(args.tau, t)
    rng = random.Random(f"{args.seed}/{t}/{row['id']}")
    if args.method == "lmsi":
        return [(most_consistent(answers, votes, k, tau, rng), None, 1.0)]
    if args.method == "reward":
        return [(*reward_pair(rewards), 1.0)]
    if args.method == "gold" or (args.method == "semi" and gold is not None):
        return [(*gold_pair(answers, k, gold, rng), 1.0)]
    chosen, rejected = scpo_pair(answers, votes, k, tau, rng)
    weight = 1.0 if args.unweighted else pair_weight(votes[chosen], votes[rejected], k)
    if args.method == "coin" and rng.random() < 0.5:
        return [(rejected, chosen, weight)]
    return [(chosen, rejected, weight)]


# --------------------------------------------------------------------------------------------
# Step 6: training


def train_model(source: Path, pairs: list[dict], args: Namespace, run: Run, t: int) -> None:
    """Train θ, which starts at M_{t-1}, on the round's pairs; --select picks the epoch of M_t."""
    folder = run.folder / f"M{t}"
    on_main(restart_if_models_are_gone, folder, math.ceil(len(pairs) / args.batch_size), args)
    model, tokenizer = load_for_training(source, args)
    data = [encode_pair(pair, tokenizer) for pair in pairs]
    check_pairs(data, model, folder)
    if data[0].rejected is not None:
        rows = run.stage(
            f"M{t}/reference.jsonl", make_reference, model, data, pairs, args, t, same_ids_as=pairs)
        for pair, row in zip(data, rows):
            pair.reference_chosen_logp = row["reference_chosen_logp"]
            pair.reference_rejected_logp = row["reference_rejected_logp"]
    run.stage(f"M{t}/log.jsonl", optimize, model, data, source, folder, args, t)
    del model
    free_memory()
    started, epoch = time.time(), args.epochs
    if args.select != "last":
        rows = run.stage(f"M{t}/epochs.jsonl", score_epochs, source, folder, args, f"M{t}")
        epoch = best_epoch(rows, args, folder / "epochs.jsonl")
    run.record(f"M{t}/model", time.time() - started)
    # A folder: it is renamed, where `stage` would write a file.
    on_main((folder / f"epochs/{epoch}").rename, folder / "model")
    on_main(remove, folder, *OF_TRAINING)
    run.stop_after(f"M{t}/model")


def optimize(
    model: Llama, data: list[EncodedPair], source: Path, folder: Path, args: Namespace, t: int
) -> list[dict]:
    """The optimizer steps of a round: the lines of log.jsonl.

    The model after the last epoch, or after each to select one, is saved in folder/epochs. On
    SIGTERM and SIGINT it stops after the step with a checkpoint, from which the next call goes on.
    """
    fused = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0, fused=fused)
    log = restore_checkpoint(folder, model, optimizer)
    n_batches = math.ceil(len(data) / args.batch_size)  # of an epoch; the last one may be smaller
    n_steps = n_batches * args.epochs
    throughput = Throughput(model)
    bar = progress_bar(desc=f"M{t}: training", total=n_steps, initial=len(log), unit="step")
    with bar, caught_signals() as signals:
        for step in range(len(log), n_steps):
            epoch, batch_index = divmod(step, n_batches)
            rng = np.random.default_rng([args.seed, t, SHUFFLING, epoch])
            order = rng.permutation(len(data))[batch_index * args.batch_size :][: args.batch_size]
            batch = [data[i] for i in order]
            lr = learning_rate(step, n_steps, args.warmup_ratio, args.lr)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            metrics = forward_backward(model, batch, args)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            if isinstance(norm, DTensor):
                norm = norm.full_tensor()
            metrics = {"grad_norm": norm.item(), **metrics}
            check_metrics(metrics, batch, step, folder)
            optimizer.step()
            line = {"step": step, "epoch": epoch, "pairs": len(batch), "lr": lr}
            log.append({**line, **metrics})
            throughput.add(batch)
            bar.update()
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", **throughput.metrics(), refresh=False)
            if batch_index + 1 == n_batches and (args.select != "last" or step + 1 == n_steps):
                save_model(model, source, folder / f"epochs/{epoch + 1}")
            stop = all_reduce({"signals": len(signals)})["signals"]  # one rank's signal stops all
            if (step + 1) % args.save_every == 0 or stop:
                save_checkpoint(folder, model, optimizer, log)
            if stop:
                all_reduce({})  # a barrier: none leaves while others still exchange something
                raise KeyboardInterrupt
    print(f"M{t} training: {summary(log)}; {throughput.metrics()['tok/s']} tokens/s")
    return log


def forward_backward(model: Llama, batch: list[EncodedPair], args: Namespace) -> dict[str, float]:
    """Add up the gradient of the batch's mean loss; return the batch's mean of every metric.

    The sum over a micro-batch is divided by the pairs of the whole batch. So any split, over time
    or over ranks, gives the same gradient.
    """
    batch = sorted(batch, key=lambda pair: pair.length, reverse=True)  # little padding
    micro_batches, sums = micro_batches_of_rank(batch, args.micro_batch_size), []
    for i, pairs in enumerate(micro_batches):
        if world_size() > 1:  # ranks exchange gradients once, after the last micro-batch
            model.set_requires_gradient_sync(i + 1 == len(micro_batches))
        # FSDP needs every rank in every forward pass. One that has no pair left runs one all the
        # same, and the slices below drop what comes of it.
        metrics = pair_metrics(model, pairs or batch[-1:], args.beta, args.alpha)
        loss = metrics["loss"][: len(pairs)].sum() / len(batch)
        (loss * world_size()).backward()  # FSDP takes the mean over the ranks
        sums.append(torch.stack([x.detach()[: len(pairs)].sum() for x in metrics.values()]))
    means = torch.stack(sums).cpu().double().sum(0) / len(batch)
    return all_reduce(dict(zip(metrics, means.tolist())))


@torch.no_grad()
def make_reference(
    model: Llama, data: list[EncodedPair], pairs: list[dict], args: Namespace, t: int
) -> list[dict]:
    """log M_{t-1}(y|x) of both responses of each pair, in nats, while θ is M_{t-1}."""
    found, parts = {}, micro_batches_of_rank(list(range(len(data))), args.micro_batch_size)
    for part in progress_bar(iterable=parts, desc=f"M{t}: reference", unit="batch"):
        chosen, rejected = pair_logps(model, [data[i] for i in part or [0]])
        for i, chosen_logp, rejected_logp in zip(part, chosen.tolist(), rejected.tolist()):
            if not math.isfinite(chosen_logp + rejected_logp):
                reason = f"M{t - 1} gives it the log-probs {chosen_logp} and {rejected_logp}"
                raise InputError(f"pairs.jsonl, {data[i].id}: {reason}; is the model broken?")
            found[i] = {"reference_chosen_logp": chosen_logp,
                        "reference_rejected_logp": rejected_logp}
    found = all_gather_dict(found)
    return [{"id": pair["id"], **found[i]} for i, pair in enumerate(pairs)]


def learning_rate(step: int, n_steps: int, warmup_ratio: float, peak: float) -> float:
    """A linear rise over the first share of the steps, then half a cosine to 0; steps from 0."""
    n_warmup = math.ceil(warmup_ratio * n_steps)
    if step < n_warmup:
        return peak * (step + 1) / n_warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup)))


# --------------------------------------------------------------------------------------------
# Evaluation


def evaluate_model(folder: Path, args: Namespace, run: Run, t: int) -> None:
    """The scores of M_t on the test problems: eval.json."""
    name = f"M{t}/eval_responses.jsonl"
    if not args.test or args.no_eval:
        return
    out, already_made = run.folder / name, run.has(name)
    problems = read_problems(args.test, Task.load(args.task), args.limit)
    rows = run.stage(name, evaluate_checkpoint, folder, args.test, args, out, f"M{t}",
                     same_ids_as=problems)
    result = score(rows, args.task)
    on_main(write_json, run.folder / f"M{t}/eval.json", result)
    if not already_made:
        print(table({f"M{t}": result}))
        warn_of_collapse(rows, args.task)
        for row in rows[:2]:
            print(f"    {printable(row['question'])}\n      greedy: {printable(row['greedy'])}   "
                  f"(gold {printable(str(row['gold']))})")
    run.stop_after(f"M{t}/eval.json")


# --------------------------------------------------------------------------------------------
# As a script


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add_run_options(parser)
    add_sampling_options(parser, min_k=2)
    add_training_options(parser)
    return parser


def main() -> None:
    args = parse_args(options())
    args.out = args.out or f"runs/{args.task}"
    init_distributed(usable_device(args.device), getattr(torch, args.dtype))
    check_inputs(args)
    if args.dry_run:
        from bench.memory import print_budget

        print_budget(args)
    else:
        with open_run(args) as run:
            train(args, run)
    farewell()


if __name__ == "__main__":
    run_script(main, leave)
