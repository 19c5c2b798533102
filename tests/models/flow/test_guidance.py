"""Guidance rules on a pair of Gaussians, in float64."""

import pytest
import torch
from torch import Tensor

from models.flow.field import from_velocity, to_velocity
from models.flow.guidance import Apg, Branches, CfgZeroStar, Plain, Rescaled, batched, guide, guided
from models.flow.path import (
    CosinePath,
    Path,
    StraightPath,
)
from models.flow.solver import (
    Counted,
    euler,
    heun,
    rk4,
)
from testing.gaussians import PREDICTIONS, GaussianData, each_path, numbers, steps, times


def two_gaussians(path: Path) -> tuple[GaussianData, GaussianData]:
    return GaussianData(path, 1.0, 0.7), GaussianData(path, -0.5, 0.7)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
def test_guidance_of_two_gaussians(scale):
    """Equal covariance: guided samples are N(m_u + w (m_c - m_u), same covariance)."""
    path, quantiles = CosinePath(), steps(4, -2, 2)[:, None]
    cond, uncond = two_gaussians(path)
    field = guided(Branches(cond.velocity, uncond.velocity), path, "velocity", Plain(scale))
    end = rk4(field, quantiles, steps(400))
    torch.testing.assert_close(end, -0.5 + scale * 1.5 + 0.7 * quantiles, rtol=0, atol=1e-10)


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_plain_guidance_is_the_same_in_every_prediction_space(path, prediction):
    x, t = numbers(5, 3), steps(4, 0.1, 0.9)
    cond, uncond = two_gaussians(path)
    at, v_cond, v_uncond = path.at(t, x), cond.velocity(x, t), uncond.velocity(x, t)
    there = guide(from_velocity(at, prediction, x, v_cond), from_velocity(at, prediction, x, v_uncond), 3.0)
    back = to_velocity(at, prediction, x, there)
    torch.testing.assert_close(back, guide(v_cond, v_uncond, 3.0), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, [2]), (1.0, [2]), (3.0, [4])])
def test_guidance_calls_the_network_once_and_no_branch_without_weight(scale, expected):
    sizes = []

    def network(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        sizes.append(len(x))
        assert len(condition) == len(x) == len(t)
        return condition[:, None].expand_as(x)

    cond, uncond = times(1, 2), times(-1, -2)
    field = guided(batched(network, cond, uncond, torch.cat([cond, uncond])), StraightPath(), "velocity", Plain(scale))
    v = field.velocity(torch.zeros(2, 3).double(), times(0.5, 0.5))
    assert sizes == expected
    torch.testing.assert_close(v, (uncond + scale * (cond - uncond))[:, None].expand(2, 3))


def test_guidance_in_an_interval():
    calls = Counted(lambda x, t: torch.zeros_like(x))
    branches = Branches(lambda x, t: torch.ones_like(x), calls)
    field = guided(branches, StraightPath(), "velocity", Plain(3.0, t_min=0.25, t_max=0.6))
    end = euler(field, torch.zeros(1, 1).double(), steps(4))  # guided at t = .25 and .5 only
    assert calls.calls == 2
    assert end.item() == pytest.approx((1 + 3 + 3 + 1) / 4)


def test_cfg_zero_star_fits_by_least_squares_and_starts_at_rest():
    path, x, t = StraightPath(), numbers(2, 5), times(0.5, 0.5)
    v_cond, v_uncond = numbers(2, 5, seed=1), numbers(2, 5, seed=2)
    branches = Branches(lambda x, t: v_cond, lambda x, t: v_uncond)
    got = guided(branches, path, "velocity", CfgZeroStar(3.0)).velocity(x, t)
    for row in range(2):
        fit = torch.linalg.lstsq(v_uncond[row][:, None], v_cond[row][:, None]).solution.item()
        torch.testing.assert_close(got[row], guide(v_cond[row], fit * v_uncond[row], 3.0))
    rest = guided(branches, path, "velocity", CfgZeroStar(3.0, zero_until=0.1)).velocity(x, times(0.05, 0.05))
    assert torch.equal(rest, torch.zeros_like(x))


@each_path
def test_projected_guidance(path):
    """Nothing along the conditional data prediction; with eta 1 and no memory it is the plain rule."""
    x, t, scale = numbers(3, 6), times(0.2, 0.5, 0.8), 4.0
    v_cond, v_uncond = numbers(3, 6, seed=1), numbers(3, 6, seed=2)
    branches, at = Branches(lambda x, t: v_cond, lambda x, t: v_uncond), path.at(t, x)
    plain = guided(branches, path, "velocity", Apg(scale, eta=1.0, momentum=0.0)).velocity(x, t)
    torch.testing.assert_close(plain, guide(v_cond, v_uncond, scale), rtol=1e-9, atol=1e-9)
    data = at.data(x, v_cond)
    change = at.data(x, guided(branches, path, "velocity", Apg(scale)).velocity(x, t)) - data
    overlap = (change * data).sum(1) / (change.norm(dim=1) * data.norm(dim=1))
    torch.testing.assert_close(overlap, torch.zeros_like(overlap), rtol=0, atol=1e-9)
    cut = at.data(x, guided(branches, path, "velocity", Apg(2.0, threshold=0.01)).velocity(x, t)) - data
    assert bool((cut.norm(dim=1) <= 0.01 + 1e-9).all())


def test_projected_guidance_remembers_within_a_trajectory_only():
    v_cond, v_uncond = numbers(1, 4), numbers(1, 4, seed=1)
    branches, x, t = Branches(lambda x, t: v_cond, lambda x, t: v_uncond), numbers(1, 4, seed=2), times(0.5)
    first = guided(branches, StraightPath(), "velocity", Apg(3.0, momentum=-0.5))
    second = guided(branches, StraightPath(), "velocity", Apg(3.0, momentum=-0.5))
    once, twice = first.velocity(x, t), first.velocity(x, t)
    assert torch.equal(second.velocity(x, t), once)
    assert not torch.equal(once, twice)


def test_rescaled_guidance_has_the_conditional_spread():
    path, x, t = CosinePath(), numbers(3, 50), times(0.2, 0.5, 0.8)
    v_cond, v_uncond = numbers(3, 50, seed=1), numbers(3, 50, seed=2)
    branches, at = Branches(lambda x, t: v_cond, lambda x, t: v_uncond), path.at(t, x)
    full = at.data(x, guided(branches, path, "velocity", Rescaled(5.0, phi=1.0)).velocity(x, t))
    torch.testing.assert_close(full.std(1), at.data(x, v_cond).std(1), rtol=1e-9, atol=0)
    none = guided(branches, path, "velocity", Rescaled(5.0, phi=0.0)).velocity(x, t)
    torch.testing.assert_close(none, guide(v_cond, v_uncond, 5.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [Plain(3.0), CfgZeroStar(3.0, 0.05), Apg(3.0), Rescaled(3.0)])
def test_every_rule_is_finite_over_the_whole_path(rule):
    for path in (StraightPath(), CosinePath()):
        cond, uncond = two_gaussians(path)
        field = guided(Branches(cond.velocity, uncond.velocity), path, "velocity", rule)
        assert bool(heun(field, numbers(4, 6), steps(20)).abs().max() < 100)
