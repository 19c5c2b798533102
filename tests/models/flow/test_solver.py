"""Solvers against closed forms: order of convergence, noise, memory, known frames."""

import math
import sys
import tracemalloc
from functools import partial

import pytest
import torch
from torch import Tensor

from models.flow.field import Field, check_prediction, from_velocity
from models.flow.grid import full_sequence, uniform_grid
from models.flow.likelihood import (
    log_likelihood,
)
from models.flow.path import (
    CosinePath,
    StraightPath,
    VariancePreservingPath,
)
from models.flow.solver import (
    Counted,
    Noise,
    ab2,
    ddim,
    ddim_eta,
    dopri5,
    dpmpp_2m,
    euler,
    euler_maruyama,
    falling_diffusion,
    heun,
    invert,
    midpoint,
    rk4,
    unipc,
)
from testing.checkerboard import exact_field, share_inside
from testing.gaussians import GaussianData, affine_moments, constant_diffusion, numbers, steps, times, vp_diffusion


@pytest.mark.parametrize("grid", [times(0, 0.5, 0.5), times(1, 0), times(0.5), times(0, 1.5)])
def test_a_grid_that_does_not_increase_is_refused(grid):
    with pytest.raises(ValueError, match="strictly increasing"):
        euler(Field(lambda x, t: x, StraightPath()), numbers(1, 1), grid)


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


@pytest.mark.parametrize("open_end", [False, True])
def test_an_adaptive_solver_ends_at_1_and_no_later(open_end):
    """The velocity 3 t² has no meaning beyond t = 1, and with an open end none at 1."""
    asked = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t.max()))
        return (3 * t**2)[:, None].expand_as(x)

    end = dopri5(Field(velocity, StraightPath(), open_end=open_end), torch.zeros(1, 1).double(), steps(1))
    assert end.item() == pytest.approx(1, abs=1e-5)
    assert max(asked) < 1 if open_end else max(asked) <= 1
    assert len(asked) < 50


def test_an_adaptive_solver_guesses_its_first_step_within_the_path():
    """Of a velocity that is small beside the state, the guess is longer than the whole path."""
    asked, start = [], torch.full((1, 1), 100.0).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t.max()))
        return torch.full_like(x, 1e-3)

    end = dopri5(Field(velocity, StraightPath()), start, steps(1))
    assert end.item() == pytest.approx(100.001, abs=1e-9)
    assert max(asked) == 1


def test_an_adaptive_solver_follows_data_predictions():
    path, quantiles = StraightPath(), steps(4, -1, 1)[:, None]
    data = GaussianData(path, 0.7, 0.4)
    field = Field(lambda x, t: from_velocity(path.at(t, x), "data", x, data.velocity(x, t)), path, "data")
    torch.testing.assert_close(dopri5(field, quantiles, steps(1)), 0.7 + 0.4 * quantiles, rtol=0, atol=1e-5)


def test_what_starts_where_the_velocity_is_undefined_is_refused():
    field = Field(lambda x, t: x, StraightPath(), "data")
    for function in (invert, log_likelihood):
        with pytest.raises(ValueError, match=r"undefined at t = 1, where this starts"):
            function(field, numbers(1, 1), steps(2))


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


DIFFUSIONS = {
    "constant": constant_diffusion(0.7),
    "falling": falling_diffusion(CosinePath(), 0.7),
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


@pytest.mark.parametrize(
    "path", [StraightPath(), CosinePath(), VariancePreservingPath()], ids=lambda p: type(p).__name__
)
def test_a_falling_diffusion_suits_narrow_data(path):
    """A constant one needs steps of h < 4 variance / sigma²."""
    for std in (0.05, 0.01):
        data = GaussianData(path, 0.0, std)
        flow = affine_moments(lambda x, z, d=data: heun(d.field, x, steps(50)), 0)[1] ** 0.5
        for num_steps in (50, 200):

            def sample(x: Tensor, noise: Noise, data=data, num_steps=num_steps) -> Tensor:
                return euler_maruyama(data.field, x, steps(num_steps), falling_diffusion(path, 1.0), noise)

            found = affine_moments(sample, num_steps)[1] ** 0.5
            assert std / 3 < found < 1.7 * max(std, flow)
            if std == 0.05:
                assert std / 1.5 < found < 1.5 * std


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
    for num_steps in (100, 500):
        grid = steps(num_steps)
        solver(field, numbers(1, 1), grid)  # whatever is made once
        tracemalloc.start()
        solver(field, numbers(1, 1), grid)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 400 < sys.getsizeof(object()), peaks  # bytes a step: not one object each


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


def eight_points(x: Tensor, t: Tensor) -> Tensor:
    """The velocity of the straight path to eight Gaussians of standard deviation 0.1 on a circle of radius 2."""
    angles, std = torch.arange(8, dtype=torch.float64) * math.pi / 4, 0.1
    centres, t = 2 * torch.stack([angles.cos(), angles.sin()], 1), t[:, None, None]
    variance = (1 - t) ** 2 + (t * std) ** 2
    offsets = x[:, None] - t * centres
    weights = torch.softmax(-offsets.square().sum(2, keepdim=True) / (2 * variance), 1)
    data = (weights * (centres + t * std**2 / variance * offsets)).sum(1)
    return (data - x) / (1 - t[:, 0]).clamp_min(1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_two_slopes_are_no_worse_than_one_at_four_calls(shift):
    """Narrow data, whose flow bends near t = 1: methods of order 2 at one call a step beat Euler's there too."""
    noise, field = numbers(500, 2), Field(eight_points, StraightPath())
    exact = heun(field, noise, steps(500, 0, 1 - 1e-5))
    error = {
        solver: (solver(field, noise, uniform_grid(4, shift)) - exact).norm(dim=1).mean().item()
        for solver in (euler, ab2, dpmpp_2m, unipc)
    }
    assert all(error[solver] < 0.96 * error[euler] for solver in (ab2, dpmpp_2m, unipc)), error


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
