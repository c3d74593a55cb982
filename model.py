"""Llama 2, 3, 3.1 and 3.2 in one file: the forward pass, its key/value cache, Hugging Face checkpoint folders, and
training it in parts on several GPUs.

Parameters carry the names and the layout of a Hugging Face checkpoint, so loading is a strict copy and no conversion
exists. References: Llama 2 (arXiv 2307.09288), Llama 3 (arXiv 2407.21783), RoPE (arXiv 2104.09864), grouped-query
attention (arXiv 2305.13245), SwiGLU (arXiv 2002.05202), RMSNorm (arXiv 1910.07467).

Letters in shape comments
    B  rows of the batch           T  tokens of this call           S  keys in sight: cached tokens + T
    C  hidden_size                 V  vocab_size                    D  head_dim
    H  num_attention_heads         K  num_key_value_heads           F  intermediate_size
    N  response tokens of all rows
"""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from vote import InputError, read_json

# On H100s PyTorch prefers cuDNN's attention, which makes a plan for every new length: in decoding, at every step.
torch.backends.cuda.enable_cudnn_sdp(False)

CHUNK = 1024  # response tokens whose logits exist at once: at a vocabulary of 128,256 half a gigabyte in fp32
SHARD = 5 * 10**9  # bytes of one safetensors file; a larger checkpoint is split and gets an index


