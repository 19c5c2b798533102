"""Networks without values have the shapes of those with values, and nothing is drawn for them."""

import torch

from models.meta import on_meta_device
from models.networks.build import build_network
from models.networks.config import DiTConfig, UNetConfig, WanConfig


def test_a_network_without_values_has_the_shapes_of_one_with_values():
    configs = (
        DiTConfig(width=32, depth=1, heads=2),
        UNetConfig(architecture="unet", width=32),
        WanConfig(architecture="wan", width=32, depth=1, heads=2),
    )
    for config in configs:
        expected = build_network(config, 4, 16).state_dict()
        state = torch.get_rng_state()
        with on_meta_device():
            network = build_network(config, 4, 16)
        assert torch.equal(torch.get_rng_state(), state)
        found = network.state_dict()
        assert all(weight.is_meta for weight in found.values())
        shapes = [{name: (weight.shape, weight.dtype) for name, weight in each.items()} for each in (found, expected)]
        assert shapes[0] == shapes[1]
