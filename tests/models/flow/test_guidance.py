"""Guidance rules on a pair of Gaussians, in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.flow.field import Field, from_velocity, to_velocity
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
    midpoint,
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
    once, in_the_same_step = first.velocity(x, t), first.velocity(x, t)
    first.begin_step(None)
    twice = first.velocity(x, t)
    assert torch.equal(second.velocity(x, t), once)
    assert torch.equal(in_the_same_step, once)
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


RULES = [Plain(3.0), Plain(3.0, 0.2, 0.7), CfgZeroStar(3.0), Apg(3.0), Apg(3.0, threshold=0.5), Rescaled(3.0)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_frames_that_have_ended_or_wait_do_not_sway_the_others(rule):
    """The velocity of the frames that move is that of a clip of these frames alone."""
    x, v_cond, v_uncond = (numbers(2, 3, 4, 2, seed=seed) for seed in range(3))  # b c frames h
    t = times(1.0, 0.4, 0.6, 1.0).reshape(1, 1, 4).expand(2, 1, 4)
    keep = torch.tensor([1, 2])

    def field(cond: Tensor, uncond: Tensor) -> Field:
        return guided(Branches(lambda x, t: cond, lambda x, t: uncond), StraightPath(), "velocity", rule)

    alone = field(v_cond[:, :, keep], v_uncond[:, :, keep]).velocity(x[:, :, keep], t[:, :, keep])
    beside = field(v_cond, v_uncond)
    torch.testing.assert_close(beside.velocity(x, t)[:, :, keep], alone, rtol=1e-12, atol=1e-12)
    waiting = torch.where(t == 1, 0.0, t)  # a solver says which frames move
    beside = field(v_cond, v_uncond)
    beside.begin_step((t < 1)[..., None])
    torch.testing.assert_close(beside.velocity(x, waiting)[:, :, keep], alone, rtol=1e-12, atol=1e-12)


def test_an_interval_guides_each_frame_by_its_own_time():
    branches = Branches(lambda x, t: torch.ones_like(x), lambda x, t: torch.zeros_like(x))
    field = guided(branches, StraightPath(), "velocity", Plain(5.0, t_min=0.3, t_max=0.7))
    velocity = field.velocity(torch.zeros(1, 1, 3).double(), times(0.1, 0.5, 0.9).reshape(1, 1, 3))
    assert velocity.flatten().tolist() == [1, 5, 1]


@pytest.mark.parametrize("rule", [CfgZeroStar, Apg, Rescaled, Plain])
@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_rules_have_no_jump_in_the_scale(rule, limit):
    """At 0 only the plain rule can do without the conditional branch."""
    x, t, v_cond, v_uncond = numbers(2, 5), times(0.5, 0.5), numbers(2, 5, seed=1), numbers(2, 5, seed=2)
    branches = Branches(lambda x, t: v_cond, lambda x, t: v_uncond)
    at, near = (guided(branches, StraightPath(), "velocity", rule(limit + d)).velocity(x, t) for d in (0.0, 1e-9))
    torch.testing.assert_close(at, near, rtol=0, atol=1e-7)


def test_cfg_zero_star_is_at_rest_at_first_at_scale_1_too():
    branches = Branches(lambda x, t: torch.ones_like(x), lambda x, t: torch.ones_like(x))
    field = guided(branches, StraightPath(), "velocity", CfgZeroStar(1.0, zero_until=0.1))
    assert field.velocity(numbers(2, 3), times(0.05, 0.05)).abs().max() == 0
    assert field.velocity(numbers(2, 3), times(0.5, 0.5)).min() == 1


@pytest.mark.parametrize("solver", [euler, midpoint, heun, rk4])
def test_the_momentum_of_projected_guidance_counts_steps(solver):
    """Differences of 1, 0.75, 0.875 at the starts of three steps are averaged to 1, 0.25, 0.75, whatever is evaluated
    between them.
    """
    differences, averages = {0.0: 1.0, 0.25: 0.75, 0.5: 0.875}, []
    is_start = False

    def cond(x: Tensor, t: Tensor) -> Tensor:
        difference = differences[t[0].item()] if is_start else 99.0
        return torch.full_like(x, difference / (1 - t[0].item()))  # of the data predictions

    rule = Apg(2.0, eta=1.0, momentum=-0.5)
    inner = guided(Branches(cond, lambda x, t: torch.zeros_like(x)), StraightPath(), "velocity", rule)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        nonlocal is_start
        result = inner.velocity(x, t)
        if is_start:  # v_cond + average / (1 - t)
            averages.append(((result - cond(x, t)) * (1 - t[:, None])).item())
            is_start = False
        return result

    def begin_step(mask: Tensor | None) -> None:
        nonlocal is_start
        is_start = True
        inner.begin_step(mask)

    field = replace(inner, function=velocity, begin_step=begin_step)
    solver(field, torch.zeros(1, 1).double(), times(0, 0.25, 0.5, 0.75))
    assert averages == pytest.approx([1, 0.25, 0.75], abs=1e-12)
