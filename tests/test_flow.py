"""models/flow against closed forms, in float64."""

import math
import sys
import tracemalloc
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks.checkerboard import SQUARES, exact_field, posterior_mean, share_inside
from models.flow.field import Field, check_prediction, from_velocity, to_velocity, velocity_weight
from models.flow.grid import autoregressive, full_sequence, karras_grid, linear_quadratic_grid, pyramid, uniform_grid
from models.flow.guidance import Apg, Branches, CfgZeroStar, Plain, Rescaled, batched, guide, guided
from models.flow.likelihood import (
    bits_per_dimension,
    dequantize,
    exact_divergence,
    log_likelihood,
    probed_divergence,
    rademacher,
)
from models.flow.objective import matching_loss, optimal_coupling, stratified, target, training_times
from models.flow.path import (
    AffinePath,
    CosinePath,
    Path,
    PolynomialPath,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
    posterior,
)
from models.flow.solver import (
    Counted,
    ab2,
    clamped,
    constant_diffusion,
    ddim,
    ddim_eta,
    dopri5,
    dpmpp_2m,
    euler,
    euler_maruyama,
    heun,
    invert,
    midpoint,
    rk4,
    unipc,
    vp_diffusion,
)
from models.flow.spec import TimeLaw

PATHS = [
    StraightPath(),
    StraightPath(sigma_min=0.1),
    VariancePreservingPath(),
    VarianceExplodingPath(sigma_max=5.0),
    CosinePath(),
    PolynomialPath(2.0),
    AffinePath(lambda t: (math.pi / 2 * t).sin(), lambda t: 1 - t**2),
]
PREDICTIONS = ["velocity", "data", "noise", "score"]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def steps(num_steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    return torch.linspace(start, end, num_steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class GaussianData:
    """Data N(mean, std²): everything about its flow is known."""

    path: Path
    mean: float
    std: float

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        at = self.path.at(t, x)
        b_b_prime = at.scaled_b_prime * at.b / at.scale if not torch.equal(at.scale, at.b) else at.scaled_b_prime
        variance = (at.a * self.std) ** 2 + at.b**2
        slope = (at.a * at.a_prime * self.std**2 + b_b_prime) / variance
        return at.a_prime * self.mean + slope * (x - at.a * self.mean)

    def moments(self, t: float) -> tuple[float, float]:
        at = self.path.coefficients(times(t))
        return float(at.a * self.mean), float(((at.a * self.std) ** 2 + at.b**2).sqrt())

    @property
    def field(self) -> Field:
        return Field(self.velocity, self.path)


# ------------------------------------------------------------------ paths


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


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_conversions_are_inverse_pairs(path, prediction):
    x_0, x_1 = numbers(2, 9, 4).unbind(0)
    t = steps(8, 0.05, 0.95)
    at = path.at(t, x_1)
    point = path.sample(x_0, x_1, t)
    predicted = from_velocity(at, prediction, point.x_t, point.velocity)
    torch.testing.assert_close(predicted, target(path, prediction, x_0, x_1, t), rtol=1e-12, atol=1e-12)
    again = to_velocity(at, prediction, point.x_t, predicted)
    torch.testing.assert_close(again, point.velocity, rtol=1e-12, atol=1e-12)


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_conversions_are_finite_at_both_ends(path, prediction, dtype):
    x_0, x_1 = numbers(2, 2, 4).to(dtype).unbind(0)
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    at, point = path.at(t, x_1), path.sample(x_0, x_1, t)
    assert bool(point.velocity.isfinite().all())
    assert bool(from_velocity(at, prediction, point.x_t, x_1 - x_0).isfinite().all())
    assert bool(to_velocity(at, prediction, point.x_t, x_0).isfinite().all())


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


def test_a_field_can_change_its_path_after_training():
    """The optimal network of one path, moved to another, is the other path's optimal network."""
    for old in PATHS:
        for new in PATHS:
            x, t = numbers(6, 1), times(0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
            if isinstance(old, StraightPath) and old.sigma_min:
                continue  # it never gets rid of all noise: other paths end beyond it
            moved = GaussianData(old, 0.7, 0.6).field.on(new)
            expected = GaussianData(new, 0.7, 0.6).velocity(x, t)
            keep = new.log_ratio(t) > old.log_ratio(times(0.0))  # not every path starts at pure noise
            x, t, expected = x[keep], t[keep], expected[keep]
            torch.testing.assert_close(moved.velocity(x, t), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_field_gives_all_four_from_any_prediction(prediction):
    for path in PATHS:
        data = GaussianData(path, 0.7, 0.6)
        x, t = numbers(5, 2), steps(4, 0.1, 0.9)
        at, velocity = path.at(t, x), data.velocity(x, t)
        field = Field(
            lambda y, s, p=path, d=data: from_velocity(p.at(s, y), prediction, y, d.velocity(y, s)), path, prediction
        )
        for wanted in PREDICTIONS:
            got = getattr(field, wanted)(x, t)
            torch.testing.assert_close(got, from_velocity(at, wanted, x, velocity), rtol=1e-11, atol=1e-11)


def test_the_score_is_the_gradient_of_the_log_density():
    for path in PATHS:
        data, x = GaussianData(path, 0.7, 0.6), numbers(5, 1)
        for t in (0.2, 0.6, 0.9):
            mean, std = data.moments(t)
            torch.testing.assert_close(
                data.field.score(x, times(t).expand(5)), -(x - mean) / std**2, rtol=1e-9, atol=1e-9
            )


# ------------------------------------------------------------------ objective


def test_loss_floor_of_gaussian_data_and_a_network_that_comes_down_to_it():
    """Data N(0, s²), straight path, uniform t: no network gets below s pi / 2 per dimension."""
    std, num = 0.5, 400_000
    data, t = GaussianData(StraightPath(), 0.0, std), (torch.arange(num, dtype=torch.float64) + 0.5) / num
    x_0, x_1 = numbers(num, 1, seed=1), std * numbers(num, 1, seed=2)
    point = data.path.sample(x_0, x_1, t)
    floor = std * math.pi / 2

    def loss_of(velocity, part=slice(None)):
        return matching_loss(data.path, "velocity", velocity, x_0[part], x_1[part], t[part]).mean()

    best = loss_of(data.velocity(point.x_t, t)).item()
    assert best == pytest.approx(floor, rel=0.01)
    torch.manual_seed(0)
    widths = [torch.nn.Linear(2, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)]
    network = torch.nn.Sequential(*widths).double()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    inputs, shuffled = (
        torch.cat([point.x_t, t[:, None]], 1),
        torch.randperm(num, generator=torch.Generator().manual_seed(3)),
    )
    for batch in shuffled.split(1000):
        loss = loss_of(network(inputs[batch]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        reached = loss_of(network(inputs)).item()
    assert best < reached < 1.03 * floor


def test_the_conditional_loss_has_the_marginal_losss_gradient():
    """On a finite data set, by quadrature (Lipman et al. 2022, theorem 2)."""
    data, x, path = times(-1.0, 0.2, 1.3), steps(400, -6, 6), StraightPath()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    losses = []
    for t in (0.2, 0.6):
        at = path.coefficients(times(t))
        likelihood = (-((x[:, None] - at.a * data) ** 2) / (2 * at.b**2)).exp()
        conditional = at.velocity_of_data(x[:, None], data)
        marginal = (likelihood * conditional).sum(1) / likelihood.sum(1)
        predicted = (weight * x).sin()
        losses.append(
            (
                (likelihood * (predicted[:, None] - conditional) ** 2).sum(),
                (likelihood.sum(1) * (predicted - marginal) ** 2).sum(),
            )
        )
    for conditional_loss, marginal_loss in losses:
        (wanted,), (got,) = (
            torch.autograd.grad(loss, weight, retain_graph=True) for loss in (marginal_loss, conditional_loss)
        )
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=0)
        assert conditional_loss > marginal_loss  # they differ by a constant


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_weight_turns_each_loss_into_the_velocitys(path, prediction):
    x_0, x_1, t = numbers(5, 3), numbers(5, 3, seed=1), steps(4, 0.1, 0.9)
    at, point = path.at(t, x_1), path.sample(x_0, x_1, t)
    wrong = point.velocity + 0.1 * numbers(5, 3, seed=2)
    predicted = from_velocity(at, prediction, point.x_t, wrong)
    loss = matching_loss(path, prediction, predicted, x_0, x_1, t, "velocity")
    torch.testing.assert_close(loss, (wrong - point.velocity).square().mean(1), rtol=1e-10, atol=0)
    plain = matching_loss(path, prediction, predicted, x_0, x_1, t)
    scaled = plain[:, None] * velocity_weight(at, prediction)
    torch.testing.assert_close(scaled[:, 0], loss, rtol=1e-10, atol=0)


def test_time_laws():
    """Quantile functions: even numbers in, the law out. Shifts add log s to the noise level's logit and compose."""
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    logits = torch.logit(training_times(TimeLaw(mean=0.3, std=0.7), u))
    assert logits.mean().item() == pytest.approx(0.3, abs=1e-6)
    assert logits.std().item() == pytest.approx(0.7, abs=1e-3)
    assert torch.equal(training_times(TimeLaw(law="uniform"), u), u)
    mode = training_times(TimeLaw(law="mode", mode_scale=1.0), u)
    assert bool((mode.diff() > 0).all())
    assert float(((mode > 0.4) & (mode < 0.6)).double().mean()) > 0.25  # denser than uniform in the middle
    for law in ("uniform", "logit-normal", "mode"):
        plain, shifted = training_times(TimeLaw(law=law), u), training_times(TimeLaw(law=law, shift=3.0), u)
        torch.testing.assert_close(torch.logit(1 - shifted) - torch.logit(1 - plain), torch.full_like(u, math.log(3.0)))
    grid, twice = uniform_grid(10, 6.0), uniform_grid(10, 2.0)
    torch.testing.assert_close(grid, twice / (twice + 3 * (1 - twice)), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("start", [0, 1_000, 10**9])
@pytest.mark.parametrize("num", [16, 32, 100])
def test_stratified_numbers_cover_every_stretch_of_positions(start, num):
    """No gap of golden-ratio points is longer than (1 + golden ratio) / n: of independent ones, many are."""
    u = stratified(torch.arange(start, start + num), 0.3)
    ordered = torch.cat([u.sort().values, u.min()[None] + 1])
    assert float(ordered.diff().max()) <= 2.62 / num
    assert bool(((u > 0) & (u < 1)).all())
    halves = torch.cat(
        [
            stratified(torch.arange(start, start + num // 2), 0.3),
            stratified(torch.arange(start + num // 2, start + num), 0.3),
        ]
    )
    assert torch.equal(u, halves)  # a number depends on its own position alone
    assert bool(training_times(TimeLaw(), u).isfinite().all())


def test_optimal_coupling_is_the_best_permutation():
    x_0, x_1 = numbers(5, 2), numbers(5, 2, seed=1)
    found = optimal_coupling(x_0, x_1)
    assert sorted(found.tolist()) == list(range(5))
    every = torch.cartesian_prod(*[torch.arange(5)] * 5)
    every = every[[len(set(row)) == 5 for row in every.tolist()]]
    costs = (x_0[every] - x_1).square().sum((1, 2))
    assert (x_0[found] - x_1).square().sum().item() == pytest.approx(costs.min().item())


# ------------------------------------------------------------------ grids


def test_grids():
    torch.testing.assert_close(uniform_grid(4), times(0.0, 0.25, 0.5, 0.75, 1.0))
    grid = linear_quadratic_grid(20, 10, 0.025)
    assert len(grid) == 21
    torch.testing.assert_close(grid[:11], steps(10) * 0.025)
    assert grid[-1].item() == pytest.approx(1.0)
    assert bool((grid.diff() > 0).all())
    for path in (VariancePreservingPath(), CosinePath()):
        grid = karras_grid(10, path, sigma_min=0.01, sigma_max=50.0)
        assert bool((grid.diff() > 0).all())
        levels = (-path.log_ratio(grid[:-1])).exp() ** (1 / 7)
        torch.testing.assert_close(levels.diff(), levels.diff()[:1].expand(9), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="at least one step, got 0"):
        uniform_grid(0)
    with pytest.raises(ValueError, match="between 1 and 9 linear steps, got 10"):
        linear_quadratic_grid(10, 10)


def test_schedules():
    grid = steps(2)
    assert torch.equal(full_sequence(grid, 2), times(0, 0.5, 1)[:, None].expand(3, 2))
    assert pyramid(grid, 3).tolist() == [[0, 0, 0], [0.5, 0, 0], [1, 0.5, 0], [1, 1, 0.5], [1, 1, 1]]
    assert autoregressive(grid, 2).tolist() == [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1]]


@pytest.mark.parametrize("grid", [times(0, 0.5, 0.5), times(1, 0), times(0.5), times(0, 1.5)])
def test_a_grid_that_does_not_increase_is_refused(grid):
    with pytest.raises(ValueError, match="strictly increasing"):
        euler(Field(lambda x, t: x, StraightPath()), numbers(1, 1), grid)


# ------------------------------------------------------------------ solvers


ORDERS = [(euler, 1), (midpoint, 2), (heun, 2), (rk4, 4), (ab2, 2), (ddim, 1), (dpmpp_2m, 2), (unipc, 2)]


@pytest.mark.parametrize(("solver", "order"), ORDERS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("path", [CosinePath(), VariancePreservingPath()], ids=lambda path: type(path).__name__)
def test_convergence_order(solver, order, path):
    """The exact flow of a Gaussian keeps quantiles. Halving the step divides the error by 2^order at least."""
    data, start, end = GaussianData(path, 0.7, 0.4), 0.1, 0.9
    quantiles = steps(8, -2, 2)[:, None]
    (mean_0, std_0), (mean_1, std_1) = data.moments(start), data.moments(end)
    errors = []
    for num_steps in (64, 128, 256):
        x = solver(data.field, mean_0 + std_0 * quantiles, steps(num_steps, start, end))
        errors.append((x - (mean_1 + std_1 * quantiles)).abs().max().item())
    assert math.log2(errors[1] / errors[2]) > order - 0.12, errors
    assert errors[2] < 0.02


@pytest.mark.parametrize("solver", [euler, midpoint, heun, rk4, ab2, ddim, dpmpp_2m, unipc])
def test_solvers_reach_the_end_of_every_path(solver):
    """From t = 0 to t = 1, where a or b vanish: the flow of a Gaussian ends at mean + std quantile."""
    quantiles = steps(4, -1, 1)[:, None]
    for path in (StraightPath(), CosinePath()):
        x = solver(GaussianData(path, 0.7, 0.4).field, quantiles, steps(200))
        torch.testing.assert_close(x, 0.7 + 0.4 * quantiles, rtol=0, atol=0.02)


def test_adaptive_solver_keeps_its_tolerance():
    quantiles = steps(4, -1, 1)[:, None]
    counted = Counted(GaussianData(CosinePath(), 0.7, 0.4).velocity)
    x = dopri5(Field(counted, CosinePath()), quantiles, steps(1), tolerance=1e-9)
    torch.testing.assert_close(x, 0.7 + 0.4 * quantiles, rtol=0, atol=1e-6)
    assert 6 < counted.calls < 1000


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_euler_is_exact_on_point_mass_data(num_steps):
    """All data at one point: the flow is straight (Lipman et al. 2022, section 4.1)."""
    field = Field(lambda x, t: times(1.5, -2.0).expand_as(x), StraightPath(), "data")
    end = euler(field, numbers(4, 2), steps(num_steps))
    torch.testing.assert_close(end, times(1.5, -2.0).expand(4, 2), rtol=0, atol=1e-12)


def test_ddim_is_euler_on_the_straight_path():
    field, x = GaussianData(StraightPath(), 0.7, 0.4).field, numbers(6, 2)
    torch.testing.assert_close(ddim(field, x, steps(7)), euler(field, x, steps(7)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("solver", "calls"),
    [(euler, 6), (ab2, 6), (ddim, 6), (dpmpp_2m, 6), (unipc, 6), (midpoint, 12), (heun, 12), (rk4, 24)],
)
def test_solvers_call_the_network_as_often_as_they_say(solver, calls):
    counted = Counted(GaussianData(CosinePath(), 0.0, 0.5).velocity)
    solver(Field(counted, CosinePath()), numbers(2, 1), steps(6))
    assert counted.calls == calls


def affine_moments(sample, num_noises: int, std_0: float = 1.0) -> tuple[float, float]:
    """Mean and variance of sample(x, noises) for x ~ N(0, std_0²) and standard normal noises, exactly.

    The map is affine on Gaussian data: one row probes the constant, one the start, one each noise.
    """
    probes = torch.cat([torch.zeros(1, num_noises + 1), torch.eye(num_noises + 1)]).double()
    out = sample(std_0 * probes[:, :1], lambda step: probes[:, 1 + step : 2 + step])[:, 0]
    effects = out[1:] - out[0]
    return out[0].item(), effects.square().sum().item()


DIFFUSIONS = {
    "constant": constant_diffusion(0.7),
    "vp": vp_diffusion(VariancePreservingPath()),
    "noise": lambda t: (1 - t).sqrt(),
    "hill": lambda t: 2 * t * (1 - t),
}


@pytest.mark.parametrize("diffusion", DIFFUSIONS.values(), ids=DIFFUSIONS)
def test_every_diffusion_reaches_the_datas_mean_and_variance(diffusion):
    """Moments by exact recursion, no Monte Carlo; the error falls with the step: weak order 1
    (Holderrieth & Erives 2025, SDE extension).
    """
    data, errors = GaussianData(CosinePath(), 0.7, 0.77), []  # variance .60
    for num_steps in (100, 200, 400):
        grid = steps(num_steps, 0.0, 1.0)
        mean, variance = affine_moments(lambda x, z, g=grid: euler_maruyama(data.field, x, g, diffusion, z), num_steps)
        errors.append(max(abs(mean - 0.7), abs(variance - 0.77**2)))
    assert errors[-1] < 0.02, errors
    assert errors[0] / errors[1] > 1.7
    assert errors[1] / errors[2] > 1.7


def test_the_last_step_is_free_of_noise():
    data = GaussianData(StraightPath(), 0.0, 0.5)
    asked = []

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.ones(1, 1, dtype=torch.float64)

    euler_maruyama(data.field, numbers(1, 1), steps(5), constant_diffusion(1.0), noise)
    assert asked == [0, 1, 2, 3]


def test_the_reverse_vp_sde_is_the_member_with_sigma_squared_beta():
    """dx = [beta x / 2 + beta score] dt + sqrt(beta) dW, in our direction of time (Song et al. 2021, eq. 6 and 11)."""
    path = VariancePreservingPath()
    data, x, t = GaussianData(path, 0.7, 0.6), numbers(5, 1), steps(4, 0.1, 1.0)
    beta, score = path.rate(t)[:, None], data.field.score(x, t)
    torch.testing.assert_close(vp_diffusion(path)(t) ** 2, path.rate(t), rtol=1e-12, atol=0)
    ours = data.velocity(x, t) + vp_diffusion(path)(t)[:, None] ** 2 / 2 * score
    torch.testing.assert_close(ours, beta * x / 2 + beta * score, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_with_noise_keeps_the_variance(eta):
    data, num_steps = GaussianData(VariancePreservingPath(), 0.7, 0.77), 1000
    mean, variance = affine_moments(lambda x, z: ddim_eta(data.field, x, steps(num_steps), eta, z), num_steps)
    assert mean == pytest.approx(0.7, abs=5e-3)
    assert variance == pytest.approx(0.77**2, abs=8e-3)


@pytest.mark.parametrize("solver", [euler, ab2, dpmpp_2m])
def test_memory_does_not_grow_with_the_number_of_steps(solver):
    """Objects of Python and of torch: nothing is kept for each step."""
    field, peaks = Field(lambda x, t: x, CosinePath()), []
    for num_steps in (200, 2000):
        grid = steps(num_steps)
        solver(field, numbers(1, 1), grid)  # whatever is made once
        tracemalloc.start()
        solver(field, numbers(1, 1), grid)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 1800 < sys.getsizeof(object()), peaks  # bytes a step: not one object each


def test_steps_are_the_same_in_one_block_or_in_many(monkeypatch):
    data, ends = GaussianData(CosinePath(), 0.7, 0.6), []
    for size in (1, 3, 64):
        monkeypatch.setattr("models.flow.solver.BLOCK_STEPS", size)
        ends.append([solver(data.field, numbers(4, 1), steps(20)) for solver in (euler, ab2, dpmpp_2m, unipc)])
    assert all(torch.equal(a, b) for other in ends[:2] for a, b in zip(other, ends[2], strict=True))


def test_state_stays_wide_whatever_the_network_computes_in():
    field = Field(lambda x, t: x.bfloat16(), StraightPath())
    for solver in (euler, heun, ab2, ddim):
        assert solver(field, numbers(2, 3), steps(4)).dtype == torch.float64


def test_inversion_comes_back():
    field, x_1 = GaussianData(CosinePath(), 0.7, 0.4).field, 0.7 + 0.4 * numbers(6, 2)
    x_0 = invert(field, x_1, steps(100))
    torch.testing.assert_close(x_0, (x_1 - 0.7) / 0.4, rtol=0, atol=1e-7)
    torch.testing.assert_close(rk4(field, x_0, steps(100)), x_1, rtol=0, atol=1e-8)


def test_checkerboard_posterior_mean_against_quadrature():
    """The benchmark's closed form, by adding up the board in small pieces."""
    path, x, t = StraightPath(), numbers(6, 2), times(0.05, 0.3, 0.5, 0.7, 0.8, 0.9)
    pitch = 1 / 64
    inner = (torch.arange(64, dtype=torch.float64) + 0.5) * pitch
    points = (SQUARES[:, None] + torch.cartesian_prod(inner, inner)).flatten(0, 1)
    at = path.at(t, x)
    weights = (-(x[:, None] - at.a[:, None] * points).square().sum(-1) / (2 * at.b**2)).softmax(1)
    torch.testing.assert_close(posterior_mean(path, x, t), weights @ points, rtol=0, atol=2e-3)


def test_straight_paths_need_fewer_calls_on_the_checkerboard():
    """Lipman et al. 2022, figure 7: here, as many samples in the right squares at 10 calls as VP has at 20."""
    noise = numbers(500, 2)
    shares = [
        share_inside(euler(exact_field(path), noise, steps(num_calls)))
        for path, num_calls in ((StraightPath(), 10), (VariancePreservingPath(), 20))
    ]
    assert shares[0] >= shares[1]
    assert shares[0] > 0.95


@pytest.mark.parametrize("prediction", ["data", "noise", "score"])
def test_solvers_stay_clear_of_the_end_where_a_prediction_leaves_the_velocity_open(prediction):
    """At t = 1 the velocity of an imperfect data prediction is 0 / 0: two-slope solvers end with a one-slope step."""
    path = CosinePath()
    data = GaussianData(path, 0.7, 0.4)
    asked = []

    def wrong(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t.max()))
        return from_velocity(path.at(t, x), prediction, x, data.velocity(x, t)) + 0.01

    for solver in (heun, rk4):
        end = solver(Field(wrong, path, prediction), numbers(5, 1), steps(50, 0.01, 1.0))
        assert bool((end.abs() < 5).all())
    assert max(asked) < 1


# ------------------------------------------------------------------ frames


@dataclass(frozen=True)
class VideoData:
    """An AR(1) "video": zero mean, frames correlated by rho^|i - j|, with times per frame."""

    path: Path
    covariance: Tensor

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        at = self.path.at(t, x)
        a, b = (value.expand_as(x)[:, 0] for value in (at.a, at.b))  # b frames
        joint = a[:, :, None] * self.covariance * a[:, None] + torch.diag_embed(b**2)
        solved = torch.linalg.solve(joint, x[:, 0, :, None])  # joint^-1 x
        data = (self.covariance @ (a[:, :, None] * solved))[..., 0][:, None]
        noise = (b[:, :, None] * solved)[..., 0][:, None]
        return at.velocity(noise, data)


def ar1(num_frames: int, rho: float) -> Tensor:
    frames = torch.arange(num_frames, dtype=torch.float64)
    return rho ** (frames[:, None] - frames).abs()


@pytest.mark.parametrize("schedule", [full_sequence, pyramid, autoregressive])
def test_every_schedule_over_frames_reaches_the_videos_covariance(schedule):
    """Chen et al. 2024: with times per frame, any path from all-noise to all-data has the same end."""
    covariance, errors = ar1(4, 0.8), []
    field = Field(VideoData(StraightPath(), covariance).velocity, StraightPath())
    basis = torch.eye(4, dtype=torch.float64)[:, None]  # b 1 frames
    for num_steps in (20, 40):
        end = heun(field, basis, schedule(steps(num_steps), 4))[:, 0]  # linear: the rows are the map
        errors.append((end.T @ end - covariance).abs().max().item())
    assert errors[1] < 3e-3
    assert errors[0] / errors[1] > 3


def test_known_frames_give_the_conditional_of_the_rest():
    """Frames held at t = 1 are clean from the start; the others then follow the Gaussian conditional."""
    covariance = ar1(3, 0.8)
    field = Field(VideoData(StraightPath(), covariance).velocity, StraightPath())
    schedule = full_sequence(steps(200), 3).clone()
    schedule[:, 0] = 1.0
    known = 1.3
    probes = torch.tensor([[known, 0, 0], [known, 1, 0], [known, 0, 1]], dtype=torch.float64)[:, None]
    end = heun(field, probes, schedule)[:, 0]
    assert torch.equal(end[:, 0], torch.full((3,), known, dtype=torch.float64))
    rest, given = covariance[1:, 1:], covariance[1:, :1]
    torch.testing.assert_close(end[0, 1:], (given * known)[:, 0], rtol=0, atol=1e-4)
    effects = end[1:, 1:] - end[0, 1:]
    torch.testing.assert_close(effects.T @ effects, rest - given @ given.T, rtol=0, atol=1e-4)


def test_clamping_ends_at_what_is_known():
    covariance = ar1(3, 0.8)
    field = Field(VideoData(StraightPath(), covariance).velocity, StraightPath())
    x_0, known = numbers(2, 1, 3), numbers(2, 1, 3, seed=1)
    mask = torch.tensor([1, 0, 0])
    end = heun(clamped(field, known, mask, x_0), x_0, steps(50))
    torch.testing.assert_close(end[..., 0], known[..., 0], rtol=0, atol=1e-12)
    assert not torch.allclose(end[..., 1:], heun(field, x_0, steps(50))[..., 1:], atol=1e-2)


# ------------------------------------------------------------------ guidance


def two_gaussians(path: Path) -> tuple[GaussianData, GaussianData]:
    return GaussianData(path, 1.0, 0.7), GaussianData(path, -0.5, 0.7)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
def test_guidance_of_two_gaussians(scale):
    """Equal covariance: guided samples are N(m_u + w (m_c - m_u), same covariance)."""
    path, quantiles = CosinePath(), steps(4, -2, 2)[:, None]
    cond, uncond = two_gaussians(path)
    field = guided(Branches(cond.velocity, uncond.velocity), path, "velocity", Plain(scale))
    end = rk4(field, quantiles, steps(1000))
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


# ------------------------------------------------------------------ likelihood


@pytest.mark.parametrize("path", [StraightPath(), CosinePath(), PATHS[-1]], ids=lambda path: type(path).__name__)
def test_likelihood_of_a_gaussian(path):
    """log N(x; mean, std²), by the change of density along the flow (Lipman et al. 2022, eq. 32)."""
    data, x, exact = GaussianData(path, 0.7, 0.6), 0.7 + 0.6 * numbers(5, 3), partial(dopri5, tolerance=1e-11)
    expected = torch.distributions.Normal(*times(0.7, 0.6)).log_prob(x).sum(1)
    torch.testing.assert_close(log_likelihood(data.field, x, steps(1), solver=exact), expected, rtol=0, atol=1e-8)
    # a diagonal Jacobian: one probe has no variance
    for seed in (1, 2):
        probe = rademacher(x, torch.Generator().manual_seed(seed))
        probed = log_likelihood(data.field, x, steps(1), probed_divergence(probe), exact)
        torch.testing.assert_close(probed, expected, rtol=0, atol=1e-8)


def test_probed_divergence_is_right_on_average_over_all_probes():
    matrix, x, t = numbers(4, 4), numbers(1, 4, seed=1), times(0.5)
    field = Field(lambda y, s: y @ matrix.T, StraightPath())
    signs = torch.cartesian_prod(*[times(-1, 1)] * 4)
    estimates = torch.stack([probed_divergence(sign[None])(field, x, t)[1] for sign in signs])
    torch.testing.assert_close(estimates.mean(0), exact_divergence(field, x, t)[1])
    torch.testing.assert_close(estimates.mean(), matrix.trace())
    assert estimates.std() > 0.1


def test_bits_per_dimension():
    """Uniform noise over 256 levels of [-1, 1] costs 8 bits; dequantised values stay within half a level."""
    level, dimensions = 2 / 256, 12
    log_density = torch.full((3,), -dimensions * math.log(2.0), dtype=torch.float64)  # density 1/2 on [-1, 1]
    torch.testing.assert_close(bits_per_dimension(log_density, dimensions, level), torch.full((3,), 8.0).double())
    x = numbers(100)
    spread = dequantize(x, level, torch.rand(100, dtype=torch.float64)) - x
    assert bool((spread.abs() <= level / 2).all())


# ------------------------------------------------------------------ wrong input


def test_wrong_input_is_said():
    path, x = StraightPath(), numbers(4, 3)
    with pytest.raises(ValueError, match=r"times in \[0, 1\], got 0 to 1.5"):
        path.at(times(0, 1.5, 0, 0), x)
    with pytest.raises(ValueError, match=r"times of shape \(3,\) do not broadcast from the left over \(4, 3\)"):
        path.at(times(0, 0, 0), x)
    with pytest.raises(ValueError, match="unknown prediction 'x0': expected one of velocity, data, noise, score"):
        check_prediction("x0")
    with pytest.raises(ValueError, match="a schedule of 2 frames does not fit a state of shape"):
        euler(Field(lambda x, t: x, path), numbers(1, 1, 3), full_sequence(steps(2), 2))
    with pytest.raises(ValueError, match="one time for all frames"):
        log_likelihood(Field(lambda x, t: x, path), numbers(1, 1, 2), full_sequence(steps(2), 2))
    sde = partial(euler_maruyama, diffusion=constant_diffusion(1.0), noise=lambda step: torch.zeros(()))
    with pytest.raises(ValueError, match="expected a deterministic solver such as rk4 or dopri5, got euler_maruyama"):
        log_likelihood(Field(lambda x, t: x, path), numbers(1, 1), steps(2), solver=sde)
    with pytest.raises(ValueError, match="a solver of velocities such as rk4 or dopri5, got dpmpp_2m"):
        invert(Field(lambda x, t: x, path), numbers(1, 1), steps(2), dpmpp_2m)
