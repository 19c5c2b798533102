"""Losses, their weights, the laws of training times and the optimal coupling."""

import math

import pytest
import torch

from models.flow.field import from_velocity, velocity_weight
from models.flow.grid import uniform_grid
from models.flow.objective import matching_loss, optimal_coupling, stratified, training_times
from models.flow.path import StraightPath, VariancePreservingPath
from models.flow.spec import TimeLaw
from testing.gaussians import PREDICTIONS, GaussianData, each_path, numbers, steps, times


def test_loss_floor_of_gaussian_data_and_a_network_that_comes_down_to_it():
    """Data N(0, s²), straight path, uniform t: no network gets below s pi / 2 per dimension."""
    std, num = 0.5, 400_000
    data, t = GaussianData(StraightPath(), 0.0, std), (torch.arange(num, dtype=torch.float64) + 0.5) / num
    x_0, x_1 = numbers(num, 1, seed=1), std * numbers(num, 1, seed=2)
    point = data.path.sample(x_0, x_1, t)
    floor = std * math.pi / 2

    def loss_of(velocity, part: slice | torch.Tensor = slice(None)):
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


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_conditional_loss_has_the_marginal_losss_gradient(prediction):
    """On a finite data set, by quadrature, of velocities (Lipman et al. 2022, theorem 2) and of all that are linear in
    them, the score among them (Holderrieth & Erives 2025, denoising score matching).
    """
    data, x, path = times(-1.0, 0.2, 1.3), steps(400, -6, 6), StraightPath()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    losses = []
    for t in (0.2, 0.6):
        at = path.coefficients(times(t))
        likelihood = (-((x[:, None] - at.a * data) ** 2) / (2 * at.b**2)).exp()
        conditional = from_velocity(at, prediction, x[:, None], at.velocity_of_data(x[:, None], data))
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


def test_pairs_of_a_flow_have_straight_paths_that_do_not_cross():
    """Reflow (Liu et al. 2022, theorem 3.3): the loss of the exact velocity is 0, and one step of Euler is the map.

    Noise that knows nothing of its data leaves a loss of at least std pi / 2 in the mean over times.
    """
    mean, std, path, x_0 = 0.7, 0.4, StraightPath(), numbers(500, 1)
    x_1 = mean + std * x_0  # where the flow of N(mean, std²) takes it
    t = steps(499, 0.0, 0.998)
    noise = (path.sample(x_0, x_1, t).x_t - t[:, None] * mean) / (1 - t + t * std)[:, None]
    paired = mean + (std - 1) * noise
    assert matching_loss(path, "velocity", paired, x_0, x_1, t).max() < 1e-25
    torch.testing.assert_close(x_0 + mean + (std - 1) * x_0, x_1, rtol=0, atol=1e-15)
    drawn = mean + std * numbers(500, 1, seed=1)
    best = GaussianData(path, mean, std).velocity(path.sample(x_0, drawn, t).x_t, t)
    assert matching_loss(path, "velocity", best, x_0, drawn, t).mean() > 0.8 * std * math.pi / 2


@each_path
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_weight_turns_each_loss_into_the_velocitys(path, prediction):
    x_0, x_1, t = numbers(5, 3), numbers(5, 3, seed=1), steps(4, 0.1, 0.7)  # before the weight is bounded
    at, point = path.at(t, x_1), path.sample(x_0, x_1, t)
    wrong = point.velocity + 0.1 * numbers(5, 3, seed=2)
    predicted = from_velocity(at, prediction, point.x_t, wrong)
    loss = matching_loss(path, prediction, predicted, x_0, x_1, t, "velocity")
    torch.testing.assert_close(loss, (wrong - point.velocity).square().mean(1), rtol=1e-10, atol=0)
    plain = matching_loss(path, prediction, predicted, x_0, x_1, t)
    scaled = plain[:, None] * velocity_weight(at, prediction)
    torch.testing.assert_close(scaled[:, 0], loss, rtol=1e-10, atol=0)


@each_path
@pytest.mark.parametrize("weight", ["plain", "velocity"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score"])
def test_no_loss_grows_without_bound_towards_the_data(path, prediction, weight):
    """Training times in float32 come to 1.0, where a factor of 1 / (1 - t)² is 1e14 and more."""
    t = torch.tensor([0.9, 0.999, 1 - 1e-7, 1.0])
    x_0, x_1, predicted = numbers(3, 4, 5).float().unbind(0)
    predicted.requires_grad_()
    loss = matching_loss(path, prediction, predicted, x_0, x_1, t, weight)
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    assert gradient.isfinite().all()
    if weight == "velocity" or prediction != "score":  # whose own error has no bound
        assert loss.max() < 1e4, loss


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


def test_a_coupling_tells_the_noise_nothing_of_the_condition():
    """Data at -3 and 3: exchanged over both labels, noise of the label 3 has mean 0.8, while sampling assumes 0."""
    labels = [0, 1] * 64
    x_0, x_1 = numbers(128, 1), (6 * torch.tensor(labels) - 3)[:, None] + 0.3 * numbers(128, 1, seed=1)
    found = optimal_coupling(x_0, x_1, labels)
    for label in (0, 1):
        own = torch.tensor(labels) == label
        assert torch.equal(x_0[found][own].sort(0).values, x_0[own].sort(0).values)  # the same noises, all of them
        assert torch.equal(x_0[own][optimal_coupling(x_0[own], x_1[own])], x_0[found][own])  # by the best permutation
    mixed = x_0[optimal_coupling(x_0, x_1)][torch.tensor(labels) == 1]
    assert mixed.mean() > 0.6


@pytest.mark.parametrize("weight", ["plain", "velocity"])
@pytest.mark.parametrize("prediction", ["velocity", "data", "noise", "score"])
def test_given_frames_leave_the_loss(prediction, weight):
    """The loss is that of the other frames alone, and no gradient reaches what was predicted for the given ones."""
    torch.manual_seed(0)
    path = VariancePreservingPath()
    x_0, x_1, predicted = torch.randn(3, 2, 4, 3, 2, 2, dtype=torch.float64).unbind(0)
    predicted.requires_grad_()
    known = torch.zeros(2, 1, 3, dtype=torch.bool)
    known[0, 0, 0] = True
    t = torch.where(known, 1.0, torch.tensor([0.3, 0.7])[:, None, None]).double()
    loss = matching_loss(path, prediction, predicted, x_0, x_1, t, weight, known)
    rest = matching_loss(path, prediction, predicted[:1, :, 1:], x_0[:1, :, 1:], x_1[:1, :, 1:], t[:1, :, 1:], weight)
    torch.testing.assert_close(loss[:1], rest)
    torch.testing.assert_close(loss[1:], matching_loss(path, prediction, predicted, x_0, x_1, t, weight)[1:])
    (gradient,) = torch.autograd.grad(loss.sum(), predicted)
    assert gradient.isfinite().all()
    assert (gradient[0, :, 0] == 0).all()
    assert (gradient[0, :, 1:] != 0).all()
