"""Distribution matching against the closed forms of Gaussian data and Gaussian generators, in float64."""

import pytest
import torch
from torch import Tensor

from models.flow.distribution_matching import (
    FIRST_TIME,
    LAST_TIME,
    generator_loss,
    matching_gradient,
    matching_times,
    renoised,
    renoising_solver,
    simulated_states,
)
from models.flow.field import Field
from models.flow.path import CosinePath, Path, PolynomialPath, StraightPath
from models.flow.solver import Counted
from testing.flow_maps import exact_map
from testing.gaussians import GaussianData, affine_moments, numbers, steps, times

PATHS = [StraightPath(), StraightPath(sigma_min=0.1), CosinePath(), PolynomialPath(2.0)]
each_of_these = pytest.mark.parametrize("path", PATHS, ids=str)
MEAN, STD = 0.7, 0.4

# Noise of a sample, and of the state it is noised to: four points, whose moments up to the third are the Gaussian's.
NOISE = torch.tensor([[-1.0, -1.0, 1.0, 1.0]]).double()
RENOISE = torch.tensor([[-1.0, 1.0, -1.0, 1.0]]).double()


def gradients(path: Path, mean: float, std: float, t: float) -> tuple[Tensor, Tensor]:
    """d KL / d mean and d KL / d std of a generator mean + std noise, by the loss and an exact critic.

    The four points are one sample, so that one distance divides the gradient of them all.
    """
    generator = torch.tensor([mean, std], dtype=torch.float64, requires_grad=True)
    x = generator[0] + generator[1] * NOISE
    x_t = renoised(path, x.detach(), times(t), RENOISE)
    real = GaussianData(path, MEAN, STD).field.data(x_t, times(t))
    fake = GaussianData(path, mean, std).field.data(x_t, times(t))
    (gradient,) = torch.autograd.grad(generator_loss(x, real, fake).sum(), generator)
    at = path.coefficients(times(t))
    weight = (at.a / at.b) ** 2 * (
        x - real
    ).detach().abs().mean()  # of score over estimate of the data, and of the distance
    mean_part, std_part = (gradient * weight).unbind()
    return mean_part, std_part


@pytest.mark.parametrize("path", [StraightPath(), CosinePath(), PolynomialPath(2.0)], ids=str)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("mean", "std"), [(0.7, 0.4), (0.2, 0.4), (1.0, 0.4), (0.7, 0.9), (0.7, 0.1), (-0.5, 0.8)])
def test_the_gradient_is_that_of_the_divergence_between_noised_samples_and_noised_data(path, t, mean, std):
    """KL(N(a m, V) || N(a m', V')) with V = (a s)² + b²: zero where the generator is the data, and nowhere else."""
    at = path.coefficients(times(t))
    real, fake = ((at.a * each) ** 2 + at.b**2 for each in (STD, std))
    expected = at.a**2 * (mean - MEAN) / real, at.a**2 * std * (1 / real - 1 / fake)
    for got, wanted in zip(gradients(path, mean, std, t), expected, strict=True):
        torch.testing.assert_close(got, wanted.squeeze(), rtol=1e-11, atol=1e-12)
    is_data = (mean, std) == (MEAN, STD)
    assert all(abs(float(part)) < 1e-12 for part in gradients(path, mean, std, t)) == is_data


def test_the_loss_is_the_gradient_over_the_number_of_values_and_leaves_given_frames_alone():
    x, real, fake = (numbers(3, 2, 4, 5, seed=seed) for seed in range(3))
    known = torch.tensor([[True, False, False, True]]).expand(3, 1, 4)
    x.requires_grad_()
    for frames, num_values in ((None, 40), (known, 20)):
        gradient = matching_gradient(x, real, fake, frames)
        (got,) = torch.autograd.grad(generator_loss(x, real, fake, frames).sum(), x)
        torch.testing.assert_close(got, gradient / num_values)
        made = slice(None) if frames is None else slice(1, 3)
        distance = (x - real)[:, :, made].abs().mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(gradient[:, :, made], (fake - real)[:, :, made] / distance)
    assert bool((matching_gradient(x, real, fake, known)[:, :, [0, 3]] == 0).all())
    assert bool((matching_gradient(x, x.detach(), x.detach()) == 0).all())  # not 0 / 0


@each_of_these
@pytest.mark.parametrize("calls", [1, 2, 4])
def test_the_exact_map_gives_the_data_in_any_number_of_calls(path, calls):
    """Also with noise left at the end of the path, which new noise is added to."""
    u = Counted(exact_map(path, MEAN, STD))

    def sample(x: Tensor, noise) -> Tensor:
        return renoising_solver(u, noise)(Field(lambda x, t: x, path), x, steps(calls))

    mean, variance = affine_moments(sample, calls - 1)
    data = GaussianData(path, MEAN, STD).moments(1.0)
    assert (mean, variance) == pytest.approx((data[0], data[1] ** 2), abs=1e-12)
    assert u.calls == calls


@each_of_these
def test_samples_stay_at_time_1_and_have_the_path_s_moments_before(path):
    x = numbers(5, 3)
    assert torch.equal(renoised(path, x, times(1, 1, 1, 1, 1), numbers(5, 3, seed=1)), x)
    data = GaussianData(path, MEAN, STD)
    end = data.moments(1.0)
    mean, variance = affine_moments(
        lambda x, noise: renoised(path, end[0] + x, times(0.3).expand(len(x)), noise(0)), 1, std_0=end[1]
    )
    assert (mean, variance**0.5) == pytest.approx(data.moments(0.3), abs=1e-12)


def test_a_student_is_trained_where_its_own_sampling_leads():
    """States and times of a simulation are what the solver calls the network with, bit for bit."""
    path, grid = CosinePath(), steps(4)
    x_0, noises = numbers(8, 3), [numbers(8, 3, seed=seed) for seed in (1, 2, 3)]
    seen: list[tuple[Tensor, Tensor]] = []

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        assert bool((s == 1).all())
        seen.append((x, t))
        return x.sin() * x.sum(1, keepdim=True) + t[:, None]

    renoising_solver(u, lambda number: noises[number])(Field(lambda x, t: x, path), x_0, grid)
    called, call = seen.copy(), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    begin = [t.expand(8) for t in grid[:-1]]
    state, t = simulated_states(u, path, x_0.requires_grad_(), begin, call, noises)
    for row, number in enumerate(call.tolist()):
        assert torch.equal(state[row], called[number][0][row])
        assert t[row] == called[number][1][row]
    assert not state.requires_grad
    assert len(seen) == 4 + 3


def test_times_of_training_are_where_estimates_differ():
    t = times(0, 0.01, 0.4, 1)
    assert matching_times(t).tolist() == [FIRST_TIME, FIRST_TIME, 0.4, LAST_TIME]
