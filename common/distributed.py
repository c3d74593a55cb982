"""Several processes, one per GPU, as torchrun starts them. Alone, a process is rank 0 of 1.

Every rank must make the same calls of this file in the same order.
"""

import math
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def init_distributed(device: torch.device, dtype: torch.dtype) -> None:
    """Join the processes that torchrun started.

    FSDP needs a process group, be it of one: it also does a single GPU's mixed precision.
    """
    launched = dist.is_torchelastic_launched()
    if not launched and device.type != "cuda" and dtype == torch.float32:
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    group = {}
    if not launched:
        group = {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    backend = "nccl" if device.type == "cuda" else "gloo"
    # A rank may wait hours for another's samples; if one dies, torchrun ends them all.
    dist.init_process_group(backend, timeout=timedelta(days=7), **group)
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")


def on_main(function: Callable, *args: Any) -> Any:
    """Let rank 0 call the function when all are here; every rank gets its result, and then goes on.

    So it deletes and renames nothing that another still reads. Not to be called in a loop whose
    length may differ between the ranks.
    """
    if world_size() == 1:
        return function(*args)
    all_gather_dict({})
    result = [function(*args)] if rank() == 0 else [None]
    dist.broadcast_object_list(result)
    return result[0]


def all_gather_dict(mine: dict) -> dict:
    """The union of every rank's dict, on every rank."""
    if world_size() == 1:
        return mine
    parts: list[dict] = [{} for _ in range(world_size())]
    dist.all_gather_object(parts, mine)
    union = {}
    for part in parts:
        union.update(part)
    return union


def all_reduce(values: dict[str, float]) -> dict[str, float]:
    """The sum over the ranks of each value."""
    parts = all_gather_dict({rank(): values}).values()
    return {name: sum(part[name] for part in parts) for name in values}


def micro_batches_of_rank(items: list, size: int) -> list[list]:
    """This rank's share of the items, in lists of up to `size`.

    Every rank gets the same number of lists, some of them perhaps empty, since all ranks must take
    part in each step of FSDP.
    """
    share = items[rank() :: world_size()]
    count = math.ceil(len(items) / (world_size() * size))
    return [share[i * size : (i + 1) * size] for i in range(count)]


def farewell() -> None:
    """The end of a script that went well; among others it ends the process, when all are here.

    Taking down gloo's threads, as a usual end does, now and then aborts a process with nothing
    left to do, and then the whole run counts as failed.
    """
    if world_size() > 1:
        all_gather_dict({})
        leave(0)
    if dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int) -> None:
    """End this process; among others at once, since NCCL's farewell would wait for them."""
    if world_size() == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def progress_bar(**kwargs: Any) -> tqdm:
    """A bar of rank 0, on terminals only: it would fill a log file."""
    return tqdm(leave=False, disable=True if rank() > 0 else None, **kwargs)
