"""The log likelihood of samples under the model, by the change of density along the flow.

    log p_1(x_1) = log p_0(x_0) - integral over [0, 1] of div v(x_t, t) dt       (Lipman et al. 2022, eq. 27-33)

The divergence is exact (one derivative per dimension) or estimated with one Rademacher probe, drawn once and kept
for the whole path: with a new probe at every call the integrand is noisy, and an adaptive solver does not finish.
Derivatives are taken backwards, e^T J, which attention kernels and recomputed layers support; forwards they do not.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.field import Field
from models.flow.solver import Solver, check_defined_at_end, check_velocity_solver, reversed_in_time, rk4

Divergence = Callable[[Field, Tensor, Tensor], tuple[Tensor, Tensor]]  # -> velocity, divergence (b)


def exact_divergence(field: Field, x: Float[Tensor, "b ..."], t: Tensor) -> tuple[Tensor, Tensor]:
    """The velocity and the trace of its Jacobian, by a backward pass per dimension of a sample."""
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return _along(field, x, t, [direction.reshape(1, *x.shape[1:]).expand_as(x) for direction in basis])


def probed_divergence(probe: Float[Tensor, "b ..."]) -> Divergence:
    """Hutchinson's estimate e^T J e with one fixed probe: unbiased, and exact where the Jacobian is diagonal."""
    return lambda field, x, t: _along(field, x, t, [probe.to(x)])


def _along(field: Field, x: Tensor, t: Tensor, directions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The velocity v, and the sum of e^T (dv / dx) e over the directions e."""
    with torch.inference_mode(False), torch.enable_grad():
        state = x.detach().clone().requires_grad_()
        velocity = field.velocity(state, t.clone())
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for number, direction in enumerate(directions, 1):
            is_last = number == len(directions)
            (row,) = torch.autograd.grad(velocity, state, direction, retain_graph=not is_last)
            total = total + (row * direction).flatten(1).sum(1)
    return velocity.detach(), total


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


def bits_per_dimension(log_density: Float[Tensor, " b"], num_dimensions: int) -> Float[Tensor, " b"]:
    """-log2 p per dimension: of continuous values, such as latents, it may be below 0 (Theis et al. 2016, 3.1)."""
    return -log_density / (num_dimensions * math.log(2))


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
