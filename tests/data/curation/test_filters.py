"""Filters, duplicates and scene cuts, on clips constructed to have each property."""

import numpy as np
import pytest

from data.curation.config import FilterConfig
from data.curation.filters import Duplicates, bar_share, failed_filter, perceptual_hash
from data.synthetic import combinations, random_scene, render
from data.video.codec import decode_clip, encode_clip

EVERY_FILTER = FilterConfig(static_difference=0.5, black_luma=8, letter_boxed_share=0.1, duplicate_bits=6)


def moving(seed: int = 0, side: int = 64) -> np.ndarray:
    return render(random_scene(0, seed, combinations()), 9, side)


def failed(frames: np.ndarray, config: FilterConfig = EVERY_FILTER) -> str | None:
    result = failed_filter(frames, config)
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
            assert (seen.find(value) is not None) == expected
            if not expected:
                seen.keep(value, str(value))
                kept.append(value)
