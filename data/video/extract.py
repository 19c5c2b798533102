"""From a source file to the pixels of its clips: uint8 RGB (t h w c), in the shape of their bucket.

A video is cut as a stream: the clips of one span are decoded, handed on and released before the next span is decoded,
so that a film of any length takes the memory of one span.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from data.dataset.buckets import Bucket, SourceShape
from data.dataset.clip import Decoder
from data.errors import VideoError
from data.records import Frames
from data.video.augment import AS_IT_IS, AugmentConfig
from data.video.bars import find_picture, without_bars
from data.video.decoders.selection import timelines
from data.video.decoders.timeline import Frame, ReadFrames, Timeline, UnfitDecoderError
from data.video.formats import IMAGE_SUFFIXES, HdrHandling
from data.video.images import read_image
from data.video.probe import Probe, probe_video
from data.video.resize import Box, Size, crop_box, reading_size, resize_and_crop
from data.video.spans import WHOLE, Placement, PlannedSpan, Stretch, Transition, plan_spans, shown_part

FindCuts = Callable[[Timeline, Size], list[Transition]]
TextMeasure = Callable[[UInt8[np.ndarray, "h w 3"], Box], float]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Span:
    """The pixels of a clip, in the shape of its bucket."""

    start_seconds: float  # after the source's first frame
    bucket: Bucket
    variant: str  # how it was augmented; empty if it was not
    frames: Frames
    decoder: Decoder
    source_height: int  # square pixels, of the video it was cut from, upright
    source_width: int
    text_fraction: float | None = None  # share of its picture that is text; None: not measured


@dataclass(frozen=True)
class Progress:
    """Who is told how far a video is, so that a long one is given the time that it needs."""

    begun: Callable[[float], None] = lambda _: None  # called once, with the seconds of video that its packets show
    frame_read: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class CutConfig:
    """Which clips are cut from a file, and what is measured while it is decoded."""

    max_spans: int | None = 1  # augmented clips are not counted; None: every span that fits
    placement: Placement = "start"
    address: str = ""  # of the source, where the placement depends on it (`plan_spans`)
    stretch: Stretch = WHOLE  # the part of the video to cut from
    min_side_pixels: int = 1  # files whose shorter side has fewer are refused
    max_pixels: int | None = None  # files whose frames have more are refused before they are decoded; None: none are
    # Returns the transitions between scenes, from a timeline and the size of the video; no clip shows their frames.
    # None: the whole video is one scene.
    find_cuts: FindCuts | None = None
    # Measures the share of a part of a frame that is text, before it is resized; None: not measured.
    text_fraction: TextMeasure | None = None
    augment: AugmentConfig = AS_IT_IS  # further clips of each span
    hdr: HdrHandling = "as_sdr"  # what is done with videos of high dynamic range
    crops_bars: bool = False  # cut black bars off the edges first, so that the picture alone decides the shape


ONE_SPAN = CutConfig()


def cut_file(
    path: Path,
    buckets: Sequence[Bucket],
    process: Callable[[list[Span]], Made],
    config: CutConfig = ONE_SPAN,
    *,
    restart: Callable[[], None] = lambda: None,
    progress: Progress = Progress(),
) -> list[Made]:
    """Cut consecutive, non-overlapping clips from a video, or one from an image, and process those of each span.

    For each instant of the clip, the frame that is shown at that time is taken (`data/video/spans.py`), so a variable
    frame rate keeps its timing. Frames are resized to cover the bucket, antialiased, and cropped; pixels that are not
    square become square in the same step.

    Args:
        buckets: the available shapes; each scene gets the one that suits it (`bucket_for`).
        process: called with the clips of each span, augmented ones included, in order of time; its results are
            returned. Only one span is in memory, unless `process` keeps it.
        restart: called when a decoder fails: another one begins at the first span, and the results are forgotten.

    Raises:
        VideoError: the file cannot be decoded, contains no video, is too small or too large, is shorter than one clip,
            shows nothing but transparent pixels, or has a high dynamic range and `hdr` is `drop`.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = read_image(path, config.max_pixels)
        height, width, _ = picture.shape
        _check_size(height, width, config.min_side_pixels)

        def read(indices: list[int], size: Size | None = None) -> Iterator[Frame]:  # noqa: ARG001 - of the interface
            yield picture

        still, size = Timeline(np.zeros(1), read, "pillow"), (height, width)
        if config.crops_bars:
            still, size = without_bars(still, size)
        planned = plan_spans(still.times_seconds, size, buckets)
        return [process(_clips_of(still, size, config, span)) for span in planned]
    probe = _prepared_for_hdr(probe_video(path, config.max_pixels), config.hdr)
    _check_size(probe.height, probe.width, config.min_side_pixels)
    progress.begun(probe.shown_seconds)
    for timeline in timelines(path, probe):
        counted, shown = replace(timeline, read=partial(_counted, timeline.read, progress.frame_read)), probe.shown_size
        try:
            if config.crops_bars:
                counted, shown = without_bars(counted, shown)
            cuts = config.find_cuts(counted, shown) if config.find_cuts is not None else []
            planned = plan_spans(
                timeline.times_seconds,
                shown,
                buckets,
                cuts,
                config.stretch,
                config.max_spans,
                config.placement,
                config.address,
            )
            # Not in a loop, whose variable would keep one span while the next is decoded.
            made = list(map(process, map(partial(_clips_of, counted, shown, config), planned)))
            timeline.check()
            return made
        except UnfitDecoderError:
            restart()
    raise VideoError("undecodable", "no decoder can read its frames")


