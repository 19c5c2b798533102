"""Probability paths: how noise turns into data.

A path is a pair of functions a(t), b(t) of time, from noise at t = 0 to data at t = 1. All its quantities follow from
one linear map and its inverse:

    [x_t]   [a   b ] [x_1]        x_0  source sample (Gaussian noise, unless a coupling says otherwise)
    [ v ] = [a'  b'] [x_0]        x_1  data

(Lipman et al. 2022, eq. 10-15, with mu_t = a x_1 and sigma_t = b; Holderrieth & Erives 2025, section 3.1,
alpha and beta.) Times broadcast from the left: one per sample (b) or one per frame (b t).
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models.flow.spec import FlowSpec, SampledPathName


@dataclass(frozen=True)
class PathSample:
    """A point of the path and the velocity there, the pair a network is trained on."""

    x_t: Float[Tensor, "b ..."]
    velocity: Float[Tensor, "b ..."]


def nonzero(x: Tensor) -> Tensor:
    """`x` with its magnitude clamped from below, so that a division by it is finite at the ends of a path."""
    smallest = torch.finfo(x.dtype).eps ** 2
    return torch.where(x.abs() < smallest, torch.where(x < 0, -smallest, smallest).to(x.dtype), x)


@dataclass(frozen=True)
class Coefficients:
    """The map [[a, b], [a', b']] at given times, stored so that no entry is infinite.

    b' diverges at t = 1 on some paths (variance preserving, sqrt(1 - t)) while b b' does not, so the second column
    is kept times a `scale`: 1 where b' is finite, b where it is not.
    """

    a: Tensor
    a_prime: Tensor
    b: Tensor
    scale: Tensor
    scaled_b_prime: Tensor

    @property
    def scaled_b(self) -> Tensor:
        """Scale times b."""
        return self.scale * self.b

    @property
    def scaled_determinant(self) -> Tensor:
        """Scale times W, where W = a' b - a b'."""
        return self.a_prime * self.scaled_b - self.a * self.scaled_b_prime

    def point(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        """The first row: x_t = a x_1 + b x_0."""
        return self.a * x_1 + self.b * x_0

    def velocity(self, x_0: Tensor, x_1: Tensor) -> Tensor:
        """The second row: v = a' x_1 + b' x_0."""
        return self.a_prime * x_1 + self.scaled_b_prime / nonzero(self.scale) * x_0

    def data(self, x_t: Tensor, velocity: Tensor) -> Tensor:
        """The inverse's first row: x_1 = (b v - b' x_t) / W."""
        return (self.scaled_b * velocity - self.scaled_b_prime * x_t) / nonzero(self.scaled_determinant)

    def noise(self, x_t: Tensor, velocity: Tensor) -> Tensor:
        """The inverse's second row: x_0 = (a' x_t - a v) / W; x_t / b where a = 0, and x_t is nothing but noise."""
        noise = self.scale * (self.a_prime * x_t - self.a * velocity) / nonzero(self.scaled_determinant)
        return torch.where(self.a == 0, x_t / nonzero(self.b), noise)

    def score(self, x_t: Tensor, velocity: Tensor) -> Tensor:
        """Gradient of the log density, -x_0 / b, for a standard normal source (Holderrieth & Erives 2025, 3.3)."""
        slope = (self.a * velocity - self.a_prime * x_t) / nonzero(self.scaled_determinant)
        score = slope * torch.where(self.scale == self.b, 1.0, self.scale / nonzero(self.b))
        return torch.where(self.a == 0, -x_t / nonzero(self.b).square(), score)

    def velocity_change(self, data_change: Tensor) -> Tensor:
        """What a change of the data prediction changes in the velocity: W / b times it; nothing where b = 0."""
        factor = self.scaled_determinant / nonzero(self.scaled_b)
        return torch.where(self.b > 0, factor, torch.zeros_like(factor)) * data_change

    def velocity_of_data(self, x_t: Tensor, data: Tensor) -> Tensor:
        """v from the data: the first row gives b x_0 = x_t - a x_1. Undefined at t = 1, where b = 0."""
        return self.a_prime * data + self.scaled_b_prime / nonzero(self.scaled_b) * (x_t - self.a * data)

    def velocity_of_noise(self, x_t: Tensor, noise: Tensor) -> Tensor:
        """v from the noise: a v = a' x_t - W x_0. Undefined where a = 0, since x_t then does not depend on the data."""
        determinant = self.scaled_determinant / nonzero(self.scale)
        return (self.a_prime * x_t - determinant * noise) / nonzero(self.a)

    def velocity_of_score(self, x_t: Tensor, score: Tensor) -> Tensor:
        """v from the score: a v = a' x_t + W b s (Holderrieth & Erives 2025, conversion formula)."""
        weight = torch.where(
            self.scale == self.b, self.scaled_determinant, self.scaled_determinant / nonzero(self.scale) * self.b
        )
        return (self.a_prime * x_t + weight * score) / nonzero(self.a)


