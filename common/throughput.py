"""How fast a training loop is: tokens per second, peak memory, model FLOP utilization (MFU)."""

import time
from collections.abc import Sequence

import torch

from common.distributed import world_size
from model import Llama

GIB = 2**30
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the GPU's name


class Throughput:
    """Of the steps that were added so far."""

    def __init__(self, model: Llama):
        self.model, self.started, self.tokens, self.flops = model, time.time(), 0, 0.0
        self.peak_flops = None
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
            gpu = torch.cuda.get_device_name(model.device)
            known = [flops for name, flops in PEAK_FLOPS.items() if name in gpu]
            self.peak_flops = known[0] if known else None

    def add(self, sequences: Sequence[tuple[list[int], list[int]]]) -> None:
        self.tokens += sum(len(prompt) + len(response) for prompt, response in sequences)
        self.flops += training_flops(self.model, sequences)

    def metrics(self) -> dict[str, str]:
        seconds = time.time() - self.started
        shown = {"tok/s": f"{self.tokens / seconds:.0f}"}
        if self.model.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.model.device)
            shown["GiB"] = f"{peak / GIB:.1f}"
        if self.peak_flops:
            mfu = self.flops / seconds / self.peak_flops / world_size()
            shown["MFU"] = f"{100 * mfu:.0f}%"
        return shown


def training_flops(model: Llama, sequences: Sequence[tuple[list[int], list[int]]]) -> float:
    """Floating point operations of (prompt, response) sequences, forward and backward.

    As is customary, 6 per weight and token, the vocabulary projection on response tokens alone.
    Attention takes two products of T²/2 · n_heads · head_dim multiplications a layer, three times.
    What activation checkpointing does twice counts once.
    """
    config = model.config
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    head = config.vocab_size * config.hidden_size
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops = 0.0
    for prompt, response in sequences:
        length = len(prompt) + len(response)
        flops += 6 * blocks * length + 6 * head * len(response) + 6 * width * length**2
    return flops
