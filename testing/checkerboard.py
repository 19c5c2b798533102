"""The checkerboard: data whose exact flow is known on every Gaussian path, so that all error is the sampler's.

Data are uniform on the eight dark squares of a 4 x 4 board. The posterior mean E[x_1 | x_t], from which everything
follows, is a mixture of truncated normals, one per square. No network is trained.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr

from models.flow.field import Field
from models.flow.path import Path

SQUARES = torch.tensor([(i - 2.0, j - 2.0) for i in range(4) for j in range(4) if (i + j) % 2 == 0]).double()


def log_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)), also far out in the tails."""
    flip = low > 0  # the left tail is the accurate one
    low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
    return log_ndtr(high) + torch.log1p(-(log_ndtr(low) - log_ndtr(high)).exp().clamp(max=1 - 1e-16))


def posterior_mean(path: Path, x: Float[Tensor, "n 2"], t: Float[Tensor, " n"]) -> Float[Tensor, "n 2"]:
    """E[x_1 | x_t = x] for the checkerboard, exactly."""
    at = path.at(t, x)
    a = at.a.clamp_min(1e-4)  # at the very start the posterior is the data's own mean to eight digits
    mean, std = (x / a)[:, None], (at.b.clamp_min(1e-12) / a)[:, None]  # of x_1 given x_t, before truncation
    low, high = (SQUARES - mean) / std, (SQUARES + 1 - mean) / std  # n squares 2
    log_mass = log_interval(low, high)
    density = [(-(edge**2) / 2 - 0.5 * math.log(2 * math.pi) - log_mass).exp() for edge in (low, high)]
    inside = (mean + std * (density[0] - density[1])).clamp(SQUARES, SQUARES + 1)
    weights = log_mass.sum(-1, keepdim=True).softmax(1)
    return (weights * inside).sum(1)


def exact_field(path: Path) -> Field:
    """The marginal field of the checkerboard on a path."""
    return Field(lambda x, t: posterior_mean(path, x, t), path, "data")


def share_inside(x: Float[Tensor, "n 2"]) -> float:
    """Share of samples that lie in the right squares."""
    cell = x.floor()
    return float((((cell >= -2) & (cell < 2)).all(1) & (cell.sum(1) % 2 == 0)).double().mean())