@dataclass(frozen=True)
class Config:
    """The fields of `config.json` that the forward pass reads, under Hugging Face's names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: dict  # rope_type ("default" or "llama3"), rope_theta and, for llama3, its four scaling numbers
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_dict(cls, raw: dict, where: str = "config.json") -> "Config":
        """Read a parsed `config.json`. Raises InputError, naming `where`, if it does not describe a Llama."""
        if raw.get("model_type") != "llama":
            raise InputError(f"{where}: model_type is {raw.get('model_type')!r}, only 'llama' can be loaded")
        if raw.get("hidden_act", "silu") != "silu":
            raise InputError(f"{where}: hidden_act is {raw['hidden_act']!r}, a Llama has 'silu'")
        # transformers 5 writes one `rope_parameters`; before, `rope_theta` stood beside an optional `rope_scaling`.
        rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise InputError(f"{where}: rope_parameters or rope_scaling must be an object, found {rope!r}")
        rope = {"rope_theta": raw.get("rope_theta", 10000.0), "rope_type": rope.get("type", "default"), **rope}
        if rope["rope_type"] not in ("default", "llama3"):
            raise InputError(f"{where}: rope_type {rope['rope_type']!r} is not supported, only 'default' and 'llama3'")
        needed = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        needed = ("rope_theta", *(needed if rope["rope_type"] == "llama3" else ()))
        if not all(isinstance(rope.get(name), (int, float)) for name in needed):
            raise InputError(f"{where}: {rope['rope_type']} rope needs the numbers {', '.join(needed)}")
        known = {"rms_norm_eps": 1e-6, "num_key_value_heads": raw.get("num_attention_heads"), "rope": rope}
        known |= {f.name: raw[f.name] for f in fields(cls) if raw.get(f.name) is not None}
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                 "num_key_value_heads")
        for name in sizes:
            if not isinstance(known.get(name), int) or known[name] < 1:
                raise InputError(f"{where}: {name} must be a whole number above 0, found {known.get(name)!r}")
        known.setdefault("head_dim", known["hidden_size"] // known["num_attention_heads"])
        if known["num_attention_heads"] % known["num_key_value_heads"]:
            raise InputError(f"{where}: num_attention_heads must be a multiple of num_key_value_heads")
        return cls(**known)


class KVCache:
    """Keys and values of the tokens read so far; an argument of the forward pass, owned by the caller.

    `lengths` (B,) counts the tokens of each row. Rows may differ: a row's next token goes to its own slot
    `lengths[row]`, and slots at or beyond it are never attended to, whatever they hold.
    """

    def __init__(self, config: Config, rows: int, slots: int, dtype: torch.dtype, device: torch.device):
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)  # (B, K, slots, D), as attention reads it
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # (B,)

    def select(self, rows: Tensor) -> None:
        """Keep `rows` (a long tensor): one row repeated shares its prompt among samples, one left out is dropped."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):  # one after the other, so that no second cache is needed
                tensors[layer] = tensor.index_select(0, rows)
        self.lengths = self.lengths.index_select(0, rows)

    def append(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """Store k, v (B, T, K, D) at `positions` (B, T); return the first `seen` slots, (B, K, S, D) each."""
        rows = torch.arange(len(k), device=k.device)[:, None]  # (B, 1)
        self.keys[layer][rows, :, positions] = k
        self.values[layer][rows, :, positions] = v
        return self.keys[layer][:, :, :seen], self.values[layer][:, :, :seen]


@dataclass
class Place:
    """Where the T new tokens of a cached call stand: the same for every layer, so worked out once."""

    cache: KVCache
    positions: Tensor  # (B, T)
    seen: int  # S, slots that any row can see
    mask: Tensor  # (B, 1, H/K · T, S), True where a query may look

    @classmethod
    def after(cls, cache: KVCache, new: int, config: Config) -> "Place":
        positions = cache.lengths[:, None] + torch.arange(new, device=cache.lengths.device)  # (B, T)
        seen = int(positions.max()) + 1
        slots = torch.arange(seen, device=positions.device)  # (S,)
        mask = (slots <= positions[:, :, None])[:, None]  # (B, 1, T, S)
        group = config.num_attention_heads // config.num_key_value_heads
        return cls(cache, positions, seen, mask.repeat(1, 1, group, 1))


def rope_frequencies(config: Config, device: torch.device) -> Tensor:
    """Angle per position of each pair of features, (D/2,), fp32. Llama 3.1's scaling slows the slow ones further."""
    exponent = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim  # (D/2,)
    frequencies = 1.0 / config.rope["rope_theta"] ** exponent
    if config.rope["rope_type"] == "llama3":
        low, high = config.rope["low_freq_factor"], config.rope["high_freq_factor"]
        turns = config.rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # over the old context
        keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: fast, left alone; 0: slow, divided by the factor
        frequencies = frequencies * (keep + (1 - keep) / config.rope["factor"])
    return frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on x (B, T, heads, D) with cos, sin (B, T, 1, D/2).

    Hugging Face's layout pairs feature i with i + D/2. Meta's original files pair 2i with 2i + 1: their query and key
    matrices are permuted on the way to a Hugging Face folder, which is why nothing is permuted here.
    """
    first, second = x.chunk(2, dim=-1)  # (B, T, heads, D/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


# Of a call's insides nothing is kept for the backward pass, which makes them again. Nothing here draws random numbers.
recomputed = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # In fp32 inside, whatever x is; the weight outside, where Hugging Face has it: in bf16 the order shows.
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=self.eps)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        queries, pairs = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, pairs, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, pairs, bias=config.attention_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], place: Place | None, layer: int) -> Tensor:
        q = rotate(self.q_proj(x).unflatten(-1, (-1, self.head_dim)), *rope)  # (B, T, H, D)
        k = rotate(self.k_proj(x).unflatten(-1, (-1, self.head_dim)), *rope)  # (B, T, K, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, K, D)
        q = q.transpose(1, 2)  # (B, H, T, D)
        if place is None:
            y = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True)
        else:
            k, v = place.cache.append(layer, k, v, place.positions, place.seen)  # (B, K, S, D)
            # PyTorch's fast kernels take a mask or grouped queries, not both: the H/K queries of a group become rows.
            grouped = q.reshape(len(q), k.shape[1], -1, self.head_dim)  # (B, K, H/K · T, D)
            y = F.scaled_dot_product_attention(grouped, k, v, attn_mask=place.mask).reshape_as(q)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # (B, T, F) inside, (B, T, C) out


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], place: Place | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, place, layer)  # (B, T, C)
        return x + self.mlp(self.post_attention_layernorm(x))  # (B, T, C)


class Body(nn.Module):
    """All of Llama but the vocabulary projection; its final hidden states feed log-probs, sampling and reward heads."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.recompute = False  # of a block keep the input alone, and go through it again in the backward pass
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) → final hidden states (B, T, C). With a cache, the tokens follow and join those it holds."""
        x = self.embed_tokens(tokens)  # (B, T, C)
        place = Place.after(cache, tokens.shape[1], self.config) if cache is not None else None
        positions = place.positions if place else torch.arange(tokens.shape[1], device=tokens.device)[None]  # (B|1, T)
        angles = positions[..., None, None] * rope_frequencies(self.config, tokens.device)  # (B|1, T, 1, D/2), fp32
        rope = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer, block in enumerate(self.layers):
            again = self.recompute and torch.is_grad_enabled()
            x = recomputed(block, x, rope, place, layer) if again else block(x, rope, place, layer)
        if cache is not None:
            cache.lengths = cache.lengths + tokens.shape[1]
        return self.norm(x)


class Checkpoint(nn.Module):
    """A model that lives in a Hugging Face folder: `config.json` beside `model.safetensors`, or beside its shards."""

    def __init__(self, config: Config, raw_config: dict):
        super().__init__()
        self.raw_config = raw_config  # config.json as it was read, so that saving loses no field
        self.config = config
        self.model = Body(config)

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @classmethod
    def on_meta(cls, folder: str | Path) -> Self:
        """The model that a folder's `config.json` describes, without its weights. Raises InputError if it is none."""
        path = Path(folder) / "config.json"
        if not path.exists():
            raise InputError(f"{path}: no such file; a Hugging Face checkpoint folder has one")
        raw = read_json(path)
        config = Config.from_dict(raw, str(path))
        with torch.device("meta"):
            return cls(config, raw)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32,
                        device: str | torch.device = "cpu") -> Self:
        """Load `config.json` and `model.safetensors` (or the shards of `model.safetensors.index.json`), strictly.

        Built on the meta device, so every tensor must come from the files, each with its exact shape, and none may be
        left over. Raises InputError naming the file and what is wrong with it.
        """
        folder, model = Path(folder), cls.on_meta(folder)
        state = {name: tensor.to(dtype) for name, tensor in read_tensors(folder, model, device)}
        model.load_state_dict(state, assign=True)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and the weights, a folder that `from_pretrained`, `transformers` and vLLM load.

        Up to SHARD bytes are one `model.safetensors`, more are several and an index. Of a sharded model every rank must
        call this: tensors are put together one after the other, and the first rank writes them.
        """
        folder, state, first = Path(folder), self.state_dict(), rank_and_size()[0] == 0
        files: list[list[str]] = [[]]
        size = lambda names: sum(state[name].numel() * state[name].element_size() for name in names)
        for name in state:
            if files[-1] and size([*files[-1], name]) > SHARD:
                files.append([])
            files[-1].append(name)
        title = "model-{:05d}-of-{:05d}.safetensors" if len(files) > 1 else "model.safetensors"
        weight_map = {name: title.format(i, len(files)) for i, names in enumerate(files, 1) for name in names}
        if first:
            folder.mkdir(parents=True, exist_ok=True)
        for names in files:
            part = {}
            for name in names:
                whole = state[name].full_tensor() if isinstance(state[name], DTensor) else state[name]
                part |= {name: whole.detach().cpu().contiguous()} if first else {}
            try:
                if first:
                    save_file(part, folder / weight_map[names[0]], metadata={"format": "pt"})
            except SafetensorError as error:
                raise InputError(f"{folder / weight_map[names[0]]}: cannot be written ({error})") from error
        if first:
            raw = {**self.raw_config, "dtype": str(next(self.parameters()).dtype).removeprefix("torch.")}
            raw.pop("torch_dtype", None)  # the older spelling of "dtype", which would contradict it
            (folder / "config.json").write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
        if first and len(files) > 1:
            index = {"metadata": {"total_size": size(state)}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


class Llama(Checkpoint):
    """A causal language model: `model(tokens)` with tokens (B, T) gives logits (B, T, V).

    Rows shorter than T are padded on the right: attention is causal, so padding never reaches a real token.
    """

    def __init__(self, config: Config, raw_config: dict):
        super().__init__(config, raw_config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def head(self, hidden: Tensor) -> Tensor:
        """Final hidden states (..., C) → logits (..., V)."""
        tied = self.config.tie_word_embeddings
        return F.linear(hidden, self.model.embed_tokens.weight if tied else self.lm_head.weight)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.head(self.model(tokens, cache))  # (B, T, V)

    def response_logps(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """log p of each row's marked tokens given all before them, summed, in nats: (B,) fp32.

        tokens (B, T); targets (B, T) bool marks the response. Other positions are not projected to the vocabulary, and
        the logits of no more than CHUNK exist at once, in the backward pass too, where they are computed again.
        """
        row, position = targets.nonzero(as_tuple=True)  # (N,) each; first, as it waits for the device
        hidden = self.model(tokens)  # (B, T, C)
        states, wanted = hidden[row, position - 1], tokens[row, position]  # (N, C), (N,): predicted one before
        sums = torch.zeros(len(tokens), device=tokens.device)  # (B,)
        return sums.index_add(0, row, self.token_logps(states, wanted))

    def token_logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log p of each target (N,) after its final hidden state (N, C), in nats: (N,) fp32."""
        of_chunk = lambda hidden, targets: token_logps(self.head(hidden), targets)
        parts = zip(hidden.split(CHUNK), targets.split(CHUNK))
        return torch.cat([recomputed(of_chunk, *part) for part in parts])

    @classmethod
    def empty_sharded(cls, folder: str | Path, device: torch.device, dtype: torch.dtype) -> Self:
        """A model for training on all ranks, without content: each holds its part of every tensor, in fp32 (FSDP2).

        A block is put together when it is computed, in `dtype`; gradients are reduced in fp32.
        """
        model = cls.on_meta(folder)
        mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for block in model.model.layers:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        # By default the root stays whole after a forward pass, and an optimiser made then would hold the wrong tensors.
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        register_fsdp_forward_method(model, "response_logps")
        return model.to_empty(device=device).train()

    @classmethod
    def sharded(cls, folder: str | Path, device: torch.device, dtype: torch.dtype) -> Self:
        """A checkpoint for training on all ranks; read tensor by tensor, so that no rank ever holds more than its part
        and one tensor."""
        model = cls.empty_sharded(folder, device, dtype)
        state = model.state_dict()
        for name, whole in read_tensors(Path(folder), model, device):
            mine = state[name]
            mine.copy_(distribute_tensor(whole.float(), mine.device_mesh, mine.placements, src_data_rank=None))
        return model


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each target: logits (N, V) of any precision and targets (N,) → (N,) in fp32."""
    logits = logits.float()  # a sum of bf16 log-probs near -300 would move in steps of 2
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes, one per GPU. Without a launcher there is one, and none of this communicates.


def rank_and_size() -> tuple[int, int]:
    """Which process this is, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gathered(mine: dict) -> dict:
    """The union of what each rank has, on every rank."""
    if rank_and_size()[1] == 1:
        return mine
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return {key: value for part in parts for key, value in part.items()}