def expand(t: Tensor, like: Tensor) -> Tensor:
    """Times (b) or (b t ...) with the trailing axes of `like` (b t ...) added, so that they multiply it.

    Raises:
        ValueError: the leading axes of `like` are not those of `t`.
    """
    if t.ndim > like.ndim or any(mine not in (1, its) for mine, its in zip(t.shape, like.shape, strict=False)):
        raise ValueError(
            f"times of shape {tuple(t.shape)} do not broadcast from the left over {tuple(like.shape)}: "
            f"expected one per sample, shape ({like.shape[0] if like.ndim else 1},), or one per frame"
        )
    return t.reshape(*t.shape, *[1] * (like.ndim - t.ndim))


class Path(ABC):
    """The functions a(t) and b(t); subclasses define the coefficients, from which all else follows."""

    @abstractmethod
    def coefficients(self, t: Tensor) -> Coefficients:
        """The map at times `t` in [0, 1], of the shape of `t`."""

    def at(self, t: Tensor, like: Tensor) -> Coefficients:
        """The map at times `t`, with axes that broadcast over `like`.

        Raises:
            ValueError: a time lies outside [0, 1], or the shapes do not fit.
        """
        if not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"expected times in [0, 1], got {t.min().item():g} to {t.max().item():g}")
        return self.coefficients(expand(t.to(like), like))

    def sample(self, x_0: Float[Tensor, "b ..."], x_1: Float[Tensor, "b ..."], t: Tensor) -> PathSample:
        """The point x_t and its conditional velocity.

        Args:
            x_0: source, of any distribution. x_1: data. t: times in [0, 1], per sample or per frame.
        """
        at = self.at(t, x_1)
        return PathSample(x_t=at.point(x_0, x_1), velocity=at.velocity(x_0, x_1))

    def start(self, noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """The state at t = 0 that sampling starts from, of standard normal noise."""
        return noise

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(a / b), half the logarithm of the signal-to-noise ratio; it never falls with t."""
        at = self.coefficients(t)
        return nonzero(at.a).log() - nonzero(at.b).log()

    def time_of_log_ratio(self, log_ratio: Tensor) -> Tensor:
        """The inverse of `log_ratio`, by bisection to the last bit; values beyond the path give its ends."""
        low, high = torch.zeros_like(log_ratio), torch.ones_like(log_ratio)
        for _ in range(64):
            middle = (low + high) / 2
            below = self.log_ratio(middle) < log_ratio
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


@dataclass(frozen=True)
class StraightPath(Path):
    """a = t, b = 1 - (1 - sigma_min) t: conditional optimal transport (Lipman et al. 2022, eq. 20-23).

    With sigma_min = 0 its velocity x_1 - x_0 does not depend on time: trajectories are straight and of constant speed.
    """

    sigma_min: float = 0.0

    def coefficients(self, t: Tensor) -> Coefficients:
        """Linear in t."""
        one = torch.ones_like(t)
        slope = -(1 - self.sigma_min) * one
        b = (1 - t) + self.sigma_min * t
        return Coefficients(a=t, a_prime=one, b=b, scale=one, scaled_b_prime=slope)


@dataclass(frozen=True)
class VariancePreservingPath(Path):
    """a² + b² = 1 with a linear rate of noise (Lipman et al. 2022, eq. 18-19; Song et al. 2021, eq. 32-33).

    a = exp(-B / 2), B(s) = beta_min s + (beta_max - beta_min) s² / 2, at s = 1 - t.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def rate(self, t: Tensor) -> Tensor:
        """beta(1 - t), the rate of noise, and the squared diffusion coefficient of the path's own SDE."""
        return self.beta_min + (self.beta_max - self.beta_min) * (1 - t)

    def coefficients(self, t: Tensor) -> Coefficients:
        """From B and its derivative."""
        s = 1 - t
        integral = self.beta_min * s + (self.beta_max - self.beta_min) * s**2 / 2
        a = (-integral / 2).exp()
        a_prime = a * self.rate(t) / 2
        b = (-torch.expm1(-integral)).sqrt()
        return Coefficients(a=a, a_prime=a_prime, b=b, scale=b, scaled_b_prime=-a * a_prime)


@dataclass(frozen=True)
class VarianceExplodingPath(Path):
    """a = 1, b² = sigma_min² ((sigma_max / sigma_min)^(2 (1 - t)) - 1) (Lipman et al. 2022, eq. 16-17).

    At t = 0 it is the data plus noise of standard deviation b(0), so b(0) must be much larger than the data.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def coefficients(self, t: Tensor) -> Coefficients:
        """b grows geometrically away from the data."""
        growth = math.log(self.sigma_max / self.sigma_min)
        power = 2 * growth * (1 - t)
        b = self.sigma_min * torch.expm1(power).sqrt()
        slope = -(self.sigma_min**2) * growth * power.exp()
        one = torch.ones_like(t)
        return Coefficients(a=one, a_prime=torch.zeros_like(t), b=b, scale=b, scaled_b_prime=slope)

    def start(self, noise: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Noise of deviation b(0)."""
        return self.coefficients(noise.new_zeros(())).b * noise


@dataclass(frozen=True)
class CosinePath(Path):
    """a = sin(pi t / 2), b = cos(pi t / 2) (Nichol & Dhariwal 2021, section 3.2, without the offset)."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """The sine and the cosine."""
        quarter = math.pi / 2
        # cos(pi t / 2) as sin(pi (1 - t) / 2): exactly zero at t = 1
        a, b = (quarter * t).sin(), (quarter * (1 - t)).sin()
        return Coefficients(a=a, a_prime=quarter * b, b=b, scale=torch.ones_like(t), scaled_b_prime=-quarter * a)


@dataclass(frozen=True)
class PolynomialPath(Path):
    """a = t^n, b = 1 - t^n: straight lines at a speed of n t^(n - 1)."""

    power: float = 2.0

    def coefficients(self, t: Tensor) -> Coefficients:
        """The power of t."""
        a, slope = t**self.power, self.power * t ** (self.power - 1)
        return Coefficients(a=a, a_prime=slope, b=1 - a, scale=torch.ones_like(t), scaled_b_prime=-slope)


def path_of(spec: FlowSpec) -> Path:
    """The path of a flow.

    All start at noise of unit variance and end at the data: but for sigma_min, which leaves some noise, and for the
    variance preserving path, whose start has a(0) of the data, 0.0066 with the usual rates. Sampling starts from noise
    alone there too: the error is a(0) times the data's mean.
    """
    match spec.path:
        case "straight":
            return StraightPath(spec.sigma_min)
        case "cosine":
            return CosinePath()
        case "vp":
            return VariancePreservingPath(*spec.vp_betas)
        case "polynomial":
            return PolynomialPath(spec.power)


def sampled_path_of(name: SampledPathName) -> Path:
    """A path for `Field.on`: that of the name with its usual numbers."""
    return VarianceExplodingPath() if name == "ve" else path_of(FlowSpec(path=name))


@dataclass(frozen=True)
class Posterior:
    """The Gaussian q(x_s | x_t, x_1) of a step towards the data: mean = on_x_t x_t + on_data x_1."""

    on_x_t: Tensor
    on_data: Tensor
    variance: Tensor


def posterior(at_t: Coefficients, at_s: Coefficients) -> Posterior:
    """Posterior of the path between times t < s (Ho et al. 2020, eq. 6-7; Kingma et al. 2021, appendix A.2)."""
    a_step = at_t.a / at_s.a
    variance_step = at_t.b**2 - (a_step * at_s.b) ** 2
    total = nonzero(at_t.b**2)
    return Posterior(
        on_x_t=a_step * at_s.b**2 / total,
        on_data=at_s.a * variance_step / total,
        variance=variance_step * at_s.b**2 / total,
    )
