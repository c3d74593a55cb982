"""Llama 2 to 3.2, Mistral, Qwen2 and Qwen3: forward pass, key/value cache, Hugging Face folders.

Parameters have the names and the layout of a Hugging Face checkpoint, so nothing is
converted when one is loaded. See Llama 2 (arXiv 2307.09288), Llama 3 (2407.21783),
RoPE (2104.09864), grouped queries (2305.13245), SwiGLU (2002.05202), RMSNorm
(1910.07467).

In the comments on shapes
    B  rows of the batch     T  tokens of this call     N  response tokens of all rows
    P  prompts of a cache    R  rows that continue them: k for each prompt, less those dropped
    n_heads, n_kv_heads  num_attention_heads, num_key_value_heads; heads  either of them
    group  query heads of a key/value head    places  the most rows of one prompt
    M  tokens of a training batch, packed
and what else is not spelled out is a field of Config.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.attention import attention_lse
from common.checkpoint import llama_fields
from common.packing import PackedTokens
from common.pretrained import PreTrained

# On an H100 PyTorch prefers cuDNN's attention, which makes a plan for every new length.
torch.backends.cuda.enable_cudnn_sdp(False)

# Response tokens whose logits exist at once: 0.5 GB in fp32 with a vocabulary of 128,256.
LOGITS_CHUNK = 1024

# Activation checkpointing: no activations of the call are kept; the backward pass makes them again.
recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass(frozen=True)
class Config:
    """What the forward pass needs of `config.json`, under Hugging Face's names.

    rope, attention_output_bias and qk_norm are derived from it.
    """

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
    attention_bias: bool  # of q, k and v
    attention_output_bias: bool  # of o, where Qwen2 has none
    mlp_bias: bool
    qk_norm: bool  # Qwen3: queries and keys are normalized, each head by itself

    @classmethod
    def from_dict(cls, hf_config: dict, source: str = "config.json") -> Config:
        """Raises InputError, naming `source`, for a model that this file cannot run."""
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

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """tokens (B, T) → hidden states (B, T, hidden_size).

        With a KVCache, the first call reads the prompts, (P, T), and each later one
        the next token of every row, (R, 1). In training PackedTokens stand in its
        place, and tokens are (1, M).
        """
        x = self.embed_tokens(tokens)  # (B, T, hidden_size)
        if cache is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]  # (1, T)
        else:
            positions = cache.begin_pass(tokens.shape[1])  # as the tokens, or (1, T) for all rows
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

    def forward(self, x: Tensor, rope: Rope, cache: Cache | None, layer: int) -> Tensor:
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
        self.o_proj = nn.Linear(q_size, hidden, bias=config.attention_output_bias)
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, cache: Cache | None, layer: int) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_heads, head_dim)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_kv_heads, head_dim)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, n_kv_heads, head_dim)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_emb(q, *rope), apply_rotary_emb(k, *rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, head_dim)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = cache.attend(layer, q, k, v)
        return self.o_proj(y.transpose(1, 2).flatten(2))  # (B, T, hidden_size)


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
        # Llama 3.1 stretched the context. What turned often over the old one stays as
        # it is; what turned less than low_freq_factor times is slowed down by the
        # factor.
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

    k rows continue each prompt. They share one copy of its keys and values, which
    saves k - 1 copies in memory and is read once a step for all of them. What a row
    has generated is its own. All rows are at the same step.
    """

    def __init__(self, prompt_lengths: Tensor, k: int, max_new_tokens: int):
        """prompt_lengths (P,): prompts are padded on the right, and padding is never looked at."""
        self.prompt_lengths, self.max_new_tokens = prompt_lengths, max_new_tokens
        self.n_generated = 0  # tokens of each row
        self.prompts: list[tuple[Tensor, Tensor]] = []  # keys, values (P, n_kv_heads, T, head_dim)
        self.rows: list[tuple[Tensor, Tensor]] = []  # (R, n_kv_heads, max_new_tokens, head_dim)
        device = prompt_lengths.device
        padding = torch.arange(int(prompt_lengths.max()), device=device) >= prompt_lengths[:, None]
        self.bias = padding.float().masked_fill(padding, -math.inf)[:, None, None]  # (P, 1, 1, T)
        self.place(torch.arange(len(prompt_lengths), device=device).repeat_interleave(k))

    def place(self, prompt_of_row: Tensor) -> None:
        """Give each row its place in a table (P, places), one line per prompt.

        prompt_of_row (R,) ascends.
        """
        counts = prompt_of_row.bincount()  # (P,), none of them 0
        first = counts.cumsum(0) - counts  # (P,): each prompt's first row
        number = torch.arange(len(prompt_of_row), device=counts.device) - first[prompt_of_row]
        self.prompt_of_row = prompt_of_row
        self.table_shape = (len(counts), int(counts.max()))
        self.place_of_row = prompt_of_row * self.table_shape[1] + number  # (R,)

    def begin_pass(self, n_tokens: int) -> Tensor:
        """Count a forward pass; return the positions of its tokens.

        (1, T), of all prompts, then (R, 1).
        """
        self.reads_prompts = not self.prompts
        if self.reads_prompts:
            return torch.arange(n_tokens, device=self.prompt_lengths.device)[None]
        positions = self.prompt_lengths[self.prompt_of_row] + self.n_generated  # (R,)
        self.n_generated += 1
        return positions[:, None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep k and v, and attend to all that q may see. Shaped as q.

        q is (P, n_heads, T, head_dim), then (R, n_heads, 1, head_dim); k, v with n_kv_heads.
        """
        if self.reads_prompts:
            self.prompts.append((k.contiguous(), v.contiguous()))
            shape = (len(self.prompt_of_row), k.shape[1], self.max_new_tokens, k.shape[3])
            self.rows.append((k.new_empty(shape), k.new_empty(shape)))
            # Attention is causal, so the padding on the right reaches no token.
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        keys, values = self.rows[layer]
        keys[:, :, self.n_generated - 1] = k[:, :, 0]
        values[:, :, self.n_generated - 1] = v[:, :, 0]
        keys, values = keys[:, :, : self.n_generated], values[:, :, : self.n_generated]
        grouped = q.reshape(*k.shape[:2], -1, q.shape[-1])  # (R, n_kv_heads, group, head_dim)
        # No query is masked from another here. So heads of a group, which read the
        # same keys, may stand where a sequence of queries would, and in by_prompt the
        # rows of a prompt too.
        own, own_lse = attention_lse(grouped, keys, values)
        shared, shared_lse = attention_lse(self.by_prompt(grouped), *self.prompts[layer], self.bias)
        shared, shared_lse = self.by_row(shared), self.by_row(shared_lse)
        # One softmax over both parts: each part has the share that its exponentials have.
        share = torch.sigmoid(shared_lse - own_lse)[..., None]  # (R, n_kv_heads, group, 1)
        return torch.lerp(own.float(), shared.float(), share).to(q.dtype).reshape_as(q)

    def by_prompt(self, x: Tensor) -> Tensor:
        """(R, n_kv_heads, group, …) → (P, n_kv_heads, places · group, …); empty places hold 0."""
        n_prompts, places = self.table_shape
        table = x.new_zeros(n_prompts * places, *x.shape[1:])
        table[self.place_of_row] = x
        return table.unflatten(0, self.table_shape).transpose(1, 2).flatten(2, 3)

    def by_row(self, x: Tensor) -> Tensor:
        """The way back: (P, n_kv_heads, places · group, …) → (R, n_kv_heads, group, …)."""
        table = x.unflatten(2, (self.table_shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return table[self.place_of_row]

    def select(self, rows: Tensor) -> None:
        """Drop all other rows, and prompts that none continues. rows ascends."""
        kept, prompt_of_row = self.prompt_of_row[rows].unique(return_inverse=True)
        for layer, (keys, values) in enumerate(self.rows):  # in turn: no second cache is needed
            self.rows[layer] = (keys[rows], values[rows])
            keys, values = self.prompts[layer]
            self.prompts[layer] = (keys[kept], values[kept])
        self.prompt_lengths, self.bias = self.prompt_lengths[kept], self.bias[kept]
        self.place(prompt_of_row)


Cache = KVCache | PackedTokens  # what knows the positions of tokens, and what each may look at

# --------------------------------------------------------------------------------------------
# The language model


class Llama(PreTrained):
    """A language model: `model(tokens)` with tokens (B, T) gives logits (B, T, vocab_size).

    Shorter rows are padded on the right: attention is causal, so padding reaches no token.
    """

    config_class = Config

    def __init__(self, config: Config, hf_config: dict):
        super().__init__(config, hf_config)
        self.model = Transformer(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.compute_logits(self.model(tokens, cache))  # (B, T, vocab_size)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """hidden states (..., hidden_size) → logits (..., vocab_size)."""
        if self.config.tie_word_embeddings:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)

    def response_logps(
        self, tokens: Tensor, prompt_mask: Tensor, response_mask: Tensor, n_prompts: int
    ) -> Tensor:
        """log p(response | prompt) of each row, in nats, summed over its tokens: (B,) fp32.

        tokens and masks (B, T) are those of `collate`. Row i + n_prompts has the
        same prompt as row i, which is computed once for both. (In a KVCache such
        rows are neighbours.) Only response tokens are projected to the vocabulary,
        and the logits of LOGITS_CHUNK of them at most exist at once, in the
        backward pass too.
        """
        packed = PackedTokens(prompt_mask, response_mask, n_prompts)
        hidden = self.model(tokens.flatten()[packed.place_of][None], packed)[0]  # (M, hidden_size)
        row, position = response_mask.nonzero(as_tuple=True)  # (N,) each
        before = hidden[packed.token_at[row, position - 1]]  # (N, hidden_size), which predict these
        logps = self.chunked_logps(before, tokens[row, position])  # (N,)
        sums = torch.zeros(len(tokens), device=tokens.device)  # (B,)
        return sums.index_add(0, row, logps)

    def chunked_logps(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log p of each target (N,) after its hidden state (N, hidden_size): (N,) fp32."""

        def chunk_logps(hidden: Tensor, targets: Tensor) -> Tensor:
            return token_logps(self.compute_logits(hidden), targets)

        if len(hidden) <= LOGITS_CHUNK:  # one chunk: to compute it again would save no memory
            return chunk_logps(hidden, targets)
        chunks = zip(hidden.split(LOGITS_CHUNK), targets.split(LOGITS_CHUNK))
        return torch.cat([recompute(chunk_logps, *chunk) for chunk in chunks])


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each target, in nats: logits (N, vocab_size), targets (N,) → (N,) fp32."""
    # In fp32: a sum of bf16 log-probs near -300 would move in steps of 2.
    # Cross-entropy is -log p, and its gradient is one pass over the logits; that of
    # a logsumexp and a gather is several.
    return -F.cross_entropy(logits.float(), targets, reduction="none")
