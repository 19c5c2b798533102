"""Solvers: from noise to data along a field, over a grid of times.

    dx = v(x, t) dt                                        the probability flow (Holderrieth & Erives 2025, alg. 1-2)
    dx = [v + sigma_t² / 2 score] dt + sigma_t dW          any diffusion keeps the same marginals (SDE extension)

A solver is a plain function (field, x, grid) -> x. The state keeps the type of `x`, whatever the network computes
in; only the states of the last few steps are kept. A grid (n) moves all frames together; a schedule (n, frames)
gives each frame of a (b c frames h w) or (b 1 frames) state its own times.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.field import Field
from models.flow.grid import check_grid
from models.flow.path import Coefficients, VariancePreservingPath, expand, nonzero, posterior
from models.flow.spec import OdeSolver

BLOCK_STEPS = 64
Solver = Callable[[Field, Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]  # step number -> standard normal of the state's shape
Diffusion = Callable[[Tensor], Tensor]  # time -> sigma_t


class Counted:
    """A network or a function (x, t) that counts its calls."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *inputs: Any) -> Tensor:  # noqa: ANN401 - whatever the function takes
        """Call and count."""
        self.calls += 1
        return self._function(*inputs)


def _steps(grid: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each step: its two times, which broadcast from the left over x, and its length h, which multiplies x.

    Computed in blocks of steps: the cost per step is small, and memory does not grow with their number.
    """
    check_grid(grid)
    if grid.ndim > 1 and (x.ndim < 3 or x.shape[2] != grid.shape[1]):
        raise ValueError(f"a schedule of {grid.shape[1]} frames does not fit a state of shape {tuple(x.shape)}")
    for start in range(0, len(grid) - 1, BLOCK_STEPS):
        block = grid[start : start + BLOCK_STEPS + 1].to(device=x.device, dtype=x.dtype)
        if grid.ndim == 1:
            times = block[:, None].expand(-1, len(x)).unbind()  # (b) each
            lengths = block.diff().unbind()
        else:
            times = block[:, None, None].expand(-1, len(x), 1, -1).unbind()  # (b 1 frames) each
            lengths = [expand(h[None, None], x) for h in block.diff(dim=0)]
        yield from zip(times[:-1], times[1:], lengths, strict=True)


def euler(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """First order, one network call per step."""
    for t, _, h in _steps(grid, x):
        x = x + h * field.velocity(x, t)
    return x


def midpoint(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Second order, two calls: the slope half-way of an Euler step."""
    for t, t_next, h in _steps(grid, x):
        half = x + h / 2 * field.velocity(x, t)
        x = x + h * field.velocity(half, (t + t_next) / 2)
    return x


def heun(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Second order, two calls: the slopes at both ends of an Euler step, averaged."""
    for t, t_next, h in _steps(grid, x):
        slope = field.velocity(x, t)
        if field.is_undefined_at(t_next):  # an Euler step ends there (Karras et al. 2022, algorithm 1)
            x = x + h * slope
            continue
        x = x + h / 2 * (slope + field.velocity(x + h * slope, t_next))
    return x


def rk4(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Fourth order, four calls: the classical Runge-Kutta step."""
    for t, t_next, h in _steps(grid, x):
        middle = (t + t_next) / 2
        k_1 = field.velocity(x, t)
        k_2 = field.velocity(x + h / 2 * k_1, middle)
        if field.is_undefined_at(t_next):
            x = x + h * k_2
            continue
        k_3 = field.velocity(x + h / 2 * k_2, middle)
        k_4 = field.velocity(x + h * k_3, t_next)
        x = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x


def ab2(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """Adams-Bashforth: second order at one call per step, with the slope of the step before."""
    before: tuple[Tensor, Tensor] | None = None
    for t, _, h in _steps(grid, x):
        slope = field.velocity(x, t)
        moved = slope if before is None else slope + h / (2 * nonzero(before[0])) * (slope - before[1])
        x, before = x + h * moved, (h, slope)
    return x


def ddim(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """x_s = a_s data + b_s noise (Song et al. 2020, eq. 12, eta = 0): exact where the data prediction is constant."""
    return ddim_eta(field, x, grid, 0.0, lambda _: torch.zeros(()))


def ddim_eta(field: Field, x: Float[Tensor, "b ..."], grid: Tensor, eta: float, noise: Noise) -> Float[Tensor, "b ..."]:
    """DDIM with fresh noise: eta = 1 is ancestral (DDPM) sampling, eta = 0 the deterministic flow.

    Args:
        noise: gives the standard normal numbers of each step.
    """
    for step, (t, t_next, _) in enumerate(_steps(grid, x)):
        at, to = field.path.at(t, x), field.path.at(t_next, x)
        data = field.data(x, t)
        old_noise = (x - at.a * data) / nonzero(at.b)
        if eta == 0:
            x = to.a * data + to.b * old_noise
            continue
        variance = eta**2 * posterior(at, to).variance
        x = to.a * data + (to.b**2 - variance).clamp_min(0).sqrt() * old_noise + variance.sqrt() * noise(step).to(x)
    return x


def _log_ratio(at: Coefficients) -> Tensor:
    return nonzero(at.a).log() - nonzero(at.b).log()


def dpmpp_2m(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """DPM-Solver++(2M): second order in log(a / b), one call per step (Lu et al. 2022, algorithm 2).

    The last step is of first order: log(a / b) is infinite at t = 1.
    """
    before: tuple[Tensor, Tensor] | None = None
    for t, t_next, _ in _steps(grid, x):
        at, to = field.path.at(t, x), field.path.at(t_next, x)
        data = field.data(x, t)
        length = _log_ratio(to) - _log_ratio(at)
        slope = data
        if before is not None and bool((to.b > 0).all()):
            slope = data + length / (2 * before[0]) * (data - before[1])
        x = to.b / nonzero(at.b) * x + (to.a - to.b * at.a / nonzero(at.b)) * slope
        before = (length, data)
    return x


def unipc(field: Field, x: Float[Tensor, "b ..."], grid: Tensor) -> Float[Tensor, "b ..."]:
    """UniPC of order 2, data prediction, B(h) = e^h - 1 (Zhao et al. 2023, algorithms 1-2).

    Each network call is used twice, to correct the step before it and to predict the next: one call per step.
    """
    data = data_before = None
    previous: tuple[Tensor, Coefficients, Coefficients] | None = None  # state before the step, and the step's ends
    length_before = None
    for t, t_next, _ in _steps(grid, x):
        at, to = field.path.at(t, x), field.path.at(t_next, x)
        new_data = field.data(x, t)
        if previous is not None and data is not None:
            x = _unipc_step(*previous, data, data_before, length_before, new_data)
            length_before = _log_ratio(previous[2]) - _log_ratio(previous[1])
            data_before = data
        previous, data = (x, at, to), new_data
        if bool((to.b > 0).all()):
            x = _unipc_step(x, at, to, data, data_before, length_before, None)
        else:
            x = to.b / nonzero(at.b) * x + (to.a - to.b * at.a / nonzero(at.b)) * data
    return x


def _unipc_step(
    x: Tensor,
    at: Coefficients,
    to: Coefficients,
    data: Tensor,
    data_before: Tensor | None,
    length_before: Tensor | None,
    data_after: Tensor | None,
) -> Tensor:
    """One predicted step, or with `data_after` one corrected step."""
    h = _log_ratio(to) - _log_ratio(at)
    phi = torch.expm1(-h)
    first_order = to.b / nonzero(at.b) * x - to.a * phi * data
    differences = 0.0
    if data_before is None or length_before is None:
        if data_after is not None:
            differences = 0.5 * (data_after - data)
    else:
        r = -length_before / h
        past = (data_before - data) / r
        if data_after is None:
            differences = 0.5 * past
        else:
            b_1 = (phi / -h - 1) / phi
            b_2 = ((phi / -h - 1) / -h - 0.5) * 2 / phi
            on_after = (b_2 - r * b_1) / (1 - r)
            differences = (b_1 - on_after) * past + on_after * (data_after - data)
    return first_order - to.a * phi * differences


def dopri5(field: Field, x: Float[Tensor, "b ..."], grid: Tensor, tolerance: float = 1e-6) -> Float[Tensor, "b ..."]:
    """Adaptive Dormand-Prince 5(4) through torchdiffeq, from the first time of the grid to the last."""
    from torchdiffeq import odeint

    check_grid(grid)
    ends = grid[[0, -1]].to(x)

    def slope(t: Tensor, state: Tensor) -> Tensor:
        return field.velocity(state, t.clamp(0, 1).to(state).expand(len(state)))

    return cast(Tensor, odeint(slope, x, ends, rtol=tolerance, atol=tolerance, method="dopri5"))[-1]


def solver_of(name: OdeSolver) -> Solver:
    """The solver of that name."""
    match name:
        case "euler":
            return euler
        case "midpoint":
            return midpoint
        case "heun":
            return heun
        case "rk4":
            return rk4
        case "ab2":
            return ab2
        case "dpmpp_2m":
            return dpmpp_2m
        case "unipc":
            return unipc
        case "ddim":
            return ddim


def constant_diffusion(sigma: float) -> Diffusion:
    """The same sigma at every time."""
    return lambda t: torch.full_like(t, sigma)


def vp_diffusion(path: VariancePreservingPath) -> Diffusion:
    """sigma² = beta: the reverse SDE of Song et al. 2021, eq. 6, as one of the family."""
    return lambda t: path.rate(t).sqrt()


def euler_maruyama(
    field: Field, x: Float[Tensor, "b ..."], grid: Tensor, diffusion: Diffusion, noise: Noise
) -> Float[Tensor, "b ..."]:
    """Steps of dx = [v + sigma² / 2 score] dt + sigma dW; the last step adds no noise.

    Args:
        diffusion: sigma of a time, finite on the grid. noise: gives the standard normal numbers of each step.
    """
    steps = list(_steps(grid, x))
    for step, (t, _, h) in enumerate(steps):
        velocity = field.velocity(x, t)
        if step == len(steps) - 1:
            return x + h * velocity
        sigma = expand(diffusion(t), x)
        score = field.path.at(t, x).score(x, velocity)
        x = x + h * (velocity + sigma**2 / 2 * score) + sigma * h.sqrt() * noise(step).to(x)
    return x


def clamped(field: Field, known: Float[Tensor, "b ..."], mask: Tensor, x_0: Float[Tensor, "b ..."]) -> Field:
    """A field that moves the masked part of the state along the path to `known`: image-to-video, extension, inpainting.

    Args:
        mask: 1 where the data are known, 0 elsewhere; broadcasts to the state. x_0: the noise the state starts from.
    """

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        at = field.path.at(t, x)
        held = torch.where(mask.bool(), at.point(x_0, known), x)
        return torch.where(mask.bool(), at.velocity(x_0, known), field.velocity(held, t))

    return Field(velocity, field.path, "velocity", field.open_end or field.prediction != "velocity")


def reversed_in_time(field: Field) -> Field:
    """The field of the reversed flow: time s = 1 - t, velocity -v. Only its velocity is defined, not its path."""
    return Field(lambda x, s: -field.velocity(x, 1 - s), field.path, "velocity")


def check_velocity_solver(solver: Solver) -> None:
    """Raise ValueError for a solver that uses more than the velocity: it cannot run backwards in time."""
    function = solver.func if isinstance(solver, partial) else solver
    if function in (euler_maruyama, ddim_eta):
        raise ValueError(f"expected a deterministic solver such as rk4 or dopri5, got {function.__name__}, an SDE's")
    if function in (ddim, dpmpp_2m, unipc):
        raise ValueError(f"expected a solver of velocities such as rk4 or dopri5, got {function.__name__}, of data")


def invert(field: Field, x: Float[Tensor, "b ..."], grid: Tensor, solver: Solver = rk4) -> Float[Tensor, "b ..."]:
    """Data back to the noise it comes from, by a velocity solver over the grid run backwards.

    Raises:
        ValueError: the solver is stochastic, or follows data predictions.
    """
    check_velocity_solver(solver)
    return solver(reversed_in_time(field), x, 1 - grid.flip(0))
