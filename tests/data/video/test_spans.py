"""Spans of a video: no overlap, none across a cut, and why a video has none."""

import numpy as np
import pytest

from data.dataset.buckets import (
    Bucket,
)
from data.errors import VideoError
from data.video.spans import Stretch, Transition, plan_spans
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
    expected = plan_spans(shorter, (64, 64), [BUCKET])[:3]
    assert plan_spans(times, (64, 64), [BUCKET], max_spans=3) == expected


def test_the_frame_on_screen_is_the_last_that_started_at_most_half_a_millisecond_later():
    rng = np.random.default_rng(0)
    for _ in range(50):
        steps = rng.choice([0.0001, 0.0004, 0.04, 0.2495, 0.2504, 0.2506, 0.3], 60)
        times = np.cumsum(steps)
        for span in plan_spans(times, (64, 64), [BUCKET]):
            for number, index in enumerate(span.indices):
                instant = times[0] + span.start_seconds + number / BUCKET.fps
                assert index == max(at for at, time in enumerate(times) if time <= instant + 5e-4)
