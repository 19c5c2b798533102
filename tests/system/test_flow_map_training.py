"""Flow maps that are trained, against the closed form of Gaussian data that they never see, in float64."""

import pytest
import torch
from torch import nn

from models.flow.field import Field
from models.flow.flow_map import MeanVelocity, flow_map, flow_map_solver
from models.flow.path import CosinePath, Path, StraightPath
from models.flow.spec import FlowMapSpec
from testing.flow_maps import AffineMap, StateMap, learn_map
from testing.gaussians import GaussianData, steps

MEAN, STD = 0.7, 0.4


def error_after(u: MeanVelocity, path: Path, num_jumps: int) -> float:
    """The largest distance from mean + std x over noises x between -2 and 2."""
    x = steps(16, -2, 2)[:, None]
    end = flow_map_solver(u)(Field(lambda x, t: x, path), x, steps(num_jumps))
    return (end - (MEAN + STD * x)).abs().max().item()


def semigroup_residual(u: MeanVelocity) -> float:
    """The largest distance between a jump and the two that it is made of, over states and times."""
    t, q, s = torch.rand(3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(0).values
    x = MEAN * t[:, None] + steps(499, -2, 2)[:, None] * ((STD * t) ** 2 + (1 - t) ** 2).sqrt()[:, None]
    return (flow_map(u, x, t, s) - flow_map(u, flow_map(u, x, t, q), q, s)).abs().max().item()


def trained(network: nn.Module, path: Path, share: float, num_steps: int, batch: int) -> nn.Module:
    spec = FlowMapSpec(consistency_share=share)
    learn_map(network, GaussianData(path, MEAN, STD), spec, num_steps, batch)
    return network.requires_grad_(False)


def errors(u: MeanVelocity, path: Path) -> list[float]:
    return [error_after(u, path, num_jumps) for num_jumps in (1, 2, 4, 8)]


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("path", [StraightPath(), pytest.param(CosinePath(), marks=pytest.mark.slow)], ids=str)
def test_a_trained_map_is_the_closed_form(path):
    network = AffineMap(16)
    assert error_after(network, path, 1) > 0.3
    trained(network, path, share=0.75, num_steps=200, batch=1024)
    assert max(errors(network, path)) < 1e-3
    assert semigroup_residual(network) < 1e-3


def test_without_jumps_in_training_only_the_velocity_is_learned():
    network = trained(AffineMap(16), StraightPath(), share=1e-6, num_steps=60, batch=256)
    data, x, t = GaussianData(StraightPath(), MEAN, STD), steps(8, -2, 2)[:, None], steps(8)
    torch.testing.assert_close(network(x, t, t), data.velocity(x, t), rtol=0, atol=1e-3)
    assert error_after(network, StraightPath(), 1) > 0.1


@pytest.mark.slow
def test_a_map_of_which_nothing_is_known_beforehand_comes_to_it_too():
    network = trained(StateMap(24), StraightPath(), share=0.75, num_steps=300, batch=2048)
    assert max(errors(network, StraightPath())) < 1e-3
    assert semigroup_residual(network) < 1e-3
