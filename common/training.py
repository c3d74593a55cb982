"""Around the training loop: sharding with FSDP, checkpoints, whole model folders, signals."""

import gc
import math
import shutil
import signal
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from common.checkpoint import read_into, write_tensors
from common.cli import InputError
from common.distributed import on_main, world_size
from common.files import flush, read_jsonl, remove, write_jsonl, writing, wrong_with_stage
from common.options import usable_device
from common.runs import FIELDS, OF_TRAINING
from model import Llama
from scpo import EncodedPair
from tasks.chat import ChatTokenizer

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


def load_for_training(source: Path, args: Namespace) -> tuple[Llama, ChatTokenizer]:
    """M_{t-1} with fp32 weights: bf16 ones would lose updates smaller than their 8 bits."""
    free_memory()  # of the models that sampled
    device = usable_device(args.device)
    if dist.is_initialized():
        model = shard(Llama.on_meta(source), device, getattr(torch, args.dtype))
        read_into(model.state_dict(), source)
    else:
        model = Llama.from_pretrained(source, device=device)
    model.model.activation_checkpointing = args.activation_checkpointing
    return model, ChatTokenizer(source, args.chat, args.system)


def shard(model: Llama, device: torch.device, dtype: torch.dtype) -> Llama:
    """FSDP2: each rank holds a part of every tensor, in fp32, still without content.

    A block is put together, in `dtype`, only while it is computed; gradients are reduced in fp32.
    """
    mesh = dist.init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # By default the root stays whole after a forward pass: the optimizer would hold wrong tensors.
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    register_fsdp_forward_method(model, "response_logps")
    return model.to_empty(device=device).train()


def free_memory() -> None:
    """Give back what unused models hold: a sharded one is a reference cycle."""
    gc.collect()
    torch.cuda.empty_cache()


def save_checkpoint(folder: Path, model: Llama, optimizer: Optimizer, log: list[dict]) -> None:
    """Weights, moments and log in folder/checkpoint-N: any number of ranks can go on from there.

    Nothing else has a state. The order of the pairs follows from seed, round and epoch.
    """
    whole = folder / f"checkpoint-{len(log)}"
    part = folder / f"{whole.name}.part"
    on_main(remove, folder, part.name)
    weights = dict(model.named_parameters())
    write_tensors(part / "weights", weights)
    for moment in MOMENTS:
        moments = {name: optimizer.state[p][moment] for name, p in weights.items()}
        write_tensors(part / moment, moments)
    on_main(write_jsonl, part / "log.jsonl", log)
    on_main(part.rename, whole)
    older = [path.name for path in on_main(checkpoints, folder)[:-1]]
    on_main(remove, folder, *older)


