"""What `train.py --dry-run` says a rank needs, beside what a rank takes: the 8B model's layers, but few of them.

    torchrun --nproc-per-node 2 bench/memory.py [--layers 2] [--vocab 32768] [--micro-batch 1] [--recompute]

Each rank makes its parts of a random model with the widths of Llama-3 8B, does two optimiser steps on pairs of GSM8K's
lengths, and reports the memory it took: of its GPU, or where there is none of the process (its high-water mark less
what it was before the model). Only layers and vocabulary are fewer than the 8B model's; with 32,768 tokens or more, the
vocabulary is larger than a block, as there.
"""

import json
import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from model import Llama, memory  # noqa: E402
from sample import usable_device  # noqa: E402
from scpo import accumulate  # noqa: E402
from train import GIB, join  # noqa: E402
from vote import option, parse_options, run_script  # noqa: E402


@dataclass
class Options:
    layers: int = option(2, "of 32")
    vocab: int = option(32768, "tokens, of 128,256")
    micro_batch: int = option(1, "pairs at once on a rank")
    micro_batches: int = option(1, "of them in a step; from 2 on gradients lie beside activations")
    prompt: int = option(200, "tokens")
    response: int = option(300, "tokens")
    dtype: str = option("bfloat16", "of matrix products")
    recompute: bool = option(False, "as of train.py")


def taken(device: torch.device) -> float:
    """Bytes at the high-water mark."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    o = parse_options(Options, __doc__)
    device = usable_device("auto")
    join(device, alone=True)
    raw = {"model_type": "llama", "vocab_size": o.vocab, "hidden_size": 4096, "intermediate_size": 14336,
           "num_hidden_layers": o.layers, "num_attention_heads": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
           "rope_theta": 500000.0, "tie_word_embeddings": False}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(raw))
        before = taken(device)
        model = Llama.empty_sharded(folder, device, getattr(torch, o.dtype))
    for p in model.parameters():
        torch.nn.init.normal_(p.to_local(), std=0.02)
    model.model.recompute = o.recompute
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=device.type == "cuda")
    side = (list(range(o.prompt)), list(range(o.response)))
    pair = {"chosen": side, "rejected": side, "weight": 1.0, "reference_chosen_logp": -1.0,
            "reference_rejected_logp": -1.0}
    ranks = dist.get_world_size()
    pairs = ranks * o.micro_batch * o.micro_batches
    for _ in range(2):
        optimizer.zero_grad()
        accumulate(model, [pair] * pairs, micro_batch=o.micro_batch, beta=0.5, alpha=1.0,
                   dtype=o.dtype)
        optimizer.step()
    kinds = memory(model, getattr(torch, o.dtype), ranks, prompt=o.prompt, response=o.response,
                   batch_size=pairs, micro_batch=o.micro_batch, rows=1, recompute=o.recompute)
    said = kinds["training, at most"]
    real = taken(device) - before
    print(f"{ranks} ranks: budget {said / GIB:.2f} GiB, taken {real / GIB:.2f} GiB, {100 * (said / real - 1):+.1f} %; "
          + ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in kinds.items() if not kind.startswith("sampling")))
    dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main)
