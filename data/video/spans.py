"""Which stretches of a video become clips, and of which frames: arithmetic on time stamps, no decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.dataset.buckets import Bucket, SourceShape, bucket_for
from data.errors import VideoError

TIE_SECONDS = 5e-4  # time stamps are rounded numbers: a frame that begins this much late still begins "now"


@dataclass(frozen=True)
class PlannedSpan:
    """A stretch of a source that shall become a clip, and the frames it is made of."""

    start_seconds: float
    bucket: Bucket
    indices: list[int]


@dataclass(frozen=True)
class Stretch:
    """A part of a video, in seconds after its first frame."""

    start_seconds: float = 0.0
    end_seconds: float = float("inf")


WHOLE = Stretch()


def shown_part(times_seconds: np.ndarray, stretch: Stretch) -> tuple[float, float]:
    """How long the video is on screen, and where the stretch ends in it, in seconds."""
    # The last frame stays on screen for one more frame interval; without that a 2.0 s file has no 2.0 s clip.
    interval = float(np.median(np.diff(times_seconds))) if len(times_seconds) > 1 else 0.0
    shown = float(times_seconds[-1] - times_seconds[0]) + interval
    return shown, min(stretch.end_seconds, shown)


def plan_spans(
    times_seconds: np.ndarray,
    size: tuple[int, int],
    buckets: Sequence[Bucket],
    cuts: Sequence[int] = (),
    stretch: Stretch = WHOLE,
) -> list[PlannedSpan]:
    """Start (seconds after the first frame), shape and frames of every clip that fits.

    Args:
        times_seconds: when each frame is shown, strictly increasing.
        size: height and width of the frames.
        cuts: indices of frames that begin a new scene; each scene is cut on its own, in a bucket of its own.
        stretch: the part of the video to cut from.

    Raises:
        VideoError: not even one clip fits.
    """
    shown, end = shown_part(times_seconds, stretch)
    start = min(stretch.start_seconds, shown)
    scenes = [float(times_seconds[cut] - times_seconds[0]) for cut in cuts]
    edges = [start, *(edge for edge in scenes if start < edge < end), end]
    spans = []
    for scene_start, scene_end in pairwise(edges):
        if scene_start >= scene_end and shown > 0:  # a stretch beyond the end
            continue
        # At the end of a scene the next frame is already another one, at the end of the video there is none.
        room = scene_end - scene_start - (0 if scene_end == shown else 2 * TIE_SECONDS)
        bucket = bucket_for(SourceShape(*size, room), buckets)
        if bucket is None:
            continue
        pitch = bucket.num_frames / bucket.fps
        num_clips = int((room - bucket.duration_seconds) // pitch) + 1 if bucket.num_frames > 1 else 1
        for number in range(num_clips):
            span_start = scene_start + number * pitch
            wanted = times_seconds[0] + span_start + np.arange(bucket.num_frames) / bucket.fps
            indices = np.searchsorted(times_seconds, wanted + TIE_SECONDS, side="right") - 1
            spans.append(PlannedSpan(span_start, bucket, indices.tolist()))
    if not spans:
        scene = " in one scene" if len(edges) > 2 else ""
        longest = max(after - before for before, after in pairwise(edges))
        shortest = min(buckets, key=lambda bucket: bucket.duration_seconds)
        raise VideoError(
            "too_short",
            f"it is too short: it shows {max(longest, 0):.2f} s of video{scene}, but a clip of "
            f"{shortest.num_frames} frames at {shortest.fps:g} fps needs {shortest.duration_seconds:.2f} s",
        )
    return spans