def summed(values: dict[str, float]) -> dict[str, float]:
    """The sums over all ranks of what each has under a name."""
    parts = gathered({rank_and_size()[0]: values}).values()
    return {name: sum(part[name] for part in parts) for name in values}


def shared(value: Any) -> Any:
    """The first rank's value, on every rank."""
    if rank_and_size()[1] == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def after_first() -> None:
    """No rank goes on before the first has come here; the first does not wait."""
    shared(None)


# ---------------------------------------------------------------------------------------------------------------------
# What training and sampling take


def saved_bytes(config: Config, rows: int, length: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that a block keeps for the backward pass, and those of its input. Measured, on tensors without content."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage, storage.nbytes()  # held, so that no address is used twice
        return tensor

    with FakeTensorMode():
        block = Block(config)
        weights = {name: p.detach().to(dtype).requires_grad_() for name, p in block.named_parameters()}
        x = torch.empty(rows, length, config.hidden_size, dtype=dtype, requires_grad=True)  # (B, T, C)
        angle = torch.empty(1, length, 1, config.head_dim // 2, dtype=dtype)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            torch.func.functional_call(block, weights, (x, (angle, angle), None, 0))
    own = {p.untyped_storage()._cdata for p in weights.values()}
    return sum(size for place, (_, size) in kept.items() if place not in own), x.numel() * x.element_size()


def memory(model: Llama, dtype: torch.dtype, ranks: int, *, prompt: int, response: int, batch_size: int,
           micro_batch: int, rows: int, recompute: bool) -> dict[str, float]:
    """Bytes on each rank, by kind, of training on batches of pairs and of sampling `rows` responses at once.

    prompt, response: the longest, in tokens. dtype: of matrix products and of sampling.
    """
    config, width, layers = model.config, dtype.itemsize, model.config.num_hidden_layers
    total = sum(p.numel() for p in model.parameters())
    block = sum(p.numel() for p in model.model.layers[0].parameters())
    blocks, root, head = layers * block, total - layers * block, config.vocab_size * config.hidden_size
    share = math.ceil(batch_size / ranks)  # pairs of a step on one rank
    pairs, again = min(micro_batch, share), share > micro_batch  # again: there is a second micro-batch
    inside, outside = saved_bytes(config, 2 * pairs, prompt + response, dtype)
    activations = inside + layers * outside if recompute else layers * inside
    logits = min(2 * pairs * response, CHUNK) * config.vocab_size * (width + 3 * 4)
    weights, whole = 4 * total / ranks, width * (root + min(2, layers) * block)
    # Gradients once those of `done` weights are exchanged; of several micro-batches they are whole until then.
    gradients = lambda done: 4 * (total - done) * again + 4 * done / ranks
    on_its_way = width * head + (width + 4) * block  # a block's gradient, before the vocabulary's, which comes last
    highest = max(gradients(0) + whole + activations + logits,
                  gradients(0) + whole + activations + on_its_way,  # of the last block
                  gradients(blocks - block) + whole + inside + on_its_way,  # of the first
                  gradients(blocks) + (width + 4 + 4 / ranks) * root)  # of all that is no block
    cache = width * rows * (prompt + response) * layers * 2 * config.num_key_value_heads * config.head_dim
    cache *= 1 + 1 / (2 * layers)  # dropping rows copies it tensor by tensor
    # Of `rows` prompts at once, as greedy answers have them, or of a step's logits and what is made of them.
    passing = rows * max(width * prompt * 3 * (config.hidden_size + config.intermediate_size),
                         config.vocab_size * (width + 4 * 4))
    return {"weights, fp32": weights, "optimiser, 2 x fp32": 2 * weights,
            "gradients, fp32": max(gradients(0), gradients(total)), "put together": whole, "activations": activations,
            "logits of a chunk": logits, "training, at most": 3 * weights + highest,
            "sampling: weights": width * total, "sampling: cache": cache, "sampling: in passing": passing,
            "sampling, at most": width * total + cache + passing}


def training_flops(model: Llama, sequences: Sequence[tuple[list[int], list[int]]]) -> float:
    """Floating point operations of (prompt, response) sequences, forward and backward, without those done twice.

    6 per weight and token, as is customary, the vocabulary projection on response tokens alone; attention takes two
    products of 2 T²/2 · H · D per layer, three times.
    """
    config = model.config
    lengths = [len(prompt) + len(response) for prompt, response in sequences]
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    projected = 6 * config.vocab_size * config.hidden_size * sum(len(response) for _, response in sequences)
    return 6 * blocks * sum(lengths) + projected + attention * sum(length**2 for length in lengths)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def read_tensors(folder: Path, model: nn.Module, device: str | torch.device) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint folder, one after the other, exactly those that the model has.

    Raises InputError naming the file for one that is broken, missing, left over, or of another shape.
    """
    expected = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt", device=str(device)) as tensors:
                for name in tensors.keys():
                    if name.endswith("rotary_emb.inv_freq"):  # a table some Llama 2 folders carry; computed here
                        continue
                    shape = tuple(tensors.get_slice(name).get_shape())
                    if shape != expected.get(name, shape):
                        raise InputError(f"{path}: tensor {name} is {shape}, config.json asks {expected[name]}")
                    if expected.pop(name, None) is None:
                        raise InputError(f"{path}: tensor {name} does not belong to this config.json")
                    yield name, tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: not a readable safetensors file ({error}); copy it again") from error
    if expected:
        raise InputError(f"{folder}: {len(expected)} tensors are missing from the weights, the first is "
                         f"{min(expected)}")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder: the single one, or the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        if not (folder / "model.safetensors").exists():
            raise InputError(f"{folder}: has neither model.safetensors nor model.safetensors.index.json")
        return [folder / "model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: its weight_map names no file")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if not (folder / shard).exists():
            raise InputError(f"{folder / shard}: no such file, but {index.name} names it; copy the missing shard")
    return [folder / shard for shard in shards]
