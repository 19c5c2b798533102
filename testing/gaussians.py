"""Gaussian data, whose flow is known in closed form on every path."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.flow.field import Field
from models.flow.path import (
    AffinePath,
    CosinePath,
    Path,
    PolynomialPath,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from models.flow.spec import Prediction

PATHS = [
    StraightPath(),
    StraightPath(sigma_min=0.1),
    VariancePreservingPath(),
    VarianceExplodingPath(sigma_max=5.0),
    CosinePath(),
    PolynomialPath(2.0),
    AffinePath(lambda t: (math.pi / 2 * t).sin(), lambda t: 1 - t**2),
]

PREDICTIONS: list[Prediction] = ["velocity", "data", "noise", "score"]

each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers of this shape, in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(*values: float) -> Tensor:
    """Times as one float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def steps(num_steps: int, start: float = 0.0, end: float = 1.0) -> Tensor:
    """A uniform time grid, float64 (num_steps + 1)."""
    return torch.linspace(start, end, num_steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class GaussianData:
    """Data N(mean, std²): velocity, score and moments are known in closed form."""

    path: Path
    mean: float
    std: float

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The marginal velocity E[x_t' | x_t = x]."""
        at = self.path.at(t, x)
        b_b_prime = at.scaled_b_prime * at.b / at.scale if not torch.equal(at.scale, at.b) else at.scaled_b_prime
        variance = (at.a * self.std) ** 2 + at.b**2
        slope = (at.a * at.a_prime * self.std**2 + b_b_prime) / variance
        return at.a_prime * self.mean + slope * (x - at.a * self.mean)

    def moments(self, t: float) -> tuple[float, float]:
        """Mean and standard deviation of x_t."""
        at = self.path.coefficients(times(t))
        return float(at.a * self.mean), float(((at.a * self.std) ** 2 + at.b**2).sqrt())

    @property
    def field(self) -> Field:
        """The velocity as a field on its path."""
        return Field(self.velocity, self.path)
