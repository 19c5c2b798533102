"""Filters, duplicates and scene cuts, on clips constructed to have each property."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data.curation.config import FilterConfig, Measure
from data.curation.filters import Duplicates, failed_filter, perceptual_hash
from data.curation.measures import (
    ALWAYS_MEASURED,
    bar_share,
    clipped_share,
    logo_share,
    measure_clip,
    motion,
    sharpness,
)
from data.synthetic import combinations, random_scene, render
from data.video.codec import decode_clip, encode_clip
from testing.edits import draw_picture, draw_shot

EVERY_FILTER = FilterConfig(static_difference=0.5, black_luma=8, letter_boxed_share=0.1, duplicate_bits=6)


def moving(seed: int = 0, side: int = 64) -> np.ndarray:
    return render(random_scene(0, seed, combinations()), 9, side)


def failed(frames: np.ndarray, config: FilterConfig = EVERY_FILTER) -> str | None:
    result = failed_filter(measure_clip(frames, 8, config, None), config, is_still=len(frames) == 1)
    return result[0] if result else None


def test_each_filter_knows_its_clips_and_no_other():
    clip = np.clip(moving().astype(int) + 40, 0, 255).astype(np.uint8)
    boxed = clip.copy()
    boxed[:, :8] = boxed[:, -8:] = 0
    pillars = clip.copy()
    pillars[:, :, :5] = 16
    assert failed(clip) is None
    assert failed(np.zeros_like(clip)) == "black"
    assert failed(np.repeat(clip[:1], 9, axis=0)) == "static"
    assert failed(boxed) == failed(decode_clip(encode_clip(boxed, 8))) == "letter_boxed"
    assert bar_share(boxed.mean(-1)) == pytest.approx(16 / 64)
    assert bar_share(pillars.mean(-1)) == pytest.approx(5 / 64)
    for frames in (np.zeros_like(clip), np.repeat(clip[:1], 9, axis=0), boxed):
        assert failed(frames, FilterConfig()) is None  # off by default


def test_the_hash_survives_encoding_and_scaling_and_tells_clips_apart():
    clips = [moving(seed, 96) for seed in range(12)]
    hashes = [perceptual_hash(clip) for clip in clips]
    again = [perceptual_hash(decode_clip(encode_clip(clip, 8, crf=28))) for clip in clips]
    same = [(a ^ b).bit_count() for a, b in zip(hashes, again, strict=True)]
    other = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert max(same) < min(other)


def test_duplicates_are_found_exactly_as_by_comparing_all():
    random = np.random.default_rng(0)
    values = [int.from_bytes(random.bytes(23), "big") for _ in range(60)]
    values += [
        value ^ (1 << int(a)) ^ (1 << int(b))
        for value, (a, b) in zip(values, random.integers(0, 184, (60, 2)), strict=True)
    ]
    for bits in (0, 1, 2, 5):
        seen, kept = Duplicates(bits), []
        for value in values:
            expected = any((value ^ other).bit_count() <= bits for other in kept)
            assert (seen.find(f"{value:x}") is not None) == expected
            if not expected:
                seen.keep(f"{value:x}", str(value))
                kept.append(value)


def test_motion_is_the_speed_of_a_moving_picture_in_its_shorter_sides():
    world = draw_picture(np.random.default_rng(0), 96, 256)
    panned = np.stack([world[:, 2 * step : 2 * step + 128] for step in range(17)])
    assert motion(panned, 8) == pytest.approx(2 * 8 / 96, rel=0.1)
    assert motion(np.repeat(panned[:1], 5, 0), 8) == pytest.approx(0, abs=1e-3)
    assert motion(panned[:1], 8) == 0


def test_sharpness_falls_with_blur_and_not_with_contrast():
    picture = draw_picture(np.random.default_rng(1), 96, 128).mean(-1)
    values = [sharpness(gaussian_filter(picture, sigma)[None]) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * values[2]
    assert sharpness(0.3 * picture[None]) == pytest.approx(values[0])
    assert sharpness(np.zeros((1, 16, 16), np.float32)) == 0


def test_clipped_share_counts_black_and_white_pixels():
    luma = np.full((2, 4, 4), 128.0, np.float32)
    luma[:, 0], luma[:, 1, :2] = 0, 255
    assert clipped_share(luma) == pytest.approx(6 / 16)


@pytest.mark.parametrize("opacity", [0.5, 1.0])
def test_a_logo_is_seen_before_what_moves_and_only_there(opacity):
    frames = draw_shot(np.random.default_rng(2), 48, "drift")[::3].astype(np.float32)
    marked = frames.copy()
    marked[:, 8:28, 8:48] *= 1 - opacity
    marked[:, 8:28, 8:48] += opacity * 255 * (np.indices((20, 40)).sum(0) // 4 % 2)[..., None]
    luma, marked_luma = frames.mean(-1), marked.mean(-1)
    assert logo_share(luma) < 0.003
    assert logo_share(marked_luma) == pytest.approx(20 * 40 / (144 * 256), rel=0.5)
    assert logo_share(np.repeat(marked_luma[:1], 16, 0)) == 0  # nothing moves


def test_new_thresholds_name_their_reason():
    clip = moving()
    values: dict[Measure, float] = {"motion": 0.1, "sharpness": 0.5, "clipped": 0.3, "logo": 0.02}
    cases = {
        "too_still": FilterConfig(min_motion=0.2),
        "too_fast": FilterConfig(max_motion=0.05),
        "blurred": FilterConfig(min_sharpness=0.6),
        "badly_exposed": FilterConfig(max_clipped_share=0.2),
        "logo": FilterConfig(max_logo_share=0.01),
    }
    for reason, config in cases.items():
        found = failed_filter(values, config)
        assert found is not None
        assert found[0] == reason
        assert set(measure_clip(clip, 8, config, None)) == config.recorded | ALWAYS_MEASURED
    still: dict[Measure, float] = {"motion": 0.0}
    assert failed_filter(still, cases["too_still"], is_still=True) is None
    passing = FilterConfig(
        min_motion=0.1, max_motion=0.1, min_sharpness=0.5, max_clipped_share=0.3, max_logo_share=0.02
    )
    assert failed_filter(values, passing) is None


def test_what_is_recorded_is_asked_for_or_newly_compared():
    assert FilterConfig(black_luma=8).recorded == set()
    assert FilterConfig(measures=("brightness",), max_motion=1).recorded == {"brightness", "motion"}
    found = measure_clip(moving(), 8, FilterConfig(measures=("bars", "change")), 0.1)
    assert set(found) == {"brightness", "change", "bars", "sharpness", "clipped", "text"}
