"""Llama-3 8B with random weights: does a step of ScPO fit, as `--dry-run` says, and how fast are it and sampling?

    python bench/llama8b.py --recompute --micro-batch 8 --micro-batches 2     # one H200: 16 pairs a step, as the paper
    torchrun --nproc-per-node 8 bench/llama8b.py --micro-batch 2              # eight GPUs
    python bench/llama8b.py --layers 2 --vocab 32768 --sample 0               # what a laptop can hold of it
    python bench/llama8b.py --pretend 8 --recompute --micro-batch 2           # all of it, on 8 ranks that are not there

Each rank makes its parts of the model, does some optimiser steps on pairs of GSM8K's lengths, and reports the memory it
took beside the budget, tokens per second and, on a known GPU, the model FLOP utilisation. Memory is that of the GPU or,
without one, of the process: its high-water mark less what it was before the model. Then `--sample` prompts are answered
8 times by a plain copy in --dtype. With `--pretend N` nothing is computed: tensors have shapes but no content, ranks do
not exist, and PyTorch's own memory tracker counts what one of N would hold.
"""

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import Llama, RMSNorm, memory, rank_and_size  # noqa: E402
from sample import generate, usable_device  # noqa: E402
from scpo import accumulate  # noqa: E402
from train import GIB, Speed, free_memory, join  # noqa: E402
from vote import check_options, option, parse_options, run_script  # noqa: E402


@dataclass
class Options:
    layers: int = option(32, "blocks")
    vocab: int = option(128256, "tokens of the vocabulary")
    micro_batch: int = option(1, "pairs at once on a rank")
    micro_batches: int = option(1, "of them in a step; from 2 on gradients lie beside activations")
    steps: int = option(3, "optimiser steps; the first is not timed")
    prompt: int = option(200, "tokens")
    response: int = option(300, "tokens")
    sample: int = option(32, "prompts that are answered 8 times, 0 for none")
    dtype: str = option("bfloat16", "of matrix products and of sampling")
    recompute: bool = option(False, "as of train.py")
    pretend: int = option(0, "ranks to count for instead of a real run")


def taken(device: torch.device) -> float:
    """Bytes at the high-water mark."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train_steps(o: Options, folder: Path, device: torch.device) -> None:
    before, ranks = taken(device), dist.get_world_size()
    model = Llama.empty_sharded(folder, device, getattr(torch, o.dtype))
    for p in model.parameters():
        torch.nn.init.normal_(p.to_local(), std=0.02)
    model.model.recompute = o.recompute
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=device.type == "cuda")
    side, pairs = (list(range(o.prompt)), list(range(o.response))), ranks * o.micro_batch * o.micro_batches
    pair = {"chosen": side, "rejected": side, "weight": 1.0, "reference_chosen_logp": -1.0,
            "reference_rejected_logp": -1.0}
    for step in range(o.steps):
        if step == 1:
            speed = Speed(device)
        optimizer.zero_grad()
        accumulate(model, [pair] * pairs, micro_batch=o.micro_batch, beta=0.5, alpha=1.0, dtype=o.dtype)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor().item()
        optimizer.step()
        if step > 0:
            speed.add(model, [pair] * pairs)
    real = taken(device) - (before if device.type == "cpu" else 0)
    compare(o, model, real, "taken", ", ".join(f"{v} {name}" for name, v in speed.gauges().items()))


def compare(o: Options, model: Llama, found: float, how: str, more: str = "") -> None:
    """Print the bytes that were found beside those that the budget says."""
    ranks = rank_and_size()[1]
    pairs = ranks * o.micro_batch * o.micro_batches
    said = memory(model, getattr(torch, o.dtype), ranks, prompt=o.prompt, response=o.response, batch_size=pairs,
                  micro_batch=o.micro_batch, rows=1, recompute=o.recompute)["training, at most"]
    print(f"training, {ranks} ranks, {pairs} pairs a step: budget {said / GIB:.2f} GiB, {how} {found / GIB:.2f} GiB "
          f"({100 * (said / found - 1):+.1f} %){'; ' if more else ''}{more}")


class Countable(Llama):
    """`response_logps` as a forward pass without a look at values: all rows have as long a prompt."""

    def forward(self, tokens: torch.Tensor, prompt: int) -> torch.Tensor:
        states = self.model(tokens)[:, prompt - 1 : -1].flatten(0, 1)  # (N, C)
        return self.token_logps(states, tokens[:, prompt:].flatten())  # (N,)

    def to_empty(self, *, device: torch.device) -> Self:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return super().to_empty(device=device)


def pretend_step(o: Options, folder: Path) -> None:
    """Forward and backward passes of one step on the first of --pretend ranks that do not exist."""
    model = Countable.empty_sharded(folder, torch.device("cpu"), getattr(torch, o.dtype))
    model.model.recompute = o.recompute
    with next(model.parameters()).to_local().fake_mode:
        tracker = FSDPMemTracker(model)
        tracker.track_inputs(())
        with tracker:
            for i in range(o.micro_batches):
                tracker.reset_mod_stats()
                model.set_requires_gradient_sync(o.pretend == 1 or i + 1 == o.micro_batches)
                tokens = torch.zeros(2 * o.micro_batch, o.prompt + o.response, dtype=torch.long)
                model(tokens, o.prompt).sum().backward()
        held = sum(next(iter(tracker.get_tracker_snapshot("peak").values())).values()) / 2  # kinds, and their total
    compare(o, model, held + 8 * sum(p.numel() for p in model.parameters()) / o.pretend, "tracked with AdamW's state")


def sample_responses(o: Options, folder: Path, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = Llama.on_meta(folder).to(getattr(torch, o.dtype)).to_empty(device=device).eval()
    for name, p in model.named_parameters():  # logits so wide that a few tokens hold top_p, as in a trained model
        torch.nn.init.normal_(p, std=0.1 if name == "lm_head.weight" else 0.02)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            torch.nn.init.ones_(module.weight)
    rows = 8 * o.sample  # on each rank
    prompts = [[i % 100 + 1] * o.prompt for i in range(o.sample * rank_and_size()[1])]
    started = time.time()
    generate(model, prompts, 8, max_new_tokens=o.response, rows=rows, progress="sampling")
    seconds = time.time() - started
    print(f"sampling, {o.sample} prompts x 8: {rows * o.response / seconds:.0f} tok/s on each rank, "
          f"{taken(device) / GIB:.2f} GiB")


def main() -> None:
    o = parse_options(Options, __doc__)
    check_options(o, {"steps": (lambda v: v >= 2, "at least 2, since the first is not timed")})
    device = usable_device("auto")
    if o.pretend:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=o.pretend)
    else:
        join(device)
    if not dist.is_initialized():  # a single CPU process
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    raw = {"model_type": "llama", "vocab_size": o.vocab, "hidden_size": 4096, "intermediate_size": 14336,
           "num_hidden_layers": o.layers, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
           "rope_theta": 500000.0, "tie_word_embeddings": False}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw))
        if o.pretend:
            pretend_step(o, Path(folder))
        else:
            train_steps(o, Path(folder), device)
            free_memory()
            if o.sample:
                sample_responses(o, Path(folder), device)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
