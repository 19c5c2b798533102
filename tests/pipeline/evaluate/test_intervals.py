"""Intervals of the jackknife: exact for means, and how often they contain the truth."""

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from pipeline.evaluate.distances import Gaussian, fit_gaussian, frechet_distance
from pipeline.evaluate.intervals import Estimate, jackknife, paired_difference, share


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


def test_the_paired_test_is_that_of_student_and_agrees_with_its_interval():
    values = np.random.default_rng(3).normal(0.4, size=16)
    found = paired_difference(values)
    _, p_value = ttest_1samp(values, 0)
    assert found.p_value == pytest.approx(p_value, rel=1e-9)
    shifted = paired_difference(values - found.low)  # the interval now begins at 0
    assert shifted.p_value == pytest.approx(0.05, rel=1e-9)
    assert paired_difference(np.zeros(8)).p_value == 1
    assert paired_difference(np.ones(8)).p_value == 0


def test_a_share_has_an_interval_of_some_width_even_where_all_are_right():
    found = share(np.ones(20))
    z = 1.959964
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - z**2 / (20 + z**2), rel=1e-6)  # Wilson's closed form


def test_bias_of_a_variance_with_n_in_the_denominator_is_removed():
    values = np.random.default_rng(0).normal(size=20)
    found = jackknife(lambda x: float(x.var()), values)
    assert found.corrected == pytest.approx(values.var(ddof=1), rel=1e-12)


def test_the_interval_of_a_squared_distance_is_symmetric_around_its_root():
    values = np.random.default_rng(0).normal(2, size=16)

    def squared(sample: np.ndarray) -> float:
        return mean(sample) ** 2

    plain, found = jackknife(squared, values), jackknife(squared, values, is_squared=True)
    bias, root = found.value - found.corrected, found.value**0.5
    assert found.corrected == plain.corrected
    low, high = (found.low + bias) ** 0.5, (found.high + bias) ** 0.5
    assert (low + high) / 2 == pytest.approx(root)
    assert found.high - found.low == pytest.approx(plain.high - plain.low)  # (r + h)^2 - (r - h)^2 = 4 r h
    assert jackknife(lambda sample: 0.0, values, is_squared=True).high == 0


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
            is_squared=True,
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
