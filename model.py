"""Llama 2, 3, 3.1 and 3.2: the forward pass, its key/value cache, Hugging Face checkpoints.

Parameters have the names and the layout of a Hugging Face checkpoint, so nothing is
converted when one is loaded. See Llama 2 (arXiv 2307.09288), Llama 3 (2407.21783),
RoPE (2104.09864), grouped queries (2305.13245), SwiGLU (2002.05202), RMSNorm
(1910.07467).

In the comments on shapes
    B  rows of the batch     T  tokens of this call     S  cached tokens and those of this call
    N  response tokens of all rows
    n_heads, n_kv_heads  num_attention_heads, num_key_value_heads
and all else is a field of Config.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from common.checkpoint import llama_fields, read_tensors, write_tensors
from common.cli import InputError
from common.distributed import rank
from common.files import read_json, write_json

# On an H100 PyTorch prefers cuDNN's attention, which makes a plan for every new length.
torch.backends.cuda.enable_cudnn_sdp(False)

LOGITS_CHUNK = 1024  # response tokens whose logits exist at once: 0.5 GB for 128,256 words in fp32

# Activation checkpointing: no activations of the call are kept; the backward pass makes them again.
recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


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
    rope: dict  # rope_theta; rope_type "default", or "llama3" with the four numbers of its scaling
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_dict(cls, hf_config: dict, source: str = "config.json") -> Config:
        """Raises InputError, naming `source`, if a parsed `config.json` is not a Llama's."""
        return cls(**llama_fields(hf_config, source))


# --------------------------------------------------------------------------------------------
# The forward pass


class Transformer(nn.Module):
    """A Llama without its vocabulary projection: from tokens to final hidden states."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """tokens (B, T) → hidden states (B, T, hidden_size).

        With a cache, the tokens follow those that it holds, and are added to them.
        """
        x = self.embed_tokens(tokens)  # (B, T, hidden_size)
        if cache is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, T)
        else:
            positions = cache.extend(tokens.shape[1])  # (B, T)
        rope = rope_table(positions, self.config, x.dtype)
        for layer, block in enumerate(self.layers):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = recompute(block, x, rope, cache, layer)
            else:
                x = block(x, rope, cache, layer)
        return self.norm(x)


Rope = tuple[Tensor, Tensor]  # cosines and sines of this call's positions


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))  # (B, T, hidden_size)


class Attention(nn.Module):
    """Grouped queries: each key/value head serves n_heads / n_kv_heads query heads."""

    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        hidden, bias = config.hidden_size, config.attention_bias
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(hidden, q_size, bias=bias)
        self.k_proj = nn.Linear(hidden, kv_size, bias=bias)
        self.v_proj = nn.Linear(hidden, kv_size, bias=bias)
        self.o_proj = nn.Linear(q_size, hidden, bias=bias)

    def forward(self, x: Tensor, rope: Rope, cache: KVCache | None, layer: int) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_heads, head_dim)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_kv_heads, head_dim)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_kv_heads, head_dim)
        q, k = apply_rotary_emb(q, *rope), apply_rotary_emb(k, *rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, head_dim)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = cache.append(layer, k, v)  # (B, n_kv_heads, S, head_dim)
            y = grouped_attention(q, k, v, cache.mask)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, hidden_size)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q (B, n_heads, T, head_dim), k, v (B, n_kv_heads, S, head_dim), mask (B, 1, T, S) → as q.

    PyTorch's fast kernels take a mask or grouped queries, but not both. So the
    queries of a group are laid out as rows of one head.
    """
    group = q.shape[1] // k.shape[1]
    rows = q.reshape(*k.shape[:2], -1, q.shape[-1])  # (B, n_kv_heads, group · T, head_dim)
    mask = mask.repeat(1, 1, group, 1)  # (B, 1, group · T, S)
    return F.scaled_dot_product_attention(rows, k, v, attn_mask=mask).reshape_as(q)


class MLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.silu(self.gate_proj(x)) * self.up_proj(x)  # (B, T, intermediate_size)
        return self.down_proj(gated)  # (B, T, hidden_size)


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The norm is computed in fp32 and rounded to x's precision before the weight multiplies it.
        # In bf16 the order shows; this is Hugging Face's.
        return self.weight * F.rms_norm(x, x.shape[-1:], eps=self.eps)


def rope_table(positions: Tensor, config: Config, dtype: torch.dtype) -> Rope:
    """positions (B, T) → cosines and sines, (B, T, 1, head_dim / 2) each."""
    angles = positions[..., None, None] * rope_frequencies(config, positions.device)  # fp32
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rope_frequencies(config: Config, device: torch.device) -> Tensor:
    """The angle per position of each pair of features, (head_dim / 2,), in fp32."""
    even = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    frequencies = 1.0 / config.rope["rope_theta"] ** (even / config.head_dim)
    if config.rope["rope_type"] == "llama3":
        # Llama 3.1 stretched the context. What turned often over the old one stays as it is; what
        # turned less than low_freq_factor times is slowed down by the factor.
        low, high = config.rope["low_freq_factor"], config.rope["high_freq_factor"]
        turns = config.rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (keep + (1 - keep) / config.rope["factor"])
    return frequencies


