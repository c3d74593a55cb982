"""Llama-3 8B with random weights: does a step of ScPO fit, as --dry-run says, and how fast is it?

    python bench/llama8b.py --activation-checkpointing --micro-batch-size 8 --micro-batches 2
    torchrun --nproc-per-node 8 bench/llama8b.py --micro-batch-size 2         # eight GPUs
    python bench/llama8b.py --layers 2 --vocab 32768 --sample 0               # what a laptop holds
    python bench/llama8b.py --pretend 8 --activation-checkpointing --micro-batch-size 2

The first is one H200 and 16 pairs a step, as in the paper; the last counts memory on 8 ranks that
do not exist. Each rank makes its part of the model, does some optimizer steps on pairs of GSM8K's
lengths, and reports the memory that it took beside the budget, tokens per second and, on a known
GPU, the model FLOP utilization. Memory is that of the GPU or, without one, of the process: its
high-water mark less what it was before the model. Then `--sample` prompts are answered 8 times by a
plain copy in --dtype. With `--pretend N` nothing is computed: tensors have shapes but no content,
and PyTorch's own memory tracker counts what one of N ranks would hold.
"""

import resource
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.memory import memory, packed_pairs
from common.cli import ArgumentParser, integer, run_script
from common.distributed import init_distributed, leave, world_size
from common.files import write_json
from common.options import usable_device
from common.packing import PackedTokens
from common.throughput import GIB, Throughput
from common.training import free_memory, shard
from model import Llama, RMSNorm
from sample import SamplingParams, generate
from scpo import EncodedPair
from train import forward_backward


def high_water_mark(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def train_steps(args: Namespace, folder: Path, device: torch.device) -> None:
    before = high_water_mark(device)
    model = shard(Llama.on_meta(folder), device, getattr(torch, args.dtype))
    for p in model.parameters():
        nn.init.normal_(p.to_local(), std=0.02)
    model.model.activation_checkpointing = args.activation_checkpointing
    fused = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=fused)
    response = list(range(args.response))
    pair = EncodedPair(list(range(args.prompt)), response, response, 1.0, "", -1.0, -1.0)
    batch = [pair] * (world_size() * args.micro_batch_size * args.micro_batches)
    for step in range(args.steps):
        if step == 1:  # the first is not timed
            throughput = Throughput(model)
        optimizer.zero_grad()
        forward_backward(model, batch, args)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor().item()
        optimizer.step()
        if step > 0:
            throughput.add(batch)
    taken = high_water_mark(device)
    if device.type == "cpu":
        taken -= before
    speed = ", ".join(f"{value} {name}" for name, value in throughput.metrics().items())
    print(f"{compare(args, model, taken, 'taken')}; {speed}")


def compare(args: Namespace, model: Llama, found: float, how: str) -> str:
    """The bytes that were found beside those of the budget."""
    ranks = world_size()
    n_pairs = ranks * args.micro_batch_size * args.micro_batches
    kinds = memory(
        model, getattr(torch, args.dtype), ranks, prompt=args.prompt, response=args.response,
        prompt_tokens=0, batch_size=n_pairs, micro_batch_size=args.micro_batch_size, max_num_seqs=0,
        activation_checkpointing=args.activation_checkpointing)
    budget = kinds["training, at most"]
    return (f"training, {ranks} ranks, {n_pairs} pairs a step: budget {budget / GIB:.2f} GiB, "
            f"{how} {found / GIB:.2f} GiB ({100 * (budget / found - 1):+.1f} %)")


class Countable(Llama):
    """`response_logps` as a forward pass without a look at values.

    Which tokens are projected to the vocabulary does not matter to memory, only how many.
    """

    def forward(self, tokens: torch.Tensor, packed: PackedTokens, responses: int) -> torch.Tensor:
        hidden = self.model(tokens, packed)[0]  # (M, hidden_size)
        before = hidden[:responses].clone()  # (responses, hidden_size)
        return self.chunked_logps(before, tokens[0, :responses])  # (responses,)

    def to_empty(self, *, device: torch.device) -> Self:
        with FakeTensorMode(allow_non_fake_inputs=True):
            return super().to_empty(device=device)


