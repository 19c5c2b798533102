"""Spans of a video: no overlap, none across a cut, and why a video has none."""

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest

from data.dataset.buckets import (
    Bucket,
)
from data.errors import VideoError
from data.video.spans import WHOLE, Placement, Stretch, Transition, plan_spans
from testing.shapes import STILL


def test_a_stretch_beyond_the_end_gives_no_clip():
    with pytest.raises(VideoError, match="too short"):
        plan_spans(np.arange(80) / 8, (64, 64), [STILL], stretch=Stretch(100, 200))


BUCKET = Bucket(num_frames=5, height=32, width=32, fps=4)


def test_consecutive_spans_do_not_overlap():
    times = np.arange(100) / 25
    spans = plan_spans(times, (64, 64), [BUCKET])
    assert [round(span.start_seconds, 3) for span in spans] == [0.0, 1.25, 2.5]
    indices = [i for span in spans for i in span.indices]
    assert len(set(indices)) == len(indices) == 15
    assert max(indices) < 100


def test_a_short_video_says_how_short():
    with pytest.raises(VideoError, match=r"too short: it shows 0\.40 s.*needs 1\.00 s"):
        plan_spans(np.arange(10) / 25, (64, 64), [BUCKET])


def test_no_clip_reaches_across_a_cut_or_out_of_its_stretch():
    times, bucket = np.arange(200) / 25, Bucket(num_frames=5, height=32, width=32, fps=4)
    cuts = [37, 90, 100, 160]
    transitions = [Transition(cut, cut) for cut in cuts]
    for span in plan_spans(times, (64, 64), [bucket], transitions):
        assert not [cut for cut in cuts if span.indices[0] < cut <= span.indices[-1]]
        assert times[span.indices[0]] <= span.start_seconds + 1e-3
    assert [span.start_seconds for span in plan_spans(times, (64, 64), [bucket], transitions)] == [
        0.0,
        37 / 25,
        4.0,
        5.25,
        160 / 25,
    ]
    inside = plan_spans(times, (64, 64), [bucket], stretch=Stretch(2.0, 5.0))
    assert [span.start_seconds for span in inside] == [2.0, 3.25]
    assert all(2.0 <= times[i] < 5.0 for span in inside for i in span.indices)
    with pytest.raises(VideoError, match=r"shows 0\.90 s of video"):
        plan_spans(times, (64, 64), [bucket], stretch=Stretch(1.0, 1.9))


def test_no_more_spans_are_planned_than_are_used():
    """Ten thousand years of gap: planned to the end, they would fill the memory."""
    times = np.array([*np.arange(25) / 25, 3e11])
    shorter = np.array([*np.arange(25) / 25, 100.0])
    expected = plan_spans(shorter, (64, 64), [BUCKET], max_spans=3)
    assert [span.start_seconds for span in expected] == [0, 1.25, 2.5]
    assert plan_spans(times, (64, 64), [BUCKET], max_spans=3) == expected
    for placement in get_args(Placement):  # the time without frames has no clips where these are chosen from all
        (only,) = plan_spans(times, (64, 64), [BUCKET], max_spans=None, placement=placement)
        assert only == expected[0]


TIMES = np.arange(1000) / 25  # 32 clips of 1.25 s fit


def starts(placement: Placement, most: int | None, address: str = "", cuts: tuple[int, ...] = ()) -> list[float]:
    transitions = [Transition(cut, cut) for cut in cuts]
    spans = plan_spans(TIMES, (64, 64), [BUCKET], transitions, WHOLE, most, placement, address)
    assert all(a.start_seconds + 1.25 <= b.start_seconds + 1e-9 for a, b in pairwise(spans))
    return [span.start_seconds for span in spans]


def test_clips_are_spread_evenly_over_a_long_video():
    assert starts("start", 4) == [0, 1.25, 2.5, 3.75]
    assert starts("even", 4) == [4 * 1.25, 12 * 1.25, 20 * 1.25, 28 * 1.25]
    assert starts("even", 1) == [16 * 1.25]


@pytest.mark.parametrize("placement", get_args(Placement))
def test_where_all_clips_fit_the_placement_does_not_matter(placement):
    every = [number * 1.25 for number in range(32)]
    assert starts(placement, None) == starts(placement, 32) == starts(placement, 99) == every


def test_drawn_clips_depend_on_the_address_alone_and_lie_in_each_part():
    drawn = {name: starts("random", 4, name) for name in ("a.mp4", "b.mp4", "c.mp4")}
    assert drawn["a.mp4"] == starts("random", 4, "a.mp4")
    assert len({tuple(of_video) for of_video in drawn.values()}) == 3
    for of_video in drawn.values():
        assert [int(start // 10) for start in of_video] == [0, 1, 2, 3]


def test_each_scene_has_one_clip_before_any_has_two():
    """Scenes of 2, 10, 4 and 24 s, for 1, 8, 3 and 19 clips."""
    edges, cuts = (0, 2, 12, 16, 40), (50, 300, 400)

    def per_scene(most: int) -> list[int]:
        return np.histogram(starts("scenes", most, cuts=cuts), edges)[0].tolist()

    assert [per_scene(most) for most in (1, 2, 4, 5, 7, 9, 11)] == [
        [0, 0, 1, 0],
        [0, 1, 0, 1],
        [1, 1, 1, 1],
        [1, 1, 2, 1],
        [1, 2, 2, 2],
        [1, 3, 2, 3],
        [1, 3, 3, 4],
    ]
    assert per_scene(99) == [1, 8, 3, 19]


def test_the_frame_on_screen_is_the_last_that_started_at_most_half_a_millisecond_later():
    rng = np.random.default_rng(0)
    for _ in range(50):
        steps = rng.choice([0.0001, 0.0004, 0.04, 0.2495, 0.2504, 0.2506, 0.3], 60)
        times = np.cumsum(steps)
        for span in plan_spans(times, (64, 64), [BUCKET]):
            for number, index in enumerate(span.indices):
                instant = times[0] + span.start_seconds + number / BUCKET.fps
                assert index == max(at for at, time in enumerate(times) if time <= instant + 5e-4)
