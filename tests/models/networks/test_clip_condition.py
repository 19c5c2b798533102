"""Frame rate and size: who is told what, and that both change nothing at first and something after training."""

import pytest
import torch

from models.networks.dit import DiT
from models.networks.protocol import Conditions
from testing.networks import noisy_batch, small_dit, with_open_gates

CONFIG = small_dit(clip_conditions=("fps", "size"))


def test_the_velocity_depends_on_the_frame_rate_of_each_clip():
    torch.manual_seed(0)
    network = DiT(CONFIG, 4)
    with_open_gates(network)
    x, t, caption = noisy_batch(CONFIG)
    slow = network.given(Conditions(torch.tensor([8.0])))(x, t, caption)
    torch.testing.assert_close(network.given(Conditions(torch.tensor([8.0, 8.0])))(x, t, caption), slow)
    mixed = network.given(Conditions(torch.tensor([8.0, 24.0])))(x, t, caption)
    torch.testing.assert_close(mixed[0], slow[0])
    assert not torch.allclose(mixed[1], slow[1])
    with pytest.raises(ValueError, match=r"the network reads frame rates: call network\.given\(Conditions\(fps\)\)"):
        network(x, t, caption)


def test_the_embedding_depends_on_each_side_of_the_latent():
    torch.manual_seed(0)
    network = DiT(small_dit(clip_conditions=("size",)), 4)
    with_open_gates(network)
    assert network.clip_condition is not None
    grids = [(3, 4, 8), (3, 8, 4), (5, 4, 8), (3, 8, 8)]
    embedded = [network.clip_condition(None, grid, torch.device("cpu")) for grid in grids]
    for number, vector in enumerate(embedded):
        assert vector.shape == (1, 1, 32)
        assert all(not torch.allclose(vector, other) for other in embedded[:number])


def test_without_these_conditions_the_frame_rate_is_not_read():
    torch.manual_seed(0)
    config = small_dit()
    network = DiT(config, 4)
    with_open_gates(network)
    x, t, caption = noisy_batch(config)
    assert torch.equal(network.given(Conditions(torch.tensor([8.0])))(x, t, caption), network(x, t, caption))


def test_nothing_changes_at_first_and_every_parameter_learns():
    torch.manual_seed(0)
    network = DiT(CONFIG, 4)
    assert network.clip_condition is not None
    fps = torch.tensor([8.0, 24.0])
    assert torch.equal(network.clip_condition(fps, (3, 4, 8), fps.device), torch.zeros(2, 1, 32))
    x, t, caption = noisy_batch(CONFIG)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (network.given(Conditions(fps))(x, t, caption) - x).square().mean().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
