"""Each kind of modulation computes what a layer in each block would, with the weights that it stands for."""

from typing import Any

import pytest
import torch
from torch import nn

from models.networks.config import DiTConfig
from models.networks.dit import DiT
from models.networks.modulation import add_gated, normed_and_modulated
from models.networks.token_layout import BatchLayout
from models.text.bytes import CaptionTokens
from models.text.config import TextConfig

WIDTH, DEPTH, RANK = 32, 2, 4
OPTIONS: dict[str, dict[str, Any]] = {
    "per_block": {},
    "shared": {"modulation": "shared"},
    "low_rank": {"modulation": "low_rank", "modulation_rank": RANK},
}


def small(**options: Any) -> DiTConfig:
    text = TextConfig(width=16, depth=1, heads=2, max_bytes=8)
    return DiTConfig(width=WIDTH, depth=DEPTH, heads=2, text=text, **options)


@pytest.mark.parametrize("kind", ["shared", "low_rank"])
def test_it_is_a_layer_per_block_with_these_weights(kind):
    """W_i = W + E_i R_i and b_i = b + table_i."""
    torch.manual_seed(0)
    network, per_block = DiT(small(**OPTIONS[kind]), 4), DiT(small(), 4)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    weights = network.state_dict()
    expected = {name: value for name, value in weights.items() if "modulation." not in name or "final" in name}
    for block in range(DEPTH):
        own = f"blocks.{block}.modulation"
        product = 0
        if kind == "low_rank":
            product = weights[f"{own}.expand.weight"] @ weights[f"{own}.reduce.weight"]
            assert torch.linalg.matrix_rank(product) == RANK
        expected[f"{own}.weight"] = weights["shared_modulation.weight"] + product
        expected[f"{own}.bias"] = weights["shared_modulation.bias"] + weights[f"{own}.table"]
    per_block.load_state_dict(expected)
    x, t, caption = torch.randn(2, 4, 3, 4, 4), torch.rand(2, 1, 3), CaptionTokens.encode(["a dot", ""], 8)
    torch.testing.assert_close(network(x, t, caption), per_block(x, t, caption), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "per_block", "once"), [
    ("per_block", 6 * WIDTH**2 + 6 * WIDTH, 0),
    ("shared", 6 * WIDTH, 6 * WIDTH**2 + 6 * WIDTH),
    ("low_rank", 6 * WIDTH + 7 * RANK * WIDTH, 6 * WIDTH**2 + 6 * WIDTH),
])  # fmt: skip
def test_its_parameters_are_counted(kind, per_block, once):
    network = DiT(small(**OPTIONS[kind]), 4)
    counted = {
        name: p.numel() for name, p in network.named_parameters() if "modulation" in name and "final" not in name
    }
    assert sum(number for name, number in counted.items() if name.startswith("blocks.")) == DEPTH * per_block
    assert sum(number for name, number in counted.items() if name.startswith("shared_")) == once
    others = sum(p.numel() for p in network.parameters()) - sum(counted.values())
    assert others == sum(p.numel() for p in DiT(small(), 4).parameters()) - DEPTH * (6 * WIDTH**2 + 6 * WIDTH)


@pytest.mark.parametrize("kind", OPTIONS)
def test_every_block_is_the_identity_at_first(kind):
    network = DiT(small(**OPTIONS[kind]), 4)
    tokens, text, condition = torch.randn(1, 12, WIDTH), torch.randn(1, 3, 16), torch.randn(1, 1, WIDTH)
    shared = None if network.shared_modulation is None else network.shared_modulation(condition)
    mask, angles = torch.ones(1, 3, dtype=torch.bool), torch.zeros(12, 8)
    layout = BatchLayout(3, mask, None, network.sequence_plan)
    assert torch.equal(network.blocks.run(tokens, condition, shared, text, angles, layout), tokens)


def test_groups_of_packed_clips_are_modulated_as_if_each_were_alone():
    groups = ((2, 6), (1, 4))  # vectors, tokens
    x, h, shift, scale = torch.randn(1, 10, 8), torch.randn(1, 10, 8), torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    rows = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    norm = nn.LayerNorm(8, elementwise_affine=False)
    modulated = normed_and_modulated(x, norm, shift, scale, groups)
    torch.testing.assert_close(modulated, norm(x) * (1 + scale[:, rows]) + shift[:, rows])
    torch.testing.assert_close(add_gated(x, shift, h, groups), x + shift[:, rows] * h)
