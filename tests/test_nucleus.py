"""One token from its distribution: nucleus sampling by inverse CDF."""

import numpy as np
import pytest
import torch

import sample
from sample import next_token

BELOW_ONE = 1 - 2**-24  # the largest uniform there is
# Of .5 .3 .15 .05, the likeliest two reach .75; their shares are 5/8 and 3/8.
LOGITS = torch.tensor([0.05, 0.5, 0.15, 0.3]).log().expand(4, 4)
UNIFORMS = torch.tensor([0.0, 0.624, 0.626, BELOW_ONE])


def test_hand_worked_nucleus():
    assert next_token(LOGITS, UNIFORMS, temperature=1.0, top_p=0.75).tolist() == [1, 1, 3, 3]


def test_the_nucleus_is_never_empty():
    assert next_token(LOGITS, UNIFORMS, temperature=1.0, top_p=0.01).tolist() == [1, 1, 1, 1]


def test_a_uniform_that_is_rounded_to_one_stays_in_the_nucleus():
    ones = torch.ones(4)
    assert next_token(LOGITS, ones, temperature=1.0, top_p=0.75).tolist() == [3, 3, 3, 3]


def test_temperature_zero_is_greedy():
    assert next_token(LOGITS, UNIFORMS, temperature=0.0, top_p=0.75).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_follow_the_softmax(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 1.1, 0.2])
    grid = (torch.arange(2000) + 0.5) / 2000
    tokens = next_token(logits.expand(2000, 5), grid, temperature, top_p=1.0)
    expected = 2000 * torch.softmax(logits / temperature, dim=0)
    assert (tokens.bincount(minlength=5) - expected).abs().max() <= 1


@pytest.mark.parametrize("vocab_size, spread", [(50, 2.0), (3000, 4.0), (3000, 0.1)])
def test_tokens_equal_a_plain_reference(vocab_size, spread):
    """Small, peaked and flat vocabularies; a flat one's nucleus is larger than NUCLEUS tokens."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, spread, (16, vocab_size))
    uniforms, expected, sizes = [], [], []
    for row in logits:
        probs = np.exp(row) / np.exp(row).sum()
        likeliest = np.argsort(-probs)
        size = np.searchsorted(probs[likeliest].cumsum(), 0.9) + 1
        nucleus = likeliest[:size]
        shares = probs[nucleus] / probs[nucleus].sum()
        place = rng.integers(size)
        uniforms.append(shares[:place].sum() + shares[place] / 2)  # the middle of its interval
        expected.append(nucleus[place])
        sizes.append(size)
    assert (min(sizes) > sample.NUCLEUS[-1]) == (spread == 0.1)
    tokens = next_token(torch.tensor(logits), torch.tensor(uniforms), temperature=1.0, top_p=0.9)
    assert tokens.tolist() == expected


def test_a_flat_row_changes_no_token_of_the_rows_beside_it():
    """Also among equally likely tokens, of which bfloat16 logits have many."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 3000, generator=generator).mul(3).bfloat16()
    uniforms = torch.rand(64, generator=generator)
    flat = torch.zeros_like(logits[:1])
    with_flat = torch.cat((logits, flat)), torch.cat((uniforms, uniforms[:1]))
    alone = next_token(logits, uniforms, temperature=1.0, top_p=0.9)
    in_company = next_token(*with_flat, temperature=1.0, top_p=0.9)
    assert torch.equal(in_company[:64], alone)


@pytest.mark.parametrize("uniform", [0.0, BELOW_ONE])
def test_impossible_tokens_are_never_drawn(uniform):
    logits = torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    logits[:, ::2] = -torch.inf
    tokens = next_token(logits, torch.full((500,), uniform), temperature=1.0, top_p=1.0)
    assert (tokens % 2 == 1).all()
