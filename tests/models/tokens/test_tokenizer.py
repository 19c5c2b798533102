"""The tokeniser of latents: what is trained is what is stored."""

import pytest
import torch

from models.tokens.config import TokenizerConfig
from models.tokens.tokenizer import Tokenizer


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("codes", [1, 3])
def test_tokens_stand_for_what_the_network_rebuilds(depth, codes):
    config = TokenizerConfig(levels=(5, 4), codes=codes, width=8, depth=depth)
    torch.manual_seed(0)
    tokenizer, latents = Tokenizer(config, 4), torch.randn(2, 4, 3, 6, 4)
    tokens = tokenizer.encode(latents)
    assert tokens.shape == (2, codes, 3, 6, 4)
    assert tokens.max() < config.num_tokens
    torch.testing.assert_close(tokenizer.decode(tokens), tokenizer(latents))
    assert torch.equal(tokenizer.encode(latents[:, :, 1:2]), tokens[:, :, 1:2])  # each frame alone
    tokenizer(latents).square().mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in tokenizer.parameters())
