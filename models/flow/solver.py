"""Ordinary differential equation solvers: from noise at t = 0 to data at t = 1 along a velocity field.

    dx/dt = v(x, t)          (Holderrieth & Erives 2025, algorithms 1 and 2)

A solver is a plain function over a grid of times. The state stays in float32.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
SolverName = Literal["euler", "heun"]


def uniform_grid(num_steps: int, shift: float = 1.0) -> Float[Tensor, " n"]:
    """num_steps + 1 times from 0 to 1. `shift` > 1 takes smaller steps near the noise, as `TimeLaw` does.

    Raises:
        ValueError: less than one step.
    """
    if num_steps < 1:
        raise ValueError(f"a sampler needs at least one step, got {num_steps}")
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    return (t / (t + shift * (1 - t))).float()


def _check_grid(grid: Tensor) -> None:
    if grid.ndim != 1 or len(grid) < 2 or bool((grid.diff() <= 0).any()):
        raise ValueError(f"expected a strictly increasing grid of at least two times, got {grid.tolist()}")


def euler(velocity: Velocity, noise: Float[Tensor, "b ..."], grid: Float[Tensor, " n"]) -> Float[Tensor, "b ..."]:
    """First order, one evaluation of the velocity per step."""
    _check_grid(grid)
    x = noise
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        x = x + (t_next - t) * velocity(x, t.to(x).expand(len(x)))
    return x


def heun(velocity: Velocity, noise: Float[Tensor, "b ..."], grid: Float[Tensor, " n"]) -> Float[Tensor, "b ..."]:
    """Second order, two evaluations per step: the slopes at both ends of an Euler step, averaged."""
    _check_grid(grid)
    x = noise
    for t, t_next in zip(grid[:-1], grid[1:], strict=True):
        slope = velocity(x, t.to(x).expand(len(x)))
        x_next = x + (t_next - t) * slope
        x = x + (t_next - t) * (slope + velocity(x_next, t_next.to(x).expand(len(x)))) / 2
    return x


def solve(
    name: SolverName, velocity: Velocity, noise: Float[Tensor, "b ..."], grid: Float[Tensor, " n"]
) -> Float[Tensor, "b ..."]:
    """Integrate with the solver called `name`."""
    return euler(velocity, noise, grid) if name == "euler" else heun(velocity, noise, grid)
