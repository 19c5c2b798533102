"""Which parts of a video become clips, and which frames these consist of: arithmetic on time stamps, no decoding.

The rule: frame k of a clip that starts at s shows what is on screen at s + k / fps, which is the last frame of the
video whose time stamp is not later. Containers round time stamps (Matroska to a millisecond), so a frame that starts at
most `TIE_SECONDS` after the instant counts as on screen already. The last frame stays on screen for the median interval
between two frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from statistics import median
from typing import Literal

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

# Which clips are cut where more fit than are asked for: the first ones; the middle one of each of so many equal parts
# of those that fit; as many of each scene as of any other, evenly spread; or one drawn from each of those parts.
Placement = Literal["start", "even", "scenes", "random"]


@dataclass(frozen=True)
class Transition:
    """Where one scene of a video ends and the next begins, by indices of frames."""

    start: int  # first frame that is not of the old scene alone
    end: int  # first frame of the new scene alone; equal to `start` at a hard cut


def shown_part(times_seconds: np.ndarray, stretch: Stretch) -> tuple[float, float]:
    """Duration of the video, and where the stretch ends in it, in seconds after the first frame."""
    # The last frame is shown for one more frame interval; without it, a 2.0 s file would have no 2.0 s clip.
    interval = median(np.diff(times_seconds).tolist()) if len(times_seconds) > 1 else 0.0
    shown = float(times_seconds[-1] - times_seconds[0]) + interval
    return shown, min(stretch.end_seconds, shown)


def plan_spans(
    times_seconds: np.ndarray,
    size: tuple[int, int],
    buckets: Sequence[Bucket],
    cuts: Sequence[Transition] = (),
    stretch: Stretch = WHOLE,
    max_spans: int | None = None,
    placement: Placement = "start",
    address: str = "",
) -> list[PlannedSpan]:
    """Start, shape and frames of the clips that fit, in order.

    Args:
        times_seconds: presentation time of each frame, strictly increasing.
        size: height and width of the frames.
        cuts: transitions between scenes, in order and not overlapping; no clip shows their frames, and each scene gets
            its own bucket.
        stretch: the part of the video to cut from.
        max_spans: plan only so many; None: all, except those in which no frame begins: a single false time stamp can
            stand for years of video.
        placement: which ones, where more fit.
        address: of the video, from which `random` draws.

    Raises:
        VideoError: no clip fits.
    """
    shown, end = shown_part(times_seconds, stretch)
    start = min(stretch.start_seconds, shown)
    scenes = _scene_times(times_seconds, cuts, start, end)
    fitting: list[_Scene] = []
    for scene_start, scene_end in scenes:
        if scene_start >= scene_end and shown > 0:  # the stretch begins after the end
            continue
        # At the end of a scene, unlike that of the video, a frame that counts as on time may belong to the next scene.
        room = scene_end - scene_start - (0 if scene_end == shown else 2 * TIE_SECONDS)
        bucket = bucket_for(SourceShape(*size, room), buckets)
        if bucket is not None:
            fitting.append(_Scene(scene_start, room, bucket))
    if not fitting:
        scene = " in one scene" if len(scenes) > 1 else ""
        longest = max((after - before for before, after in scenes), default=0.0)
        shortest = min(buckets, key=lambda bucket: bucket.duration_seconds)
        raise VideoError(
            "too_short",
            f"it is too short: it shows {max(longest, 0):.2f} s of video{scene}, but a clip of "
            f"{shortest.num_frames} frames at {shortest.fps:g} fps needs {shortest.duration_seconds:.2f} s",
        )
    if placement == "start" and max_spans is not None:
        places = [(scene, slot) for scene in fitting for slot in range(min(scene.num_slots, max_spans))][:max_spans]
    else:
        slots = [scene.slots_with_frames(times_seconds - times_seconds[0]) for scene in fitting]
        chosen = _choose([len(of_scene) for of_scene in slots], max_spans, placement, address)
        places = [(fitting[scene], int(slots[scene][number])) for scene, number in chosen]
    spans = []
    for scene, slot in places:
        span_start, bucket = scene.start_seconds + slot * scene.pitch_seconds, scene.bucket
        wanted = times_seconds[0] + span_start + np.arange(bucket.num_frames) / bucket.fps
        indices = np.searchsorted(times_seconds, wanted + TIE_SECONDS, side="right") - 1
        spans.append(PlannedSpan(span_start, bucket, indices.tolist()))
    return spans


def _scene_times(
    times_seconds: np.ndarray, cuts: Sequence[Transition], start: float, end: float
) -> list[tuple[float, float]]:
    """Start and end of each scene in a part of the video, in seconds after its first frame."""
    if not cuts:
        return [(start, end)]
    times = [*(times_seconds - times_seconds[0]).tolist(), float("inf")]  # a transition may lead to the very end
    begins, ends = [start, *(times[cut.end] for cut in cuts)], [*(times[cut.start] for cut in cuts), end]
    scenes = [(max(start, first), min(last, end)) for first, last in zip(begins, ends, strict=True)]
    return [(first, last) for first, last in scenes if first < last]


@dataclass(frozen=True)
class _Scene:
    """A scene that a clip fits in. Clip number k of it, its slot, starts at `start_seconds + k * pitch_seconds`."""

    start_seconds: float
    room_seconds: float  # how long its clips may be together
    bucket: Bucket

    @property
    def pitch_seconds(self) -> float:
        return self.bucket.num_frames / self.bucket.fps

    @property
    def num_slots(self) -> int:
        if self.bucket.num_frames == 1:
            return 1
        return int((self.room_seconds - self.bucket.duration_seconds) // self.pitch_seconds) + 1

    def slots_with_frames(self, times_seconds: np.ndarray) -> np.ndarray:
        """The slots in which a frame of the video begins, and the first one; int64, increasing.

        Args:
            times_seconds: of the frames, after the first.
        """
        end = self.start_seconds + self.num_slots * self.pitch_seconds
        inside = times_seconds[(times_seconds > self.start_seconds) & (times_seconds < end)]
        slots = ((inside - self.start_seconds) / self.pitch_seconds).astype(np.int64)
        return np.unique(np.append(slots[slots < self.num_slots], 0))


def _choose(counts: Sequence[int], most: int | None, placement: Placement, address: str) -> list[tuple[int, int]]:
    """Scene and number within the scene of the clips that are cut, in order, from the number that fit each scene."""
    if most is None or sum(counts) <= most:
        return [(scene, number) for scene, count in enumerate(counts) for number in range(count)]
    if placement == "scenes":
        given = _shares(counts, most)
        return [
            (scene, number)
            for scene, (count, share) in enumerate(zip(counts, given, strict=True))
            for number in _middles(count, share)
        ]
    ends = np.cumsum(counts)
    total = int(ends[-1])
    numbers = _middles(total, most) if placement != "random" else _drawn(total, most, address)
    scenes = np.searchsorted(ends, numbers, side="right")
    return [
        (int(scene), number - int(ends[scene]) + counts[scene]) for scene, number in zip(scenes, numbers, strict=True)
    ]


def _middles(count: int, most: int) -> list[int]:
    """The middle one of each of `most` equal parts of `count` things in a row; at most all of them."""
    return [(2 * part + 1) * count // (2 * most) for part in range(most)]


def _drawn(count: int, most: int, address: str) -> list[int]:
    """One of each of `most` equal parts of `count` things in a row, drawn by the address alone."""
    edges = [part * count // most for part in range(most + 1)]
    seed = int.from_bytes(sha256(address.encode("utf-8", "surrogateescape")).digest()[:8], "big")
    random = np.random.default_rng(seed)
    return [int(random.integers(low, high)) for low, high in pairwise(edges)]


def _shares(counts: Sequence[int], most: int) -> list[int]:
    """How many of `most` clips each scene gets: no scene two before every scene that has room has one, and so on.

    Where not all scenes can have another one, those that do are evenly spread over the video.
    """
    given = [0] * len(counts)
    while most > 0:
        open_scenes = [scene for scene, count in enumerate(counts) if given[scene] < count]
        for place in _middles(len(open_scenes), min(most, len(open_scenes))):
            given[open_scenes[place]] += 1
        most -= min(most, len(open_scenes))
    return given
