"""Distances between two sets of clips, by the features that a network computes of each clip.

The Fréchet distance compares two Gaussians that are fitted to the features (Dowson & Landau 1982; Heusel et al. 2017,
eq. 6, for images; Unterthiner et al. 2018 for video). The kernel distance compares the sets without that assumption
(Bińkowski et al. 2018, section 3), and its mean does not depend on their sizes. All sums are in float64.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "n d"]

KERNEL_DEGREE = 3  # of the polynomial kernel, as in Bińkowski et al.


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of the features of a set."""

    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]

    @cached_property
    def root(self) -> Float[np.ndarray, "d d"]:
        """The symmetric root of the covariance, whose eigenvalues are not negative but for rounding."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def fit_gaussian(features: Features) -> Gaussian:
    """The mean, and the covariance with n - 1 in its denominator.

    Raises:
        ValueError: there are fewer than two clips.
    """
    if len(features) < 2:
        raise ValueError(f"a covariance needs at least two clips, and there are {len(features)}")
    values = features.astype(np.float64)
    return Gaussian(values.mean(0), np.atleast_2d(np.cov(values, rowvar=False)))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)), at least 0.

    The trace of the root is the sum of the singular values of S_1^(1/2) S_2^(1/2), which is real and finite for
    covariances of any rank.
    """
    singular = np.linalg.svd(one.root @ other.root, compute_uv=False)
    means = float(np.square(one.mean - other.mean).sum())
    return max(0.0, means + float(np.trace(one.covariance) + np.trace(other.covariance) - 2 * singular.sum()))


def kernel_distance(one: Features, other: Features) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / d + 1)^3, unbiased: it may be slightly negative.

    Raises:
        ValueError: a set has fewer than two clips.
    """
    if min(len(one), len(other)) < 2:
        raise ValueError(f"the kernel distance needs at least two clips of each set, not {len(one)} and {len(other)}")
    one, other = one.astype(np.float64), other.astype(np.float64)
    return _mean_of_pairs(one) + _mean_of_pairs(other) - 2 * float(_kernel(one, other).mean())


def _kernel(one: Features, other: Features) -> Float[np.ndarray, "n m"]:
    return (one @ other.T / one.shape[1] + 1) ** KERNEL_DEGREE


def _mean_of_pairs(features: Features) -> float:
    """The mean of the kernel over pairs of two different clips."""
    values, number = _kernel(features, features), len(features)
    return float((values.sum() - np.trace(values)) / (number * (number - 1)))