def read_spans(path: Path, buckets: Sequence[Bucket], max_spans: int, config: CutConfig = ONE_SPAN) -> list[Span]:
    """The clips of the first `max_spans` spans, all in memory at once.

    Raises:
        VideoError: as `cut_file`.
    """
    return [span for spans in cut_file(path, buckets, list, replace(config, max_spans=max_spans)) for span in spans]


def measure_source(
    path: Path, stretch: Stretch = WHOLE, max_pixels: int | None = None, crops_bars: bool = False
) -> SourceShape:
    """Size and duration of a file, decoding at most one frame, and a few more to find bars.

    Args:
        crops_bars: the size is that without black bars, as `CutConfig` has it.

    Raises:
        VideoError: it cannot be read, or is larger than `max_pixels`.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = read_image(path, max_pixels)
        height, width = find_picture([picture]).size(picture.shape[:2]) if crops_bars else picture.shape[:2]
        return SourceShape(height, width, 0.0)
    probe = probe_video(path, max_pixels)
    height, width = _size_without_bars(path, probe) if crops_bars else probe.shown_size
    if len(probe.ticks) == 0:  # only decoding shows how long it is
        return SourceShape(height, width, float("inf"))
    _, end = shown_part(probe.times_seconds, stretch)
    return SourceShape(height, width, max(0.0, end - min(stretch.start_seconds, end)))


def _size_without_bars(path: Path, probe: Probe) -> Size:
    for timeline in timelines(path, probe):
        try:
            return without_bars(timeline, probe.shown_size)[1]
        except UnfitDecoderError:
            continue
    raise VideoError("undecodable", "no decoder can read its frames")


def _prepared_for_hdr(probe: Probe, hdr: HdrHandling) -> Probe:
    """A probe that says whether frames are tone-mapped.

    Raises:
        VideoError: the video has a high dynamic range, and such videos are left out.
    """
    if probe.hdr is None or hdr == "as_sdr":
        return probe
    if hdr == "drop":
        raise VideoError("hdr", f"it has a high dynamic range ({probe.hdr.upper()})")
    return replace(probe, is_tone_mapped=True)


def _check_size(height: int, width: int, min_side_pixels: int) -> None:
    if min(height, width) < min_side_pixels:
        size = f"{width} x {height}"
        raise VideoError("too_small", f"it is too small: {size} pixels, and the shorter side needs {min_side_pixels}")


def _counted(
    read: ReadFrames, frame_read: Callable[[], None], indices: list[int], size: Size | None = None
) -> Iterator[Frame]:
    """The frames, each one reported."""
    for frame in read(indices, size):
        frame_read()
        yield frame


def _clips_of(timeline: Timeline, shown: Size, config: CutConfig, span: PlannedSpan) -> list[Span]:
    """The clips of a planned span. Each frame is resized when it is decoded, so only one is held at full size."""
    (height, width), bucket = shown, span.bucket
    needed = sorted(set(span.indices))
    measured = [span.indices[0], span.indices[len(span.indices) // 2], span.indices[-1]]
    crops: dict[float, dict[int, Frames]] = {}  # by position of the crop, then by index of the frame: (1 h w 3)
    fractions: dict[int, float] = {}  # share of the central crop that is text, by index of the frame
    size = None if config.text_fraction is not None else reading_size(shown, bucket.height, bucket.width)
    for index, frame in zip(needed, timeline.read(needed, size), strict=True):
        if config.text_fraction is not None and index in measured:
            square = frame if frame.shape[:2] == shown else resize_and_crop(frame[None], *shown, shown=shown)[0]
            fractions[index] = config.text_fraction(square, crop_box(height, width, bucket.height, bucket.width))
        for position in config.augment.crop_positions(SourceShape(height, width, 0.0), bucket):
            crop = resize_and_crop(frame[None], bucket.height, bucket.width, position, shown)
            crops.setdefault(position, {})[index] = crop
    # The median: two of the three frames must show text. With the maximum or the mean, a single false detection or a
    # title that fades out in the first frames could decide alone.
    text = float(np.median([fractions[index] for index in measured])) if fractions else None
    spans = []
    for position, frames_of in crops.items():
        frames = np.concatenate([frames_of[index] for index in span.indices])
        variant = "" if position == 0.5 else f"crop {position:g}"
        unflipped = Span(span.start_seconds, bucket, variant, frames, timeline.decoder, height, width, text)
        spans.append(unflipped)
        if config.augment.flip:
            spans.append(replace(unflipped, variant=f"{variant} flip".strip(), frames=frames[:, :, ::-1]))
    return spans
