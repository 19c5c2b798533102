"""Distances of sets of clips: closed forms, and an independent implementation."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from pipeline.evaluate.distances import Gaussian, fit_gaussian, frechet_distance, kernel_distance


def features(number: int, width: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(number, width)) @ generator.normal(size=(width, width))


def test_frechet_distance_of_a_set_from_itself_is_zero():
    for number, width in ((50, 8), (10, 40)):  # the second has a covariance of rank 9
        gaussian = fit_gaussian(features(number, width))
        assert frechet_distance(gaussian, gaussian) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_two_diagonal_gaussians_is_its_closed_form():
    one, other = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.25])
    shift = np.array([3.0, 0.0, -1.0])
    found = frechet_distance(Gaussian(np.zeros(3), np.diag(one)), Gaussian(shift, np.diag(other)))
    assert found == pytest.approx(9 + 1 + np.square(np.sqrt(one) - np.sqrt(other)).sum(), abs=1e-9)


def test_frechet_distance_is_that_of_the_matrix_root():
    one, other = fit_gaussian(features(60, 6)), fit_gaussian(features(80, 6, seed=1))
    root = np.real(np.asarray(sqrtm(one.covariance @ other.covariance)))
    expected = np.square(one.mean - other.mean).sum() + np.trace(one.covariance + other.covariance - 2 * root)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one), rel=1e-9)


def test_kernel_distance_is_the_mean_over_pairs_of_different_clips():
    one, other = features(5, 3), features(7, 3, seed=1)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [
        np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (one, other)
    ]
    between = np.mean([kernel(x, y) for x in one for y in other])
    assert kernel_distance(one, other) == pytest.approx(sum(within) - 2 * between, rel=1e-9)


def test_kernel_distance_of_halves_of_one_set_has_mean_zero():
    generator = np.random.default_rng(0)
    found = [kernel_distance(*np.split(generator.normal(size=(40, 4)), 2)) for _ in range(400)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(len(found))
    assert min(found) < 0 < max(found)


def test_sets_of_one_clip_are_refused():
    with pytest.raises(ValueError, match="at least two clips"):
        fit_gaussian(np.ones((1, 3)))
    with pytest.raises(ValueError, match="not 2 and 1"):
        kernel_distance(np.ones((2, 3)), np.ones((1, 3)))
