"""models/flow against closed forms, in float64."""

import math

import pytest
import torch
from torch import Tensor

from models.flow.guidance import guide, guided_velocity
from models.flow.objective import TimeLaw, flow_matching_loss
from models.flow.path import StraightPath, broadcast_time
from models.flow.solver import euler, heun, solve, uniform_grid
from models.text import CaptionTokens

torch.manual_seed(0)
PATH = StraightPath()


def gaussian_velocity(mean: Tensor, std: float):
    """Marginal velocity of the straight path to N(mean, std^2): closed form (Holderrieth & Erives 2025, ex. 10)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, 1)
        variance = (t * std) ** 2 + (1 - t) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


def test_path_ends_are_noise_and_data():
    x_0, x_1 = torch.randn(2, 4, 3, dtype=torch.float64).unbind(0)
    assert torch.equal(PATH.sample(x_0, x_1, torch.zeros(4, dtype=torch.float64)).x_t, x_0)
    assert torch.equal(PATH.sample(x_0, x_1, torch.ones(4, dtype=torch.float64)).x_t, x_1)


def test_velocity_points_from_noise_to_data():
    """The sign convention: t runs from noise to data (Lipman et al. 2022, eq. 23)."""
    x_0, x_1 = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    assert torch.equal(PATH.sample(x_0, x_1, torch.tensor([0.3]).double()).velocity, torch.ones(1, 2).double())


def test_conversions_are_inverse_to_the_path():
    x_0, x_1 = torch.randn(2, 5, 3, 4, dtype=torch.float64).unbind(0)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    point = PATH.sample(x_0, x_1, t)
    torch.testing.assert_close(PATH.to_data(point.x_t, point.velocity, t), x_1, rtol=0, atol=1e-12)
    torch.testing.assert_close(PATH.to_noise(point.x_t, point.velocity, t), x_0, rtol=0, atol=1e-12)


def test_velocity_is_the_time_derivative():
    x_0, x_1 = torch.randn(2, 6, dtype=torch.float64).unbind(0)

    def x_at(t: Tensor) -> Tensor:
        return PATH.sample(x_0[None], x_1[None], t[None]).x_t[0]

    t = torch.tensor(0.37, dtype=torch.float64)
    _, derivative = torch.func.jvp(x_at, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(derivative, PATH.sample(x_0[None], x_1[None], t[None]).velocity[0])


def test_times_must_be_one_per_sample():
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"one time per sample, shape \(4,\), got \(3,\)"):
        broadcast_time(torch.zeros(3), x)


def test_time_law_is_logit_normal():
    normal = torch.randn(20_000)
    logits = torch.logit(TimeLaw(mean=0.3, std=0.7).times(normal).double())
    assert abs(logits.mean() - 0.3) < 0.02
    assert abs(logits.std() - 0.7) < 0.02


def test_shift_moves_times_towards_noise_and_composes():
    """shift s: t -> t / (t + s (1 - t)); shifting by a then b is shifting by ab."""
    normal = torch.linspace(-3, 3, 50)
    plain, shifted = TimeLaw().times(normal), TimeLaw(shift=3.0).times(normal)
    torch.testing.assert_close(shifted, plain / (plain + 3 * (1 - plain)))
    assert bool((shifted < plain).all())
    grid = uniform_grid(10, 6.0)
    twice = uniform_grid(10, 2.0)
    torch.testing.assert_close(grid, twice / (twice + 3 * (1 - twice)))


def test_loss_floor_of_gaussian_data():
    """Data N(0, s^2), straight path, uniform t: the best loss is s pi / 2 per dimension, reached by the marginal."""
    std, num = 0.5, 400_000
    generator = torch.Generator().manual_seed(1)
    x_0, normal = (torch.randn(num, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    t = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    point = PATH.sample(x_0, std * normal, t)
    best = gaussian_velocity(torch.zeros(1).double(), std)(point.x_t, t)
    assert flow_matching_loss(best, point.velocity).mean().item() == pytest.approx(std * math.pi / 2, rel=0.01)


def test_uniform_grid():
    torch.testing.assert_close(uniform_grid(4), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    with pytest.raises(ValueError, match="at least one step"):
        uniform_grid(0)


def test_solvers_refuse_a_grid_that_does_not_increase():
    with pytest.raises(ValueError, match="strictly increasing"):
        euler(lambda x, t: x, torch.zeros(1, 1), torch.tensor([0.0, 0.5, 0.5]))


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)])
def test_convergence_order(solver, order):
    """Exact flow of a Gaussian: psi_1(x) = mean + std x. Halving the step divides the error by 2^order."""
    mean, std = torch.tensor([0.7]).double(), 0.6
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for num_steps in (32, 64, 128):
        grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        end = solver(gaussian_velocity(mean, std), noise, grid)
        errors.append((end - (mean + std * noise)).abs().max().item())
    measured = math.log2(errors[-2] / errors[-1])
    assert measured > order - 0.1


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_euler_is_exact_on_point_mass_data(num_steps):
    """All data at one point: the flow is straight (Lipman et al. 2022, section 4.1)."""
    target = torch.tensor([[1.5, -2.0]]).double()

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return (target - x) / (1 - t.reshape(-1, 1))

    grid = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    end = euler(velocity, torch.randn(4, 2, dtype=torch.float64), grid)
    torch.testing.assert_close(end, target.expand(4, 2), rtol=0, atol=1e-12)


def test_solve_picks_by_name():
    grid, noise = uniform_grid(3), torch.randn(2, 3)
    for name, solver in (("euler", euler), ("heun", heun)):
        assert torch.equal(solve(name, lambda x, t: x, noise, grid), solver(lambda x, t: x, noise, grid))


def test_guidance_scale_one_is_the_caption_and_zero_the_null():
    v_cond, v_uncond = torch.randn(2, 3, 4).unbind(0)
    torch.testing.assert_close(guide(v_cond, v_uncond, 1.0), v_cond)
    torch.testing.assert_close(guide(v_cond, v_uncond, 0.0), v_uncond)
    torch.testing.assert_close(guide(v_cond, v_uncond, 3.0) - v_uncond, 3 * (v_cond - v_uncond))


def test_guidance_of_two_gaussians():
    """Equal covariance: guided samples are N(m_u + w (m_c - m_u), same covariance), exactly."""
    m_c, m_u, std = torch.tensor([1.0]).double(), torch.tensor([-0.5]).double(), 0.7
    noise, grid = torch.linspace(-2, 2, 5).double()[:, None], torch.linspace(0, 1, 401).double()
    for scale in (0.0, 1.0, 3.0, 7.5):

        def velocity(x: Tensor, t: Tensor, scale: float = scale) -> Tensor:
            return guide(gaussian_velocity(m_c, std)(x, t), gaussian_velocity(m_u, std)(x, t), scale)

        plain = heun(gaussian_velocity(m_u, std), noise, grid)
        guided = heun(velocity, noise, grid)
        # d(shift)/dt = w (m_c - m_u) + (same linear term) * shift: both flows share their linear part
        torch.testing.assert_close(guided - plain, (scale * (m_c - m_u)).expand(5, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "expected_batch"), [(0.0, 2), (1.0, 2), (3.0, 4)])
def test_guidance_calls_the_network_once(scale, expected_batch):
    """One call per evaluation; a branch whose weight is zero is not computed."""
    batches = []

    def network(x: Tensor, t: Tensor, caption: CaptionTokens) -> Tensor:
        batches.append(len(x))
        assert len(caption.ids) == len(x) == len(t)
        return caption.ids[:, :1].float().expand_as(x)

    caption, null = CaptionTokens.encode(["a", "b"], 8), CaptionTokens.encode(["", ""], 8)
    v = guided_velocity(network, caption, null, scale)(torch.zeros(2, 3), torch.zeros(2))
    assert batches == [expected_batch]
    ids, null_id = torch.tensor([97.0, 98.0])[:, None].expand(2, 3), 256.0
    torch.testing.assert_close(v, null_id + scale * (ids - null_id))
