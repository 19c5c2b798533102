"""Averaging profiles against their closed forms and the exponents of the EDM2 paper."""

import numpy as np
import pytest

from pipeline.engine.ema_profile import FLATTEST, FixedDecay, PowerFunction, exponent, relative_width
from pipeline.train.config import TrainConfig
from testing.averages import SIGMAS, shares
from testing.tiny import CONFIG, WEIGHTS


@pytest.mark.parametrize("sigma_rel", SIGMAS)
def test_a_power_function_unrolled_is_its_closed_form(sigma_rel):
    """The shares telescope: (s^(gamma+1) - (s-1)^(gamma+1)) / t^(gamma+1), which sum to 1, and none is the start's."""
    profile, t = PowerFunction(sigma_rel=sigma_rel), 500
    s = np.arange(1, t + 1) / t
    closed = s ** (profile.gamma + 1) - (s - 1 / t) ** (profile.gamma + 1)
    found = shares(profile, t)
    np.testing.assert_allclose(found[1:], closed, rtol=1e-10, atol=1e-30)
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert found[0] == 0


@pytest.mark.parametrize("sigma_rel", SIGMAS)
def test_a_power_function_is_as_wide_as_asked(sigma_rel):
    """Measured on the recursion's own shares; a step is 1/t wide, so its error falls with the number of steps."""
    for t, tolerance in ((500, 5e-3), (5000, 5e-4)):
        weights, s = shares(PowerFunction(sigma_rel=sigma_rel), t)[1:], np.arange(1, t + 1) / t
        mean = (weights * s).sum()
        assert np.sqrt((weights * (s - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=tolerance)


def test_exponents_are_those_of_the_paper():
    """Karras et al. 2023, below equation 4: sigma_rel 0.05 and 0.10 are gamma 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for sigma_rel in SIGMAS:
        assert relative_width(exponent(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)
    assert exponent(FLATTEST) == pytest.approx(0, abs=1e-9)  # the plain mean
    np.testing.assert_allclose(shares(PowerFunction(sigma_rel=FLATTEST), 7)[1:], 1 / 7)


def test_a_fixed_decay_warms_up():
    assert FixedDecay(decay=0.99).weight(0) == pytest.approx(0.9)
    assert FixedDecay(decay=0.99).weight(10**6) == 1 - 0.99
    assert shares(FixedDecay(decay=0.99), 300).sum() == pytest.approx(1, abs=1e-12)


def test_names():
    assert [PowerFunction(sigma_rel=s).name for s in (0.1, 0.075, 0.05)] == ["power-0.10", "power-0.075", "power-0.05"]
    assert [profile.name for profile in TrainConfig.model_validate({"ema": 0.9999}).ema] == ["decay-0.9999"]
    assert [profile.name for profile in CONFIG.ema] == list(WEIGHTS[1:])