def restart_if_models_are_gone(folder: Path, steps_per_epoch: int, args: Namespace) -> None:
    """Delete what is left of a training if models that it saved are gone: no step gives them back.

    It is then made again from the first step.
    """
    steps = [int(path.name.removeprefix("checkpoint-")) for path in checkpoints(folder)]
    if (folder / "log.jsonl").exists():
        steps.append(steps_per_epoch * args.epochs)
    saved = range(1, max(steps, default=0) // steps_per_epoch + 1)
    if args.select == "last":
        saved = [args.epochs] if args.epochs in saved else []
    if not all((folder / f"epochs/{epoch}").exists() for epoch in saved):
        print(f"{folder}: models of its epochs are gone; the training is made anew")
        remove(folder, "log.jsonl", "epochs.jsonl", *OF_TRAINING)


def restore_checkpoint(folder: Path, model: Llama, optimizer: Optimizer) -> list[dict]:
    """Go back to the last checkpoint; its log, which is empty if there is none."""
    found = on_main(checkpoints, folder)
    if not found:
        return []
    weights = dict(model.named_parameters())
    moments = {}
    try:
        log = read_jsonl(found[-1] / "log.jsonl", FIELDS["log.jsonl"], wrong_with_stage)
        if found[-1].name != f"checkpoint-{len(log)}":
            raise InputError(f"{found[-1]}: its log.jsonl has {len(log)} lines")
        read_into(weights, found[-1] / "weights")
        for moment in MOMENTS:
            moments[moment] = {name: torch.zeros_like(p) for name, p in weights.items()}
            read_into(moments[moment], found[-1] / moment)
    except InputError as error:
        advice = f"delete {found[-1]} to train from an earlier step"
        raise InputError(f"{error}; {advice}") from error
    for moment in MOMENTS:
        for name, p in weights.items():
            optimizer.state[p][moment] = moments[moment][name]
    for p in weights.values():
        steps = torch.tensor(float(len(log)))
        optimizer.state[p]["step"] = steps.to(p.device) if p.is_cuda else steps
    return log


def checkpoints(folder: Path) -> list[Path]:
    """Those that are whole, the last one last."""
    numbers = []
    for path in folder.glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if number.isdecimal():
            numbers.append(int(number))
    return [folder / f"checkpoint-{number}" for number in sorted(numbers)]


def save_model(model: Llama, source: Path, folder: Path) -> None:
    """Write a model folder with the tokenizer of `source`; it has its name when it is whole."""
    if on_main(folder.exists):  # saved before a stop
        return
    part = folder.with_name(folder.name + ".part")
    on_main(remove, folder.parent, part.name)
    model.save_pretrained(part)
    on_main(copy_tokenizer, source, part)
    on_main(part.rename, folder)


def copy_tokenizer(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        of_the_model = path.name == "config.json" or "safetensors" in path.name
        if path.suffix in (".json", ".jinja", ".model") and not of_the_model:
            with writing(folder / path.name):
                shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        with writing(path), open(path, "rb") as file:
            flush(file)  # on the disk before the folder gets its name


def check_pairs(data: list[EncodedPair], model: Llama, folder: Path) -> None:
    """Raises InputError for a token that the model does not have, or lines of two kinds."""
    if len({pair.rejected is None for pair in data}) > 1:
        raise InputError(f"{folder}/pairs.jsonl: some lines reject a response and some do not; "
                         "make all of one kind")
    for pair in data:
        last = max(pair.prompt + pair.chosen + (pair.rejected or []))
        if last >= model.config.vocab_size:
            known = f"the model knows only {model.config.vocab_size}"
            raise InputError(f"{folder}/pairs.jsonl, problem {pair.id}: names token {last}, {known}"
                             "; delete its ids, and the texts are encoded")


def check_metrics(
    metrics: dict[str, float], batch: list[EncodedPair], step: int, folder: Path
) -> None:
    """Raises InputError before a step that would make the weights NaN."""
    wrong = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        ids = ", ".join(str(pair.id) for pair in batch)
        kept = ", ".join(map(str, checkpoints(folder)[-1:])) or "no checkpoint yet"
        raise InputError(f"{folder}: step {step} of the training is not finite ({wrong[0]}) on the "
                         f"pairs {ids}; lower --lr or look at them; what is kept: {kept}")


def epoch_means(log: list[dict], epoch: int) -> dict[str, float]:
    """Means over the pairs of an epoch, of all metrics in its lines of log.jsonl."""
    lines = [line for line in log if line["epoch"] == epoch]
    n_pairs = sum(line["pairs"] for line in lines)
    means = {}
    for name in lines[0]:
        if name not in ("step", "epoch", "pairs", "lr"):
            means[name] = sum(line[name] * line["pairs"] for line in lines) / n_pairs
    return means


def summary(log: list[dict]) -> str:
    """Means over the first and the last epoch, which hold the same pairs."""
    first, last = epoch_means(log, 0), epoch_means(log, log[-1]["epoch"])
    shown = []
    for name in ("loss", "chosen_logp", "rejected_logp"):
        if name in first:  # if nothing is rejected, the last is not
            shown.append(f"{name} {first[name]:.3f} → {last[name]:.3f}")
    return f"{len(log)} steps; mean of the first → the last epoch: {', '.join(shown)}"


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """The SIGTERMs and SIGINTs that arrive meanwhile, instead of their usual effect."""
    caught: list[int] = []
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:  # after the last look
        raise KeyboardInterrupt
