"""How the texts of a training batch lie in tensors: padded rows, or packed without padding.

In the comments on shapes, B are the rows, T the longest one, M the tokens that are computed.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def collate(sequences: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """(prompt, response) tokens → tokens, prompt_mask and response_mask, (B, T) each.

    Rows are padded on the right. The masks come from the lengths, so the value of the padding does
    not matter, not even if it is EOS. A response's EOS is in response_mask.
    """
    tokens, prompt_masks, response_masks = [], [], []
    for prompt, response in sequences:
        tokens.append(torch.tensor(prompt + response))
        prompt_masks.append(torch.tensor([True] * len(prompt) + [False] * len(response)))
        response_masks.append(~prompt_masks[-1])
    padded = partial(pad_sequence, batch_first=True)
    return padded(tokens), padded(prompt_masks), padded(response_masks)


class PackedTokens:
    """The tokens of a training batch without padding, and a prompt that two rows share only once.

    All layers work on these M tokens. Only attention lays them out in rows, and packs what comes of
    it again. This stands where a model.KVCache does, and keeps no keys.
    """

    def __init__(self, prompt_mask: Tensor, response_mask: Tensor, n_prompts: int):
        """The masks (B, T) of `collate`.

        Row i + n_prompts has the same prompt as row i. (In a KVCache such rows are neighbours.)
        """
        row = torch.arange(len(prompt_mask), device=prompt_mask.device)  # (B,)
        packed = response_mask | prompt_mask & (row < n_prompts)[:, None]  # (B, T)
        self.place_of = packed.flatten().nonzero()[:, 0]  # (M,): where each is in B · T
        number = packed.flatten().cumsum(0).view_as(packed) - 1  # (B, T): which of the M it is
        # Padding gets some token's, which does no harm: no gradient comes back from there.
        self.token_at = torch.where(prompt_mask, number[row % n_prompts], number)  # (B, T)

    def begin_pass(self, n_tokens: int) -> Tensor:
        """The positions (1, M) of the packed tokens."""
        return self.place_of[None] % self.token_at.shape[1]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (1, n_heads, M, head_dim), k and v with n_kv_heads → as q."""
        q, k, v = self.by_row(q), self.by_row(k), self.by_row(v)  # (B, heads, T, head_dim) each
        # Attention is causal, so the padding on the right reaches no token.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.transpose(1, 2).flatten(0, 1).index_select(0, self.place_of).transpose(0, 1)[None]

    def by_row(self, x: Tensor) -> Tensor:
        """(1, heads, M, head_dim) → (B, heads, T, head_dim)."""
        rows = x[0].transpose(0, 1).index_select(0, self.token_at.flatten())  # (B · T, heads, …)
        return rows.unflatten(0, self.token_at.shape).transpose(1, 2)
