"""Networks that predict tokens, whatever network of velocities they are made of."""

import pytest
import torch

from models.networks.build import build_token_network
from models.networks.protocol import Conditions
from models.text.bytes import CaptionTokens
from models.text.embeddings import CaptionEmbeddings
from models.tokens.config import TokenizerConfig
from testing.networks import with_open_gates
from tests.models.networks.test_build import SMALL

TOKENS = TokenizerConfig(levels=(3, 2), codes=2)


@pytest.mark.parametrize("config", SMALL, ids=lambda config: config.architecture)
def test_any_network_gives_logits_for_each_token(config):
    torch.manual_seed(0)
    network = build_token_network(config, TOKENS, 20 if config.needs_embeddings else None)
    with_open_gates(network)
    if config.needs_embeddings:
        caption = CaptionEmbeddings(torch.randn(2, 9, 20), torch.ones(2, 9, dtype=torch.bool))
    else:
        caption = CaptionTokens.encode(["a red circle", ""], config.caption_text.max_bytes)
    x, t = torch.randint(0, TOKENS.num_tokens + 1, (2, 2, 3, 8, 4)), torch.rand(2)
    logits = network(x, t, caption)
    assert logits.shape == (2, 2, 3, 8, 4, TOKENS.num_tokens)
    assert torch.equal(network.given(Conditions(torch.ones(1)))(x, t, caption), logits)
    logits.square().mean().backward()
    for code in range(2):  # a code and its mask have embeddings of their own
        rows = torch.arange(7) + 7 * code
        present = torch.tensor([bool((x[:, code] == token).any()) for token in range(7)])
        assert network.embedding.weight.grad is not None
        assert torch.equal(network.embedding.weight.grad[rows].any(1), present)
