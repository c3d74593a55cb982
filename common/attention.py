"""Attention that also returns the log-sum-exp of its scores, so that two parts can be joined."""

import math

import torch
from torch import Tensor


def attention_lse(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention (…, Q, head_dim) as precise as v, and its scores' log-sum-exp (…, Q) in fp32.

    q (…, Q, head_dim), k and v (…, S, head_dim), bias (…, 1, S) is added to the scores.
    """
    if q.device.type == "cpu":  # its kernel is much faster than the formula
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(q, k, v, attn_mask=bias)
    return attention_lse_formula(q, k, v, bias)


def attention_lse_formula(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    # In bf16 a score of 30 would be off by 0.1.
    scores = q.float() @ k.float().mT / math.sqrt(q.shape[-1])  # (…, Q, S)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)  # (…, Q)
    return torch.exp(scores - lse[..., None]).to(v.dtype) @ v, lse
