"""Gaussian probability paths: how noise turns into data.

A path is a pair of functions with alpha(0) = 0, beta(0) = 1, alpha(1) = 1, beta(1) = 0, and

    x_t = alpha(t) x_1 + beta(t) x_0,    x_0 ~ N(0, I) noise, x_1 data.

Source: Lipman et al. 2022, eq. 10 (there mu_t, sigma_t); Holderrieth & Erives 2025, section 3.1.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


def broadcast_time(t: Tensor, like: Tensor) -> Tensor:
    """Give per-sample times (b) the trailing axes of `like` (b ...), so that they multiply it.

    Raises:
        ValueError: there is not one time per sample.
    """
    if t.ndim != 1 or t.shape[0] != like.shape[0]:
        raise ValueError(f"expected one time per sample, shape ({like.shape[0]},), got {tuple(t.shape)}")
    return t.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class PathSample:
    """A point of the path and the velocity there, the pair a network is trained on."""

    x_t: Float[Tensor, "b ..."]
    velocity: Float[Tensor, "b ..."]


@dataclass(frozen=True)
class StraightPath:
    """alpha(t) = t, beta(t) = 1 - t: the conditional optimal-transport path (Lipman et al. 2022, eq. 20-23).

    Its velocity x_1 - x_0 does not depend on time: particles go straight at constant speed.
    """

    def sample(self, x_0: Float[Tensor, "b ..."], x_1: Float[Tensor, "b ..."], t: Float[Tensor, " b"]) -> PathSample:
        """The point x_t = t x_1 + (1 - t) x_0 and its conditional velocity.

        Args:
            x_0: noise. x_1: data. t: one time in [0, 1] per sample.
        """
        time = broadcast_time(t, x_1)
        return PathSample(x_t=time * x_1 + (1 - time) * x_0, velocity=x_1 - x_0)

    def to_data(
        self, x_t: Float[Tensor, "b ..."], velocity: Float[Tensor, "b ..."], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b ..."]:
        """The data x_1 that a velocity at x_t points to: x_1 = x_t + (1 - t) v."""
        return x_t + (1 - broadcast_time(t, x_t)) * velocity

    def to_noise(
        self, x_t: Float[Tensor, "b ..."], velocity: Float[Tensor, "b ..."], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b ..."]:
        """The noise x_0 that a velocity at x_t comes from: x_0 = x_t - t v."""
        return x_t - broadcast_time(t, x_t) * velocity
