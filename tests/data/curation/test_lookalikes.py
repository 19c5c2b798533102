"""Clips that were mirrored or cropped are found; others, and those that move otherwise, are not."""

import numpy as np
import pytest

from data.curation.lookalikes import Lookalikes, describe
from data.video.codec import decode_clip, encode_clip
from data.video.resize import resize_and_crop
from testing.edits import draw_picture

BITS = 24


@pytest.fixture(scope="module")
def clips():
    generator = np.random.default_rng(8)
    worlds = [draw_picture(generator, 128, 160) for _ in range(12)]
    return [np.stack([world[step : step + 96, 2 * step : 2 * step + 128] for step in range(9)]) for world in worlds]


@pytest.fixture(scope="module")
def seen(clips):
    kept = Lookalikes(BITS)
    for number, clip in enumerate(clips):
        assert kept.find(describe(clip)) is None
        kept.keep(describe(clip), str(number))
    return kept


def cropped(clip, left, right, top, bottom):
    _, height, width, _ = clip.shape
    rows, columns = (
        (round(top * height), round((1 - bottom) * height)),
        (round(left * width), round((1 - right) * width)),
    )
    return resize_and_crop(clip[:, slice(*rows), slice(*columns)], height, width)


@pytest.mark.parametrize(
    ("edges", "is_mirrored"),
    [
        ((0, 0, 0, 0), True),
        ((0.05, 0, 0, 0.05), False),
        ((0.05, 0.05, 0.05, 0.05), True),
        ((0.1, 0, 0.05, 0.05), False),
    ],
)
def test_a_mirrored_or_cropped_copy_is_found(clips, seen, edges, is_mirrored):
    """At least 11 of 12, as the search is not exact (`benchmarks/curation.py` measures it), and never another clip."""
    found = []
    for clip in clips:
        copy = cropped(clip, *edges)[:, :, :: -1 if is_mirrored else 1]
        again = decode_clip(encode_clip(resize_and_crop(copy, 72, 96), 8, crf=26))
        found.append(seen.find(describe(again)))
    assert all(name in (None, str(number)) for number, name in enumerate(found))
    assert found.count(None) <= 1


def test_the_original_of_a_cropped_copy_is_found_too(clips):
    kept = Lookalikes(BITS)
    kept.keep(describe(cropped(clips[0], 0.05, 0.05, 0, 0.1)), "copy")
    assert kept.find(describe(clips[0])) == "copy"


def test_the_earliest_of_several_is_named(clips):
    kept = Lookalikes(BITS)
    for name in ("first", "second"):
        kept.keep(describe(clips[0]), name)
    assert kept.find(describe(clips[0])) == "first"


def test_clips_of_a_fixed_camera_are_told_apart_by_what_moves():
    background = draw_picture(np.random.default_rng(3), 96, 128)

    def crossing(direction):
        clip = np.repeat(background[None], 9, 0)
        for step in range(9):
            at = 8 + 10 * (step if direction > 0 else 8 - step)
            clip[step, 40:64, at : at + 24] = 255
        return clip

    kept = Lookalikes(32)
    kept.keep(describe(crossing(1)), "right")
    assert kept.find(describe(crossing(1))) == "right"
    assert kept.find(describe(np.repeat(background[None], 9, 0))) is None
    assert kept.find(describe(crossing(1)[::-1])) is None
