"""Gaussian data, whose flow is known in closed form on every path."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.flow.field import Field
from models.flow.path import (
    Coefficients,
    CosinePath,
    Path,
    PolynomialPath,
    StraightPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from models.flow.solver import Diffusion, Noise
from models.flow.spec import Prediction


@dataclass(frozen=True)
class AffinePath(Path):
    """Any two functions of time, differentiated by autograd; both derivatives must be finite on [0, 1]."""

    alpha: Callable[[Tensor], Tensor]
    beta: Callable[[Tensor], Tensor]

    def coefficients(self, t: Tensor) -> Coefficients:
        """Forward-mode derivatives of the two functions."""
        t = t.contiguous()  # forward-mode derivatives do not take expanded tensors
        one = torch.ones_like(t)
        a, a_prime, *_ = torch.func.jvp(self.alpha, (t,), (one,))
        b, b_prime, *_ = torch.func.jvp(self.beta, (t,), (one,))
        return Coefficients(a=a, a_prime=a_prime, b=b, scale=one, scaled_b_prime=b_prime)


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


def constant_diffusion(sigma: float) -> Diffusion:
    """The same sigma at every time."""
    return lambda t: torch.full_like(t, sigma)


def vp_diffusion(path: VariancePreservingPath) -> Diffusion:
    """sigma² = beta: the reverse SDE of Song et al. 2021, eq. 6, as one of the family."""
    return lambda t: path.rate(t).sqrt()


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


@dataclass(frozen=True)
class VideoData:
    """An AR(1) "video": zero mean, frames correlated by rho^|i - j|, with times per frame."""

    path: Path
    covariance: Tensor

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """The marginal velocity, for states (b 1 frames) and times per sample or per frame."""
        at = self.path.at(t, x)
        a, b = (value.expand_as(x)[:, 0] for value in (at.a, at.b))  # b frames
        joint = a[:, :, None] * self.covariance * a[:, None] + torch.diag_embed(b**2)
        solved = torch.linalg.solve(joint, x[:, 0, :, None])  # joint^-1 x
        data = (self.covariance @ (a[:, :, None] * solved))[..., 0][:, None]
        noise = (b[:, :, None] * solved)[..., 0][:, None]
        return at.velocity(noise, data)


def ar1(num_frames: int, rho: float) -> Tensor:
    """The covariance rho^|i - j|."""
    frames = torch.arange(num_frames, dtype=torch.float64)
    return rho ** (frames[:, None] - frames).abs()


def affine_moments(
    sample: Callable[[Tensor, Noise], Tensor], num_noises: int, std_0: float = 1.0
) -> tuple[float, float]:
    """Mean and variance of sample(x, noises) for x ~ N(0, std_0²) and standard normal noises, exactly.

    The map is affine on Gaussian data: one row probes the constant, one the start, one each noise.
    """
    probes = torch.cat([torch.zeros(1, num_noises + 1), torch.eye(num_noises + 1)]).double()
    out = sample(std_0 * probes[:, :1], lambda step: probes[:, 1 + step : 2 + step])[:, 0]
    effects = out[1:] - out[0]
    return out[0].item(), effects.square().sum().item()
