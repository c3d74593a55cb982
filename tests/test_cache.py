"""The key/value cache against no cache, for prompts of different lengths and rows that end."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, random_llama, some_tokens

from common.attention import attention_lse, attention_lse_formula
from sample import prefill


def starts_of(rows: torch.Tensor, lengths: list[int]) -> list[list[int]]:
    """The first tokens of each row, as prompts."""
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_cached_equals_uncached_for_prompts_of_different_lengths(shape):
    """Two rows continue each of three padded prompts, each with tokens of its own."""
    model, prompts, lengths = random_llama(SHAPES[shape]), some_tokens(3, 20), [20, 5, 13]
    generated = some_tokens(6, 8)
    cache, logits = prefill(model, starts_of(prompts, lengths), k=2, max_new_tokens=8)
    parts = [logits[:, None]]
    for step in range(8):
        parts.append(model(generated[:, step : step + 1], cache))
    cached = torch.cat(parts, dim=1)  # (6, 9, vocab_size)
    for row in range(6):
        length = lengths[row // 2]
        tokens = torch.cat((prompts[row // 2, :length], generated[row]))
        expected = model(tokens[None])[0, length - 1 :]
        torch.testing.assert_close(cached[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_that_are_dropped_change_nothing_for_the_others():
    """Of 3 · 3 rows first one is dropped, then one prompt's rows all, then all but the last."""
    model, prompts, lengths = random_llama(SHAPES["llama3-8b"]), some_tokens(3, 12), [7, 10, 4]
    generated = some_tokens(9, 8)
    cache, _ = prefill(model, starts_of(prompts, lengths), k=3, max_new_tokens=8)
    rows = torch.arange(9)
    for step in range(8):
        if step in (2, 4, 6):
            kept = {2: [0, 1, 2, 3, 5, 6, 7, 8], 4: [0, 2, 5, 7], 6: [3]}[step]
            cache.select(torch.tensor(kept))
            rows = rows[kept]
        logits = model(generated[rows, step : step + 1], cache)[:, 0]
        for row_logits, row in zip(logits, rows.tolist(), strict=True):
            prompt = prompts[row // 3, : lengths[row // 3]]
            tokens = torch.cat((prompt, generated[row, : step + 1]))
            expected = model(tokens[None])[0, -1]
            torch.testing.assert_close(row_logits, expected, atol=1e-5, rtol=1e-5)
    assert rows.tolist() == [8]


@torch.no_grad()
def test_what_lies_beyond_a_prompt_or_is_not_generated_yet_is_never_seen():
    """NaN keys and values in every free slot, huge ones where a prompt has its padding."""
    model, rows, lengths = random_llama(SHAPES["llama3-8b"]), some_tokens(2, 12), [7, 4]
    cache, _ = prefill(model, starts_of(rows, lengths), k=1, max_new_tokens=4)
    clean, _ = prefill(model, starts_of(rows, lengths), k=1, max_new_tokens=4)
    for (keys, values), (own_keys, own_values) in zip(cache.prompts, cache.rows, strict=True):
        keys[1, :, 4:] = values[1, :, 4:] = 1e6
        own_keys[:] = own_values[:] = torch.nan
    tokens = torch.tensor([[3], [4]])
    for _ in range(2):
        assert torch.equal(model(tokens, cache), model(tokens, clean))


def test_a_prompt_is_kept_once_for_its_k_rows():
    """Memory: P prompts of T tokens and R rows of max_new_tokens, not R of both."""
    model, prompts = random_llama(SHAPES["llama3-8b"]), [[0, 5, 9], [0, 7]]
    cache, logits = prefill(model, prompts, k=5, max_new_tokens=4)
    single, single_logits = prefill(model, prompts, k=1, max_new_tokens=4)
    assert torch.equal(logits, single_logits.repeat_interleave(5, dim=0))
    for many, one in zip(cache.prompts, single.prompts, strict=True):
        for tensor, expected in zip(many, one, strict=True):
            assert tensor.shape[0] == 2 and tensor.shape[2] == 3
            assert torch.equal(tensor, expected)
    assert all(keys.shape[0] == 10 and keys.shape[2] == 4 for keys, _ in cache.rows)
    cache.select(torch.tensor([5, 9]))  # no row of the first prompt is left
    assert all(len(keys) == 1 for keys, _ in cache.prompts)


# --------------------------------------------------------------------------------------------
# Attention with its log-sum-exp


def written_out(q, k, v, bias):
    """The same in float64, from the definition."""
    q, k, v, bias = q.double(), k.double(), v.double(), bias.double()
    scores = torch.einsum("phqd,phsd->phqs", q, k) / q.shape[-1] ** 0.5 + bias
    return torch.softmax(scores, dim=-1) @ v, torch.log(torch.exp(scores).sum(-1))


@pytest.mark.parametrize("attention", [attention_lse, attention_lse_formula])
def test_attention_and_its_log_sum_exp(attention):
    """The CPU's kernel, and the formula that other devices compute."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 7, 16, generator=generator)
    q = q[:, :, :5]
    bias = torch.zeros(2, 1, 1, 7)
    bias[0, ..., 4:] = -torch.inf
    for part in (bias, torch.zeros_like(bias)):
        y, lse = attention(q, k, v, None if part.eq(0).all() else part)
        expected, expected_lse = written_out(q, k, v, part)
        torch.testing.assert_close(y, expected.float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(lse, expected_lse.float(), atol=1e-5, rtol=0)


def test_two_parts_joined_are_one_softmax():
    """Keys split at any place: the parts' outputs in the share of their exponentials."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 9, 16, generator=generator)
    q = q[:, :, :2]
    whole = F.scaled_dot_product_attention(q, k, v)
    for place in range(1, 9):
        first, first_lse = attention_lse(q, k[:, :, :place], v[:, :, :place])
        second, second_lse = attention_lse(q, k[:, :, place:], v[:, :, place:])
        share = torch.sigmoid(first_lse - second_lse)[..., None]
        torch.testing.assert_close(torch.lerp(second, first, share), whole, atol=1e-6, rtol=0)