def apply_rotary_emb(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (B, T, heads, head_dim) by cos, sin (B, T, 1, head_dim / 2).

    Hugging Face pairs feature i with i + head_dim / 2, Meta's own files pair 2i
    with 2i + 1. The q and k matrices were permuted on the way to Hugging Face, so
    nothing is permuted here.
    """
    first, second = x.chunk(2, dim=-1)  # (B, T, heads, head_dim / 2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class KVCache:
    """Keys and values of the tokens read so far: an argument of the forward pass.

    Rows may hold different numbers of tokens, `lengths` (B,). A row's next token
    goes to its slot `lengths[row]`; the slots from there on are never looked at,
    whatever they hold.
    """

    def __init__(
        self, config: Config, rows: int, slots: int, dtype: torch.dtype, device: torch.device
    ):
        shape = (rows, config.num_key_value_heads, slots, config.head_dim)  # as attention reads it
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in layers]
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # (B,)

    def extend(self, n_tokens: int) -> Tensor:
        """Make room for the next tokens of each row; their positions, (B, n_tokens)."""
        new = torch.arange(n_tokens, device=self.lengths.device)  # (T,)
        self.positions = self.lengths[:, None] + new  # (B, T)
        self.n_visible = int(self.positions.max()) + 1  # S
        slots = torch.arange(self.n_visible, device=new.device)  # (S,)
        self.mask = (slots <= self.positions[:, :, None])[:, None]  # (B, 1, T, S), True: look
        self.lengths = self.lengths + n_tokens
        return self.positions

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, n_kv_heads, T, head_dim); returns all that is visible, S in place of T."""
        rows = torch.arange(len(k), device=k.device)[:, None]  # (B, 1)
        self.keys[layer][rows, :, self.positions] = k.transpose(1, 2)
        self.values[layer][rows, :, self.positions] = v.transpose(1, 2)
        return self.keys[layer][:, :, : self.n_visible], self.values[layer][:, :, : self.n_visible]

    def select(self, rows: Tensor) -> None:
        """Keep these rows. One that is repeated shares its prompt, one left out is dropped."""
        for tensors in (self.keys, self.values):
            for layer, tensor in enumerate(tensors):  # in turn, so that no second cache is needed
                tensors[layer] = tensor.index_select(0, rows)
        self.lengths = self.lengths.index_select(0, rows)


# --------------------------------------------------------------------------------------------
# Models in Hugging Face folders


class PreTrained(nn.Module):
    """A model that lives in a folder: `config.json` and `model.safetensors`, or its shards."""

    folder: str | Path = "the model"  # that it was read from

    def __init__(self, config: Config, hf_config: dict):
        super().__init__()
        self.config = config
        self.hf_config = hf_config  # config.json as it was read: saving loses no field
        self.model = Transformer(config)

    @property
    def device(self) -> torch.device:
        return self.model.norm.weight.device

    @property
    def context_length(self) -> int:
        """The most tokens that the model was trained to read; no limit if config.json has none."""
        return self.hf_config.get("max_position_embeddings") or 2**31

    @classmethod
    def on_meta(cls, folder: str | Path) -> Self:
        """The model of a folder's `config.json`, without weights. Raises InputError."""
        path = Path(folder) / "config.json"
        if not path.exists():
            raise InputError(f"{path}: no such file; a Hugging Face checkpoint folder has one")
        hf_config = read_json(path)
        config = Config.from_dict(hf_config, str(path))
        with torch.device("meta"):
            return cls(config, hf_config)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Load a checkpoint folder: every tensor with its exact shape, none missing or left over.

        Raises InputError naming the file and what is wrong with it.
        """
        model = cls.on_meta(folder)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        state = {}
        tied = model.config.tie_word_embeddings
        for name, tensor in read_tensors(Path(folder), shapes, device, tied):
            state[name] = tensor.to(dtype)
        model.load_state_dict(state, assign=True)
        model.folder = folder
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, `transformers` and vLLM load.

        Every rank must call this if the model is sharded.
        """
        folder = Path(folder)
        write_tensors(folder, self.state_dict())
        if rank() == 0:
            dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
            hf_config = {**self.hf_config, "dtype": dtype}
            hf_config.pop("torch_dtype", None)  # the older name of "dtype"
            write_json(folder / "config.json", dict(sorted(hf_config.items())))


class Llama(PreTrained):
    """A language model: `model(tokens)` with tokens (B, T) gives logits (B, T, vocab_size).

    Shorter rows are padded on the right: attention is causal, so padding reaches no token.
    """

    def __init__(self, config: Config, hf_config: dict):
        super().__init__(config, hf_config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.compute_logits(self.model(tokens, cache))  # (B, T, vocab_size)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden states (..., hidden_size) → logits (..., vocab_size)."""
        if self.config.tie_word_embeddings:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)

    def response_logps(self, tokens: Tensor, response_mask: Tensor) -> Tensor:
        """log p(response | prompt) of each row, in nats, summed over its tokens: (B,) fp32.

        tokens, response_mask: (B, T). Only response tokens are projected to the
        vocabulary, and the logits of LOGITS_CHUNK of them at most exist at once, in
        the backward pass too.
        """
        row, position = response_mask.nonzero(as_tuple=True)  # (N,) each
        hidden = self.model(tokens)  # (B, T, hidden_size)
        before = hidden[row, position - 1]  # (N, hidden_size), which predict the response tokens
        logps = self.chunked_logps(before, tokens[row, position])  # (N,)
        sums = torch.zeros(len(tokens), device=tokens.device)  # (B,)
        return sums.index_add(0, row, logps)

    def chunked_logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log p of each target (N,) after its hidden state (N, hidden_size): (N,) fp32."""

        def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
            return token_logps(self.compute_logits(hidden), targets)

        chunks = zip(hidden.split(LOGITS_CHUNK), targets.split(LOGITS_CHUNK))
        return torch.cat([recompute(chunk_logps, *chunk) for chunk in chunks])


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each target, in nats: logits (N, vocab_size), targets (N,) → (N,) fp32."""
    logits = logits.float()  # a sum of bf16 log-probs near -300 would move in steps of 2
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def collate(sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """(prompt, response) tokens → tokens (B, T), padded on the right, and response_mask (B, T).

    The mask marks the response, its EOS included. It comes from the lengths, so the
    value of the padding does not matter, not even if it is EOS.
    """
    tokens, masks = [], []
    for prompt, response in sequences:
        tokens.append(torch.tensor(prompt + response))
        masks.append(torch.tensor([False] * len(prompt) + [True] * len(response)))
    return pad_sequence(tokens, batch_first=True), pad_sequence(masks, batch_first=True)
