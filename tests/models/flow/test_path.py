"""Probability paths against closed forms, in float64."""

import math

import pytest
import torch
from torch import Tensor

from models.flow.path import (
    Path,
    PolynomialPath,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    posterior,
)
from testing.gaussians import AffinePath, GaussianData, each_path, numbers, steps, times


@each_path
def test_velocity_is_the_time_derivative_of_the_path(path):
    x_0, x_1 = numbers(2, 6).unbind(0)

    def x_at(t: Tensor) -> Tensor:
        return path.sample(x_0[None], x_1[None], t[None]).x_t[0]

    for t in times(0.2, 0.5, 0.9):
        step = 1e-6  # central difference: autograd would only repeat what AffinePath does
        numeric = (x_at(t + step) - x_at(t - step)) / (2 * step)
        exact = path.sample(x_0[None], x_1[None], t[None]).velocity[0]
        torch.testing.assert_close(exact, numeric, rtol=1e-7, atol=1e-7)


def test_ends_are_noise_and_data_and_the_velocity_points_from_one_to_the_other():
    """The sign convention: time runs from noise to data (Lipman et al. 2022, eq. 23)."""
    x_0, x_1 = numbers(2, 4, 3).unbind(0)
    path = StraightPath()
    assert torch.equal(path.sample(x_0, x_1, times(0, 0, 0, 0)).x_t, x_0)
    assert torch.equal(path.sample(x_0, x_1, times(1, 1, 1, 1)).x_t, x_1)
    assert torch.equal(path.sample(x_0, x_1, times(0, 0.3, 0.5, 1)).velocity, x_1 - x_0)


@pytest.mark.parametrize("path", [VariancePreservingPath(), AffinePath(lambda t: t, lambda t: (1 - t).sqrt())])
def test_data_at_the_end_of_a_path_whose_b_prime_diverges(path):
    """Variance preserving keeps b b' finite; through autograd, sqrt(1 - t) is finite up to its last step."""
    t = times(1.0 if isinstance(path, VariancePreservingPath) else 1 - 1e-9)
    x, velocity = numbers(1, 5), numbers(1, 5, seed=1)
    torch.testing.assert_close(path.at(t, x).data(x, velocity), x, rtol=0, atol=1e-8)


@each_path
def test_times_per_frame_are_times_per_sample_frame_by_frame(path):
    x_0, x_1 = numbers(2, 3, 2, 4, 5).unbind(0)  # b c frames w
    t = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).reshape(3, 1, 4)
    whole = path.sample(x_0, x_1, t)
    for frame in range(4):
        one = path.sample(x_0[:, :, frame], x_1[:, :, frame], t[:, 0, frame])
        torch.testing.assert_close(whole.x_t[:, :, frame], one.x_t, rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(whole.velocity[:, :, frame], one.velocity, rtol=1e-14, atol=1e-14)


@each_path
def test_log_ratio_rises_and_its_inverse_finds_the_time(path):
    t = steps(40, 0.01, 0.99)
    ratios = path.log_ratio(t)
    assert bool((ratios.diff() > 0).all())
    torch.testing.assert_close(path.time_of_log_ratio(ratios), t, rtol=0, atol=1e-12)


def mixture(path: Path, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Density and marginal velocity at points x of a mixture of three Gaussians, carried along the path."""
    weights, means, stds = times(0.2, 0.5, 0.3), times(-1.0, 0.4, 1.5), times(0.3, 0.5, 0.2)
    at = path.coefficients(t)
    b_b_prime = (
        at.scaled_b_prime
        if isinstance(path, VariancePreservingPath | VarianceExplodingPath)
        else (at.scaled_b_prime * at.b)
    )
    variance = (at.a * stds) ** 2 + at.b**2
    offset = x[:, None] - at.a * means
    parts = weights * (-(offset**2) / (2 * variance)).exp() / (2 * math.pi * variance).sqrt()
    slopes = (at.a * at.a_prime * stds**2 + b_b_prime) / variance
    density = parts.sum(1)
    return density, (parts * (at.a_prime * means + slopes * offset)).sum(1) / density


@each_path
def test_continuity_and_fokker_planck_equations(path):
    """d p/dt = -div(p v) and, for any sigma, d p/dt = -div(p (v + sigma²/2 score)) + sigma²/2 laplace p, on a mixture
    (Holderrieth & Erives 2025, continuity and Fokker-Planck equations, SDE extension).
    """
    x, sigma = steps(60, -4, 4), 0.8

    def density(x: Tensor, t: Tensor) -> Tensor:
        return mixture(path, x, t)[0]

    def flux(x: Tensor, t: Tensor) -> Tensor:
        p, velocity = mixture(path, x, t)
        return p * velocity

    def stochastic_flux(x: Tensor, t: Tensor) -> Tensor:
        p, velocity = mixture(path, x, t)
        return p * (velocity + sigma**2 / 2 * path.coefficients(t).score(x, velocity))

    def d_dx(function, x: Tensor, t: Tensor) -> Tensor:
        return torch.func.jvp(lambda y: function(y, t), (x,), (torch.ones_like(x),))[1]

    for t in times(0.1, 0.5, 0.9):
        p_t = torch.func.jvp(lambda s: density(x, s), (t,), (torch.ones_like(t),))[1]
        scale = p_t.abs().max()
        assert float((p_t + d_dx(flux, x, t)).abs().max() / scale) < 1e-12
        laplace = d_dx(lambda y, s: d_dx(density, y, s), x, t)
        residual = p_t + d_dx(stochastic_flux, x, t) - sigma**2 / 2 * laplace
        assert float(residual.abs().max() / scale) < 1e-10


@each_path
def test_posterior_is_bayes_rule(path):
    """q(x_s | x_t, x_1) of a Gaussian chain, against the product of the two densities (Ho et al. 2020, eq. 6-7)."""
    at_t, at_s = path.coefficients(times(0.4)), path.coefficients(times(0.7))
    found = posterior(at_t, at_s)
    x_t, x_1 = 0.3, -0.8
    # prior N(a_s x_1, b_s²) of x_s, observation x_t = (a_t / a_s) x_s + noise
    step = at_t.a / at_s.a
    precision = 1 / at_s.b**2 + step**2 / (at_t.b**2 - step**2 * at_s.b**2)
    mean = (at_s.a * x_1 / at_s.b**2 + step * x_t / (at_t.b**2 - step**2 * at_s.b**2)) / precision
    torch.testing.assert_close(found.variance, 1 / precision, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.on_x_t * x_t + found.on_data * x_1, mean, rtol=1e-10, atol=0)


@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
def test_the_score_where_the_state_is_nothing_but_noise(power):
    """At t = 0 of a polynomial path the velocity says nothing of the noise, but x_0 = x / b."""
    path = PolynomialPath(power)
    at, x = path.at(times(0.0, 0.0), numbers(2, 3)), numbers(2, 3)
    velocity = GaussianData(path, 0.7, 0.4).velocity(x, times(0.0, 0.0))
    torch.testing.assert_close(at.score(x, velocity), -x)
    torch.testing.assert_close(at.noise(x, velocity), x)
