"""Finite scalar quantisation against what it is by definition, over all codes."""

from math import prod

import pytest
import torch
from pydantic import ValidationError

from models.tokens.config import TokenizerConfig
from models.tokens.fsq import bounded, codes_of, quantized, tokens_of

each_vocabulary = pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 4), (7, 6, 2)])


@each_vocabulary
def test_numbers_and_codes_are_inverses_over_the_whole_vocabulary(levels):
    tokens = torch.arange(prod(levels))
    codes = codes_of(tokens, levels)
    assert torch.equal(tokens_of(codes, levels), tokens)
    assert len(codes.unique(dim=0)) == len(tokens)
    assert codes.abs().max() <= 1
    assert torch.equal(tokens_of(codes.reshape(-1, 1, len(levels)), levels), tokens[:, None])


def centred(levels):
    """Half the width of the bound of each channel, and its offset."""
    count = torch.tensor(levels, dtype=torch.float64)
    return (count - 1) * (1 + 1e-3) / 2, torch.where(count % 2 == 0, 0.5, 0.0)


@each_vocabulary
def test_every_code_is_reached_and_no_other(levels):
    """From the point that the bound maps to it; the farthest points give the outermost levels."""
    half, offset = centred(levels)
    tokens = torch.arange(prod(levels))
    numbers = codes_of(tokens, levels).double() * torch.tensor([level // 2 for level in levels])
    z = ((numbers + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(tokens_of(quantized(z, levels), levels), tokens)
    for far, token in ((-1e4, 0), (1e4, prod(levels) - 1)):
        assert tokens_of(quantized(torch.full((len(levels),), far), levels), levels) == token


@each_vocabulary
def test_the_gradient_is_that_of_the_bound_alone(levels):
    """Rounding counts as the identity; the analytic derivative is half (1 - tanh^2) over the unit of a code."""
    z = torch.randn(50, len(levels), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(quantized(z, levels).sum(), z)
    half, offset = centred(levels)
    expected = half * (1 - (z + (offset / half).atanh()).tanh().square()) / torch.tensor([n // 2 for n in levels])
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(bounded(0 * z, levels), 0 * z)


def test_a_vocabulary_that_no_network_could_predict_is_refused():
    assert TokenizerConfig(levels=(8, 5, 5, 5)).num_tokens == 1000
    with pytest.raises(ValidationError, match="a vocabulary of 1000000 tokens, more than 65536: use fewer"):
        TokenizerConfig(levels=(1000, 1000))
