"""Diffusions against closed forms: Langevin dynamics, the Ornstein-Uhlenbeck process, and reversal in time; float64.

Everything is affine in the state on Gaussian data, so that moments are exact and nothing is drawn.
"""

from dataclasses import dataclass
from math import exp, sqrt

import pytest
import torch
from torch import Tensor

from models.flow.field import Field
from models.flow.path import Coefficients, CosinePath, Path, StraightPath, VariancePreservingPath
from models.flow.solver import Diffusion, euler_maruyama, heun
from testing.gaussians import GaussianData, affine_moments, constant_diffusion, steps, times

STD, SIGMA = 0.8, 0.9
each_path = pytest.mark.parametrize(
    "path", [StraightPath(), CosinePath(), VariancePreservingPath()], ids=lambda path: type(path).__name__
)


@dataclass(frozen=True)
class StillPath(Path):
    """A path that does not move: noise of one deviation at every time."""

    std: float

    def coefficients(self, t: Tensor) -> Coefficients:
        none, one = torch.zeros_like(t), torch.ones_like(t)
        return Coefficients(a=none, a_prime=none, b=self.std * one, scale=one, scaled_b_prime=none)


def reversal(path: Path) -> Diffusion:
    """sigma of a time with which the diffusion is the one that adds noise, backwards: sigma² = 2 b W / a."""

    def diffusion(t: Tensor) -> Tensor:
        at = path.coefficients(t)
        return (2 * at.b / at.a * at.scaled_determinant / at.scale).sqrt()

    return diffusion


STILL = Field(lambda x, t: torch.zeros_like(x), StillPath(STD))


def langevin(num_steps: int, std_0: float) -> tuple[float, float]:
    """Mean and variance after `num_steps` steps of Langevin dynamics to time 1; the step after them moves nothing."""
    grid = torch.cat([steps(num_steps, 0.0, 1 - 1e-9), times(1.0)])
    return affine_moments(
        lambda x, noise: euler_maruyama(STILL, x, grid, constant_diffusion(SIGMA), noise), num_steps + 1, std_0
    )


@pytest.mark.parametrize("std_0", [0.1, STD, 2.0])
def test_langevin_dynamics_is_an_ornstein_uhlenbeck_process(std_0):
    """dx = sigma² / 2 score dt + sigma dW with the score -x / V: the variance tends to V, by exp(-sigma² t / V)
    (Holderrieth & Erives 2025, examples of SDEs, and Langevin dynamics as the SDE extension of a path that stands).
    """
    variance, errors = STD**2, []
    limit = variance + (std_0**2 - variance) * exp(-(SIGMA**2) / variance)
    for num_steps in (50, 100, 200):
        mean, got = langevin(num_steps, std_0)
        h = (1 - 1e-9) / num_steps
        kept = (1 - h * SIGMA**2 / (2 * variance)) ** 2  # of the variance, by a step
        recursion = kept**num_steps * std_0**2 + SIGMA**2 * h * (1 - kept**num_steps) / (1 - kept)
        assert mean == pytest.approx(0, abs=1e-15)
        assert got == pytest.approx(recursion, rel=1e-12)
        errors.append(abs(got - limit))
    assert errors[-1] < 2e-2
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.15)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


@each_path
def test_the_process_that_adds_noise_has_the_marginals_of_the_path(path):
    """Backwards in time dx = (a' / a) x ds + g dW with g² = 2 b W / a: then d a / ds = -a' and d b² / ds = -2 b b'."""
    t = steps(6, 0.2, 0.9)
    at = path.coefficients(t)
    b_b_prime = at.scaled_b_prime * at.b / at.scale
    growth = -at.a_prime / at.a
    assert bool((growth < 0).all())
    torch.testing.assert_close(growth * at.a, -at.a_prime)
    torch.testing.assert_close(2 * growth * at.b**2 + reversal(path)(t) ** 2, -2 * b_b_prime, rtol=1e-10, atol=1e-12)


def test_the_reversal_of_the_vp_path_is_that_of_song():
    path, t = VariancePreservingPath(), steps(8, 0.0, 0.99)
    torch.testing.assert_close(reversal(path)(t) ** 2, path.rate(t), rtol=1e-9, atol=0)


@each_path
def test_one_diffusion_is_the_time_reversal_and_the_flow_is_not(path):
    """Anderson 1982; Song et al. 2021, eq. 6: the law of two times together, not only of each, is that of adding noise.

    That has E[x_s | x_t] = (a_t V_s / (a_s V_t)) x_t for t < s, where V are the variances; the flow's factor is
    sqrt(V_s / V_t), since it forgets nothing.
    """
    data, start, end = GaussianData(path, 0.0, STD), 0.4, 0.8
    (_, std_t), (_, std_s) = data.moments(start), data.moments(end)
    a_t, a_s = path.coefficients(times(start, end)).a.tolist()
    reversed_factor = a_t * std_s**2 / (a_s * std_t**2)
    x, errors = times(0, 1)[:, None], []
    for num_steps in (50, 100, 200):
        grid = torch.cat([steps(num_steps, start, end), times(end + 1e-9)])
        low, high = (
            euler_maruyama(data.field, x, grid, reversal(path), lambda _: torch.zeros_like(x)).flatten().tolist()
        )
        errors.append(abs(high - low - reversed_factor))
    assert errors[-1] < 0.02 * reversed_factor
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)
    low, high = heun(data.field, x, steps(200, start, end)).flatten().tolist()
    assert high - low == pytest.approx(sqrt(std_s**2 / std_t**2), rel=1e-4)
    assert abs(high - low - reversed_factor) > 0.05


@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
def test_the_straight_path_is_the_displacement_of_the_source_to_the_data_point(sigma_min):
    """psi_t = (1 - t) id + t psi_1 with psi_1(x) = sigma_min x + x_1 (Lipman et al. 2022, example II; McCann 1997)."""
    x_0, x_1, t = times(-1.2, 0.3, 2.0), times(0.5, -0.7, 0.1), times(0.0, 0.35, 1.0)
    point = StraightPath(sigma_min).sample(x_0, x_1, t)
    torch.testing.assert_close(point.x_t, (1 - t) * x_0 + t * (sigma_min * x_0 + x_1), rtol=0, atol=1e-15)
    torch.testing.assert_close(point.velocity, sigma_min * x_0 + x_1 - x_0, rtol=0, atol=1e-15)
