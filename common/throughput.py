"""How fast a training loop is: tokens per second, peak memory, model FLOP utilization (MFU)."""

import time
from collections.abc import Sequence

import torch

from common.distributed import world_size
from model import Llama
from scpo import EncodedPair

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

    def add(self, pairs: Sequence[EncodedPair]) -> None:
        """Of a pair's tokens the prompt counts once."""
        for pair in pairs:
            self.tokens += len(pair.prompt) + len(pair.chosen) + len(pair.rejected or [])
        self.flops += training_flops(self.model, pairs)

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


def training_flops(model: Llama, pairs: Sequence[EncodedPair]) -> float:
    """Floating point operations that pairs need, forward and backward.

    As is customary, 6 per weight and token, the vocabulary projection on response tokens alone.
    Attention takes two products of n_heads · head_dim multiplications for each token that a token
    sees, T²/2 in a text of T, in each layer, three times. A pair's prompt counts once, and so does
    what activation checkpointing does twice.
    """
    config = model.config
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    head = config.vocab_size * config.hidden_size
    width = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    flops = 0.0
    for pair in pairs:
        n_prompt = len(pair.prompt)
        flops += 6 * blocks * n_prompt + 6 * width * n_prompt**2
        for response in (pair.chosen, pair.rejected or []):
            twice_seen = (n_prompt + len(response)) ** 2 - n_prompt**2
            flops += 6 * (blocks + head) * len(response) + 6 * width * twice_seen
    return flops