def pretend_step(args: Namespace, folder: Path) -> None:
    """Forward and backward passes of one step on the first of --pretend ranks."""
    dtype = getattr(torch, args.dtype)
    model = shard(Countable.on_meta(folder), torch.device("cpu"), dtype)
    model.model.activation_checkpointing = args.activation_checkpointing
    n_responses = 2 * args.micro_batch_size * args.response  # tokens
    packed = packed_pairs(args.micro_batch_size, args.prompt, args.response)
    with next(model.parameters()).to_local().fake_mode:
        tracker = FSDPMemTracker(model)
        tracker.track_inputs(())
        with tracker:
            for i in range(args.micro_batches):
                tracker.reset_mod_stats()
                last = i + 1 == args.micro_batches
                model.set_requires_gradient_sync(args.pretend == 1 or last)
                tokens = torch.zeros(1, len(packed.place_of), dtype=torch.long)
                model(tokens, packed, n_responses).sum().backward()
        snapshot = next(iter(tracker.get_tracker_snapshot("peak").values()))
    held = sum(snapshot.values()) / 2  # it has kinds, and their total
    moments = 8 * sum(p.numel() for p in model.parameters()) / args.pretend
    print(compare(args, model, held + moments, "tracked with AdamW's state"))


def sample_responses(args: Namespace, folder: Path, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = Llama.on_meta(folder).to(getattr(torch, args.dtype)).to_empty(device=device).eval()
    for name, p in model.named_parameters():  # a few tokens hold top_p, as in a trained model
        nn.init.normal_(p, std=0.1 if name == "lm_head.weight" else 0.02)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
    n_prompts, rows = args.sample * world_size(), 8 * args.sample
    prompts = [[i % 100 + 1] * args.prompt for i in range(n_prompts)]
    params = SamplingParams(0.7, 0.9, max_new_tokens=args.response, max_num_seqs=rows)
    started = time.time()
    generate(model, prompts, 8, params, seed=[0], desc="sampling")
    speed = rows * args.response / (time.time() - started)
    print(f"sampling, {args.sample} prompts x 8: {speed:.0f} tok/s on each rank, "
          f"{high_water_mark(device) / GIB:.2f} GiB")


def options() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--layers", type=integer(1), default=32, help="blocks")
    add("--vocab", type=integer(1), default=128256, help="tokens of the vocabulary")
    add("--micro-batch-size", type=integer(1), default=1, help="pairs at once on a rank")
    add("--micro-batches", type=integer(1), default=1, help="of them in a step; from 2 on "
        "gradients lie beside activations")
    add("--steps", type=integer(2), default=3, help="optimizer steps; the first is not timed")
    add("--prompt", type=integer(1), default=200, help="tokens")
    add("--response", type=integer(1), default=300, help="tokens")
    add("--sample", type=integer(0), default=32, help="prompts answered 8 times, 0 for none")
    add("--dtype", default="bfloat16", help="of matrix products and of sampling")
    add("--activation-checkpointing", action="store_true", help="as of train.py")
    add("--pretend", type=integer(0), default=0, help="ranks to count for")
    parser.set_defaults(beta=0.5, alpha=1.0)
    return parser


def main() -> None:
    args = options().parse_args()
    device = usable_device("auto")
    if args.pretend:
        store = FakeStore()
        dist.init_process_group("fake", store=store, rank=0, world_size=args.pretend)
    else:
        init_distributed(device, torch.bfloat16)  # a group also of one, which FSDP needs
    hf_config = {
        "model_type": "llama", "vocab_size": args.vocab, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": args.layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
        "tie_word_embeddings": False}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_json(folder / "config.json", hf_config)
        if args.pretend:
            pretend_step(args, folder)
        else:
            train_steps(args, folder, device)
            free_memory()
            if args.sample:
                sample_responses(args, folder, device)
    dist.destroy_process_group()


if __name__ == "__main__":
    run_script(main, leave)
