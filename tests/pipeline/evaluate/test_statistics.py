"""Statistics of drawn clips whose values are known."""

import numpy as np
import pytest

from pipeline.evaluate.statistics import measure_clip


def clip(*shades: int, side: int = 4) -> np.ndarray:
    return np.stack([np.full((side, side, 3), shade, np.uint8) for shade in shades])


def test_a_grey_clip_has_brightness_alone():
    found = measure_clip(clip(51, 51, 51))
    assert found.brightness == pytest.approx(0.2)
    rest = {name: value for name, value in vars(found).items() if name != "brightness"}
    assert rest == pytest.approx(dict.fromkeys(rest, 0.0), abs=1e-6)


def test_steady_change_is_motion_and_alternation_is_flicker_too():
    steady, alternating = measure_clip(clip(0, 51, 102, 153)), measure_clip(clip(0, 51, 0, 51))
    assert steady.motion == pytest.approx(0.2)
    assert alternating.motion == pytest.approx(0.2)
    assert steady.flicker == pytest.approx(0, abs=1e-6)
    assert alternating.flicker == pytest.approx(0.2)


def test_stripes_have_sharpness_and_contrast():
    stripes = np.zeros((2, 4, 4, 3), np.uint8)
    stripes[:, :, ::2] = 255  # columns: every neighbour to the right differs, none below
    found = measure_clip(stripes)
    assert found.sharpness == pytest.approx(0.5)
    assert found.contrast == pytest.approx(0.5)


def test_coloured_area_is_the_share_of_saturated_pixels():
    frames = clip(100, side=4)
    frames[0, 0, :3] = (255, 0, 0)
    found = measure_clip(frames)
    assert found.coloured_area == pytest.approx(3 / 16)
    assert found.saturation == pytest.approx(3 / 16)


def test_a_single_frame_has_no_motion():
    found = measure_clip(clip(7))
    assert (found.motion, found.flicker) == (0, 0)
