"""The key/value cache against no cache, for rows of different lengths."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SHAPES, random_llama, some_tokens

from sample import prefill


def starts_of(rows: torch.Tensor, lengths: list[int]) -> list[list[int]]:
    """The first tokens of each row, as prompts."""
    return [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_cached_equals_uncached_for_rows_of_different_lengths(shape):
    """Padded prompts, then a chunk of three tokens, then single ones and three more."""
    model, rows, lengths = random_llama(SHAPES[shape]), some_tokens(3, 30), [20, 5, 13]
    expected = model(rows)
    cache, logits = prefill(model, starts_of(rows, lengths), k=1, max_new_tokens=10)
    parts = [logits[:, None]]
    for start, stop in [(0, 3), (3, 4), (4, 5), (5, 8)]:
        next_tokens = []
        for row, length in zip(rows, lengths, strict=True):
            next_tokens.append(row[length + start : length + stop])
        parts.append(model(torch.stack(next_tokens), cache))
    assert cache.lengths.tolist() == [length + 8 for length in lengths]
    cached = torch.cat(parts, dim=1)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            cached[row], expected[row, length - 1 : length + 8], atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_lies_beyond_a_rows_length_is_never_seen():
    """Huge keys and values in every free slot, also where a shorter prompt had its padding."""
    model, rows, lengths = random_llama(SHAPES["llama3-8b"]), some_tokens(2, 12), [7, 4]
    cache, _ = prefill(model, starts_of(rows, lengths), k=1, max_new_tokens=4)
    clean, _ = prefill(model, starts_of(rows, lengths), k=1, max_new_tokens=4)
    for tensor in cache.keys + cache.values:
        for row, length in enumerate(lengths):
            tensor[row, :, length:] = 1e6
    tokens = torch.tensor([[3], [4]])
    assert torch.equal(model(tokens, cache), model(tokens, clean))


def test_prefill_repeats_each_prompt_k_times():
    model, prompts = random_llama(SHAPES["llama3-8b"]), [[0, 5, 9], [0, 7]]
    cache, logits = prefill(model, prompts, k=3, max_new_tokens=4)
    single, single_logits = prefill(model, prompts, k=1, max_new_tokens=4)
    assert cache.lengths.tolist() == [3, 3, 3, 2, 2, 2]
    assert torch.equal(logits, single_logits.repeat_interleave(3, dim=0))
    for many, one in zip(cache.keys + cache.values, single.keys + single.values):
        assert torch.equal(many, one.repeat_interleave(3, dim=0))


@torch.no_grad()
def test_select_repeats_and_drops_rows_of_the_cache():
    model, rows, lengths = random_llama(SHAPES["llama3-8b"]), some_tokens(2, 12), [7, 10]
    cache, _ = prefill(model, starts_of(rows, lengths), k=1, max_new_tokens=4)
    cache.select(torch.tensor([1, 1, 0]))
    assert cache.lengths.tolist() == [10, 10, 7]
    model(torch.tensor([[3], [4], [5]]), cache)  # the two copies of row 1 part ways
    cache.select(torch.tensor([2, 1]))
    logits = model(torch.tensor([[8], [9]]), cache)[:, 0]
    for row_logits, row, new in [(logits[0], 0, [5, 8]), (logits[1], 1, [4, 9])]:
        tokens = rows[row, : lengths[row]].tolist() + new
        expected = model(torch.tensor([tokens]))[0, -1]
        torch.testing.assert_close(row_logits, expected, atol=1e-5, rtol=0)


def test_cached_attention_takes_any_layout_of_its_kernel(monkeypatch):
    """CUDA's memory-efficient kernel returns (B, T, heads, head_dim), transposed."""
    model, tokens = random_llama(SHAPES["llama3-8b"]), some_tokens(3, 5).tolist()
    _, expected = prefill(model, tokens, k=1, max_new_tokens=4)
    plain = F.scaled_dot_product_attention
    calls = []

    def transposed(*args, **kwargs):
        calls.append(args)
        return plain(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", transposed)
    _, logits = prefill(model, tokens, k=1, max_new_tokens=4)
    assert torch.equal(logits, expected)
    assert len(calls) == 2  # one for each layer
