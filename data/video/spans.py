"""Which parts of a video become clips, and which frames these consist of: arithmetic on time stamps, no decoding.

The rule: frame k of a clip that starts at s shows what is on screen at s + k / fps, which is the last frame of the
video whose time stamp is not later. Containers round time stamps (Matroska to a millisecond), so a frame that starts at
most `TIE_SECONDS` after the instant counts as on screen already. The last frame stays on screen for the median interval
between two frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.dataset.buckets import Bucket, SourceShape, bucket_for
from data.errors import VideoError

TIE_SECONDS = 5e-4  # time stamps are rounded: a frame that starts at most this late counts as on time


@dataclass(frozen=True)
class PlannedSpan:
    """A part of a source that becomes a clip."""

    start_seconds: float  # after the first frame of the video
    bucket: Bucket
    indices: list[int]  # of the frame of the video for each frame of the clip; may repeat


@dataclass(frozen=True)
class Stretch:
    """A part of a video, in seconds after its first frame."""

    start_seconds: float = 0.0
    end_seconds: float = float("inf")


WHOLE = Stretch()


@dataclass(frozen=True)
class Transition:
    """Where one scene of a video ends and the next begins, by indices of frames."""

    start: int  # first frame that is not of the old scene alone
    end: int  # first frame of the new scene alone; equal to `start` at a hard cut


def shown_part(times_seconds: np.ndarray, stretch: Stretch) -> tuple[float, float]:
    """Duration of the video, and where the stretch ends in it, in seconds after the first frame."""
    # The last frame is shown for one more frame interval; without it, a 2.0 s file would have no 2.0 s clip.
    interval = float(np.median(np.diff(times_seconds))) if len(times_seconds) > 1 else 0.0
    shown = float(times_seconds[-1] - times_seconds[0]) + interval
    return shown, min(stretch.end_seconds, shown)


def plan_spans(
    times_seconds: np.ndarray,
    size: tuple[int, int],
    buckets: Sequence[Bucket],
    cuts: Sequence[Transition] = (),
    stretch: Stretch = WHOLE,
    max_spans: int | None = None,
) -> list[PlannedSpan]:
    """Start, shape and frames of the clips that fit, in order.

    Args:
        times_seconds: presentation time of each frame, strictly increasing.
        size: height and width of the frames.
        cuts: transitions between scenes, in order and not overlapping; no clip shows their frames, and each scene gets
            its own bucket.
        stretch: the part of the video to cut from.
        max_spans: plan only the first so many; None: all. A single false time stamp can stand for years of video, so
            no more are planned than are used.

    Raises:
        VideoError: no clip fits.
    """
    shown, end = shown_part(times_seconds, stretch)
    start = min(stretch.start_seconds, shown)
    scenes = _scenes(times_seconds, cuts, start, end)
    spans = []
    for scene_start, scene_end in scenes:
        if max_spans is not None and len(spans) >= max_spans:
            break
        if scene_start >= scene_end and shown > 0:  # the stretch begins after the end
            continue
        # At the end of a scene, unlike that of the video, a frame that counts as on time may belong to the next scene.
        room = scene_end - scene_start - (0 if scene_end == shown else 2 * TIE_SECONDS)
        bucket = bucket_for(SourceShape(*size, room), buckets)
        if bucket is None:
            continue
        pitch = bucket.num_frames / bucket.fps
        num_clips = int((room - bucket.duration_seconds) // pitch) + 1 if bucket.num_frames > 1 else 1
        num_wanted = num_clips if max_spans is None else min(num_clips, max_spans - len(spans))
        for number in range(num_wanted):
            span_start = scene_start + number * pitch
            wanted = times_seconds[0] + span_start + np.arange(bucket.num_frames) / bucket.fps
            indices = np.searchsorted(times_seconds, wanted + TIE_SECONDS, side="right") - 1
            spans.append(PlannedSpan(span_start, bucket, indices.tolist()))
    if not spans:
        scene = " in one scene" if len(scenes) > 1 else ""
        longest = max((after - before for before, after in scenes), default=0.0)
        shortest = min(buckets, key=lambda bucket: bucket.duration_seconds)
        raise VideoError(
            "too_short",
            f"it is too short: it shows {max(longest, 0):.2f} s of video{scene}, but a clip of "
            f"{shortest.num_frames} frames at {shortest.fps:g} fps needs {shortest.duration_seconds:.2f} s",
        )
    return spans


def _scenes(
    times_seconds: np.ndarray, cuts: Sequence[Transition], start: float, end: float
) -> list[tuple[float, float]]:
    """Start and end of each scene in a part of the video, in seconds after its first frame."""
    if not cuts:
        return [(start, end)]
    times = [*(times_seconds - times_seconds[0]).tolist(), float("inf")]  # a transition may lead to the very end
    begins, ends = [start, *(times[cut.end] for cut in cuts)], [*(times[cut.start] for cut in cuts), end]
    scenes = [(max(start, first), min(last, end)) for first, last in zip(begins, ends, strict=True)]
    return [(first, last) for first, last in scenes if first < last]
