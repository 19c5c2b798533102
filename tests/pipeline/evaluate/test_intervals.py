"""Intervals of the jackknife: exact for means, and how often they contain the truth."""

import numpy as np
import pytest
from scipy.stats import t

from pipeline.evaluate.distances import Gaussian, fit_gaussian, frechet_distance
from pipeline.evaluate.intervals import Estimate, jackknife


def mean(values: np.ndarray) -> float:
    return float(values.mean())


def contains(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_interval_of_a_mean_is_that_of_student():
    values = np.random.default_rng(0).normal(size=16)
    found = jackknife(mean, values)
    half = t.ppf(0.975, 15) * values.std(ddof=1) / 4
    assert found.value == found.corrected == pytest.approx(mean(values))
    assert (found.low, found.high) == pytest.approx((mean(values) - half, mean(values) + half))


def test_bias_of_a_variance_with_n_in_the_denominator_is_removed():
    values = np.random.default_rng(0).normal(size=20)
    found = jackknife(lambda x: float(x.var()), values)
    assert found.corrected == pytest.approx(values.var(ddof=1), rel=1e-12)


@pytest.mark.parametrize(("width", "number"), [(2, 100), (16, 128)])
def test_intervals_contain_the_distance_of_two_gaussians_in_95_of_100_cases(width: int, number: int):
    generator = np.random.default_rng(width)
    factor = generator.normal(size=(width, width)) / np.sqrt(width) + np.eye(width)
    truth = frechet_distance(Gaussian(np.zeros(width), np.eye(width)), Gaussian(np.full(width, 0.3), factor @ factor.T))

    found = [
        jackknife(
            frechet_distance,
            generator.normal(size=(number, width)),
            0.3 + generator.normal(size=(number, width)) @ factor.T,
            summarize=fit_gaussian,
        )
        for _ in range(200)
    ]
    coverage = np.mean([contains(estimate, truth) for estimate in found])
    assert 0.91 < coverage < 0.99  # 95 %, with 2.6 standard deviations of 200 cases
    errors = np.array([[estimate.value - truth, estimate.corrected - truth] for estimate in found]).mean(0)
    assert abs(errors[1]) < errors[0] / 4  # the bias, before and after


def test_clips_of_one_video_widen_the_interval():
    generator = np.random.default_rng(0)
    videos = np.repeat(generator.normal(size=40), 10)  # ten equal clips of each of 40 videos
    together, mixed = jackknife(mean, videos), jackknife(mean, generator.permutation(videos))
    assert together.high - together.low > 2 * (mixed.high - mixed.low)


def test_few_clips_are_refused():
    with pytest.raises(ValueError, match="at least 4 clips, and there are 3"):
        jackknife(mean, np.ones(3))
