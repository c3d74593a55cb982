"""What memory training and sampling will take: the budget of `python train.py --dry-run`."""

import math
import os
from argparse import Namespace

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from common.cli import InputError
from common.distributed import world_size
from common.options import usable_device
from common.packing import PackedTokens
from common.runs import per_round
from common.throughput import GIB
from model import LOGITS_CHUNK, Block, Config, Llama
from tasks.chat import ChatTokenizer
from tasks.task import Task, read_problems

CUDA_CONTEXT = 3 * GIB  # of a GPU, for CUDA's and NCCL's own needs
ADVICE = {
    "training": "more ranks, --activation-checkpointing, a smaller --micro-batch-size or "
    "--max-new-tokens",
    "sampling": "--dtype bfloat16, a smaller --max-num-seqs or --max-new-tokens",
}


def print_budget(args: Namespace) -> None:
    """Memory by number of ranks, tokens and steps. Raises InputError if it does not fit here."""
    model = Llama.on_meta(args.model)
    tokenizer = ChatTokenizer(args.model, args.chat, args.system)
    task = Task.load(args.task)
    problems = read_problems(args.problems, task, args.limit)
    prompts = [tokenizer.prompt_for(task, problem) for problem in problems]
    longest = max(len(tokenizer.encode_prompt(prompt)) for prompt in prompts)
    prompt_tokens = math.ceil(args.max_num_seqs / args.k) * longest
    if any(per_round(args.new_problems, t) for t in range(1, args.rounds + 1)):
        # A row that writes a problem reads n_examples of them, which no other row shares; so there
        # are fewer rows at once, sample.write_problems.
        prompt_tokens = args.max_num_seqs * longest
    needs = {}
    for ranks in sorted({1, 2, 4, 8, world_size()}):
        needs[ranks] = memory(
            model,
            getattr(torch, args.dtype),
            ranks,
            prompt=longest,
            response=args.max_new_tokens,
            prompt_tokens=prompt_tokens,
            batch_size=args.batch_size,
            micro_batch_size=args.micro_batch_size,
            max_num_seqs=args.max_num_seqs,
            activation_checkpointing=args.activation_checkpointing,
        )
    n_parameters = sum(p.numel() for p in model.parameters())
    print(f"{n_parameters:,} parameters; prompts of up to {longest} tokens, responses of up to "
          f"{args.max_new_tokens}")
    print("GiB per rank, ranks:  " + "".join(f"{ranks:10}" for ranks in needs))
    for kind in needs[1]:
        print(f"{kind:<22}" + "".join(f"{need[kind] / GIB:10.1f}" for need in needs.values()))
    for t in range(1, args.rounds + 1):
        most = len(problems) + per_round(args.new_problems, t)
        tokens = most * args.k * args.max_new_tokens
        steps = args.epochs * math.ceil(most / args.batch_size)
        print(f"M{t}: up to {most} problems x {args.k} = {most * args.k} responses, "
              f"{tokens / 1e6:.1f}M tokens; up to {steps} steps of {args.batch_size} pairs")
    device = usable_device(args.device)
    room = memory_of(device)
    for work, advice in ADVICE.items():
        need = needs[world_size()][f"{work}, at most"]
        if need > room:
            raise InputError(f"--dry-run: {work} needs {need / GIB:.1f} GiB per rank, {device} has "
                             f"{room / GIB:.1f}; try {advice}")
    print(f"fits in {device}, which has {room / GIB:.1f} GiB")


def memory_of(device: torch.device) -> float:
    """Bytes that one rank may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory - CUDA_CONTEXT
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def memory(
    model: Llama,
    dtype: torch.dtype,
    ranks: int,
    *,
    prompt: int,
    response: int,
    prompt_tokens: int,
    batch_size: int,
    micro_batch_size: int,
    max_num_seqs: int,
    activation_checkpointing: bool,
) -> dict[str, float]:
    """Bytes on each rank, by kind, of training on batches of pairs and of sampling.

    prompt, response: the longest, in tokens. prompt_tokens: of all prompts that a batch of
    max_num_seqs rows continues; rows of the same prompt share it. dtype: of matrix products and
    of sampling.
    """
    config, width, layers = model.config, dtype.itemsize, model.config.num_hidden_layers
    total = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    blocks, root = layers * block, total - layers * block
    head = config.vocab_size * config.hidden_size
    share = math.ceil(batch_size / ranks)  # pairs of a step on one rank
    pairs = min(micro_batch_size, share)
    accumulates = share > micro_batch_size  # there is a second micro-batch

    inside, outside = saved_bytes(config, packed_pairs(pairs, prompt, response), dtype)
    activations = layers * inside
    if activation_checkpointing:
        activations = inside + layers * outside
    logits = min(2 * pairs * response, LOGITS_CHUNK) * config.vocab_size * (width + 3 * 4)
    whole = width * (root + min(2, layers) * block)  # put together for the computation

    def gradients(done: int) -> float:
        """When those of `done` weights are exchanged; of several micro-batches they are whole."""
        return 4 * (total - done) * accumulates + 4 * done / ranks

    # A block's gradient on its way, before the vocabulary's, which comes last.
    on_its_way = width * head + (width + 4) * block
    highest = max(
        gradients(0) + whole + activations + logits,
        gradients(0) + whole + activations + on_its_way,  # of the last block
        gradients(blocks - block) + whole + inside + on_its_way,  # of the first
        gradients(blocks) + (width + 4 + 4 / ranks) * root,  # of all that is no block
    )
    slots = prompt_tokens + max_num_seqs * response
    cache = width * slots * layers * 2 * config.num_key_value_heads * config.head_dim
    cache *= 1 + 1 / (2 * layers)  # dropping rows copies it tensor by tensor
    passing = max(
        width * prompt_tokens * 3 * (config.hidden_size + config.intermediate_size),
        max_num_seqs * config.vocab_size * (width + 4 * 4),  # a step's logits and probabilities
    )
    weights = 4 * total / ranks
    return {
        "weights, fp32": weights,
        "optimizer, 2 x fp32": 2 * weights,
        "gradients, fp32": max(gradients(0), gradients(total)),
        "put together": whole,
        "activations": activations,
        "logits of a chunk": logits,
        "training, at most": 3 * weights + highest,
        "sampling: weights": width * total,
        "sampling: cache": cache,
        "sampling: in passing": passing,
        "sampling, at most": width * total + cache + passing,
    }


def packed_pairs(pairs: int, prompt: int, response: int) -> PackedTokens:
    """As training packs pairs of which all are that long."""
    is_prompt = (torch.arange(prompt + response) < prompt).expand(2 * pairs, -1)
    return PackedTokens(is_prompt, ~is_prompt, n_prompts=pairs)


def saved_bytes(config: Config, packed: PackedTokens, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that a block keeps for the backward pass, and those of its input.

    Measured on tensors without content.
    """
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):  # the indices of packed
        block = Block(config)
        weights = {}
        for name, p in block.named_parameters():
            weights[name] = p.detach().to(dtype).requires_grad_()
        n_tokens = len(packed.place_of)
        shape = (1, n_tokens, config.hidden_size)
        x = torch.empty(shape, dtype=dtype, requires_grad=True)
        angle = torch.empty(1, n_tokens, 1, config.head_dim // 2, dtype=dtype)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(block, weights, (x, (angle, angle), packed, 0))
    for p in weights.values():
        kept.pop(p.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values()), x.numel() * x.element_size()
