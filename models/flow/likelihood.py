"""The log likelihood of samples under the model, by the change of density along the flow.

    log p_1(x_1) = log p_0(x_0) - integral over [0, 1] of div v(x_t, t) dt       (Lipman et al. 2022, eq. 27-33)

The divergence is exact (one derivative per dimension) or estimated with one Rademacher probe, drawn once and kept
for the whole path: with a new probe at every call the integrand is noisy, and an adaptive solver does not finish.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.field import Field
from models.flow.path import derivative_along
from models.flow.solver import Solver, check_defined_at_end, check_velocity_solver, reversed_in_time, rk4

Divergence = Callable[[Field, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> velocity, divergence (b)


def exact_divergence(field: Field, x: Float[Tensor, "b ..."], t: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity and the trace of its Jacobian, one forward derivative per dimension of a sample."""
    velocity, total = None, torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for basis in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device):
        direction = basis.reshape(1, *x.shape[1:]).expand_as(x)
        velocity, derivative = derivative_along(lambda y: field.velocity(y, t), x, direction)
        total = total + (derivative * direction).flatten(1).sum(1)
    assert velocity is not None
    return velocity, total


def probed_divergence(probe: Float[Tensor, "b ..."]) -> Divergence:
    """Hutchinson's estimate e^T J e with one fixed probe: unbiased, and exact where the Jacobian is diagonal."""

    def divergence(field: Field, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        velocity, derivative = derivative_along(lambda y: field.velocity(y, t), x, probe.to(x))
        return velocity, (derivative * probe).flatten(1).sum(1)

    return divergence


def rademacher(like: Tensor, generator: torch.Generator) -> Tensor:
    """A probe: every value -1 or 1 with equal chance."""
    return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1


def log_likelihood(
    field: Field,
    x_1: Float[Tensor, "b ..."],
    grid: Tensor,
    divergence: Divergence = exact_divergence,
    solver: Solver = rk4,
) -> Float[Tensor, " b"]:
    """log p_1(x_1) in nats, for a standard normal source scaled by the path's b(0).

    Raises:
        ValueError: the solver follows an SDE, which has no one path to count along, or data predictions; or the
            frames have times of their own; or the velocity is undefined at t = 1.
    """
    check_velocity_solver(solver)
    check_defined_at_end(field, grid)
    if grid.ndim != 1:
        raise ValueError(f"a likelihood needs one time for all frames, got a grid of shape {tuple(grid.shape)}")
    shape = x_1.shape[1:]

    def joint(state: Tensor, t: Tensor) -> Tensor:
        velocity, rate = divergence(field, state[:, :-1].reshape(-1, *shape), t)
        return torch.cat([velocity.flatten(1), rate[:, None]], dim=1)

    start = torch.cat([x_1.flatten(1), x_1.new_zeros(len(x_1), 1)], dim=1)
    end = solver(reversed_in_time(Field(joint, field.path)), start, 1 - grid.flip(0))
    x_0, integral = end[:, :-1], -end[:, -1]  # run backwards, the divergence was subtracted
    scale = field.path.coefficients(grid[:1].to(x_1)).b
    normal = -0.5 * (x_0 / scale).square() - 0.5 * math.log(2 * math.pi) - scale.log()
    return normal.sum(1) - integral


def bits_per_dimension(log_density: Float[Tensor, " b"], num_dimensions: int, level: float = 1.0) -> Tensor:
    """-log2 p per dimension, of data whose quantisation step is `level` and was filled by uniform noise.

    Pixels scaled from 0..255 to [-1, 1] have a level of 2 / 255 (Theis et al. 2016, section 3.1).
    """
    return -(log_density / num_dimensions + math.log(level)) / math.log(2)


def dequantize(x: Float[Tensor, "b ..."], level: float, uniform: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Spread every value evenly over its quantisation step; `uniform` holds numbers in [0, 1)."""
    return x + (uniform - 0.5) * level


def variational_bound(
    field: Field, x_1: Float[Tensor, "b ..."], times: Float[Tensor, " n"], noise: Callable[[int], Tensor]
) -> Float[Tensor, " b"]:
    """An estimate of the upper bound on -log p(x_1), in nats, of the chain of Gaussian steps over `times`.

    The bound is the divergence of the start from noise, plus for each step half the growth of a² / b² times the squared
    error of the data prediction at its noisier end, plus -log of a Gaussian of deviation b / a around x / a at the last
    time (Kingma et al. 2021, eq. 11-14; Ho et al. 2020, eq. 5). With the exact field and ever more steps it is -log p.

    Args:
        times: rising, the first one above the path's a = 0 and the last one below 1.
        noise: gives x_0 of the state's shape for each of the times; the bound is the mean over it.
    """
    at = field.path.coefficients(times.to(x_1))
    ratio = (at.a / at.b).square()
    start = (at.a[0].square() * x_1.square() + at.b[0].square() - 1 - 2 * at.b[0].log()) / 2
    total = start.flatten(1).sum(1)
    for number, t in enumerate(times[:-1].to(x_1)):
        time = t.expand(len(x_1))
        x_t = field.path.at(time, x_1).point(noise(number).to(x_1), x_1)
        error = (x_1 - field.data(x_t, time)).square().flatten(1).sum(1)
        total = total + (ratio[number + 1] - ratio[number]) / 2 * error
    end = noise(len(times) - 1).to(x_1).square() / 2 + 0.5 * math.log(2 * math.pi) + (at.b[-1] / at.a[-1]).log()
    return total + end.flatten(1).sum(1)
