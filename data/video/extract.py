"""From a source file to the pixels of its clips: uint8 RGB (t h w c), in the shape of their bucket."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data.dataset.buckets import Bucket, SourceShape
from data.dataset.clip import Decoder
from data.errors import VideoError
from data.records import Frames
from data.video.augment import AS_IT_IS, AugmentConfig
from data.video.bars import find_picture, without_bars
from data.video.decoders.selection import timelines
from data.video.decoders.timeline import Timeline, UnfitDecoderError
from data.video.formats import IMAGE_SUFFIXES, HdrHandling
from data.video.images import read_image
from data.video.probe import Probe, probe_video
from data.video.resize import DETECTION_SIZE, Box, Size, crop_box, decoding_size, resize_and_crop
from data.video.spans import WHOLE, PlannedSpan, Stretch, Transition, plan_spans, shown_part

FindCuts = Callable[[Timeline, Size], list[Transition]]
TextMeasure = Callable[[UInt8[np.ndarray, "h w 3"], Box], float]


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


def read_spans(
    path: Path,
    buckets: Sequence[Bucket],
    max_spans: int,
    *,
    stretch: Stretch = WHOLE,
    min_side_pixels: int = 1,
    find_cuts: FindCuts | None = None,
    text_fraction: TextMeasure | None = None,
    augment: AugmentConfig = AS_IT_IS,
    hdr: HdrHandling = "as_sdr",
    crops_bars: bool = False,
) -> list[Span]:
    """Cut up to `max_spans` consecutive, non-overlapping clips from a video, or one from an image.

    For each instant of the clip, the frame that is shown at that time is taken (`data/video/spans.py`), so a variable
    frame rate keeps its timing. Frames are resized to cover the bucket, antialiased, and cropped; pixels that are not
    square become square in the same step.

    Args:
        buckets: the available shapes; each scene gets the one that suits it (`bucket_for`).
        stretch: the part of the video to cut from.
        min_side_pixels: videos whose shorter side has fewer are refused.
        find_cuts: returns the transitions between scenes, from a timeline and the size of the video; no clip spans one.
            None: the whole video is one scene.
        text_fraction: measures the share of a part of a frame that is text, before it is resized; None: not measured.
        augment: further clips of each span, which `max_spans` does not count.
        hdr: what is done with videos of high dynamic range.
        crops_bars: cut black bars off the edges first, so that the picture alone decides the shape.

    Raises:
        VideoError: the file cannot be decoded, contains no video, is too small, is shorter than one clip, shows nothing
            but transparent pixels, or has a high dynamic range and `hdr` is `drop`.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = read_image(path)
        height, width, _ = picture.shape
        _check_size(height, width, min_side_pixels)
        still, size = Timeline(np.zeros(1), lambda _: iter([picture]), "pillow"), (height, width)
        if crops_bars:
            still, size = without_bars(still, size)
        planned = plan_spans(still.times_seconds, size, buckets)
        return _cut(still, planned, size, augment, text_fraction)
    probe = _prepared_for_hdr(probe_video(path), hdr)
    _check_size(probe.height, probe.width, min_side_pixels)
    shown = (probe.height, probe.width)
    shapes = [(bucket.height, bucket.width) for bucket in buckets]
    if find_cuts is not None:
        shapes.append(DETECTION_SIZE)
    upright = probe.upright_size
    is_whole = text_fraction is not None or crops_bars  # letters stay legible, and the picture within bars large enough
    size = upright if is_whole else decoding_size(shown, shapes, upright)
    for timeline in timelines(path, probe, size):
        try:
            if crops_bars:
                timeline, shown = without_bars(timeline, (probe.height, probe.width))
            cuts = find_cuts(timeline, shown) if find_cuts is not None else []
            planned = plan_spans(timeline.times_seconds, shown, buckets, cuts, stretch, max_spans)
            spans = _cut(timeline, planned, shown, augment, text_fraction)
            timeline.check()
            return spans
        except UnfitDecoderError:
            continue
    raise VideoError("undecodable", "no decoder can read its frames")


def measure_source(path: Path, stretch: Stretch = WHOLE, crops_bars: bool = False) -> SourceShape:
    """Size and duration of a file, decoding at most one frame, and a few more to find bars.

    Args:
        crops_bars: the size is that without black bars, as in `read_spans`.

    Raises:
        VideoError: it cannot be read.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = read_image(path)
        height, width = find_picture([picture]).size(picture.shape[:2]) if crops_bars else picture.shape[:2]
        return SourceShape(height, width, 0.0)
    probe = probe_video(path)
    height, width = _size_without_bars(path, probe) if crops_bars else (probe.height, probe.width)
    if len(probe.ticks) == 0:  # only decoding shows how long it is
        return SourceShape(height, width, float("inf"))
    _, end = shown_part(probe.times_seconds, stretch)
    return SourceShape(height, width, max(0.0, end - min(stretch.start_seconds, end)))


def _size_without_bars(path: Path, probe: Probe) -> Size:
    for timeline in timelines(path, probe):
        try:
            return without_bars(timeline, (probe.height, probe.width))[1]
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


def _cut(
    timeline: Timeline,
    planned: list[PlannedSpan],
    shown: Size,
    augment: AugmentConfig,
    text_fraction: TextMeasure | None,
) -> list[Span]:
    """The clips of planned spans. Each frame is resized when it is decoded, so only one is in memory at full size."""
    spans = []
    height, width = shown
    for span in planned:
        needed, bucket = sorted(set(span.indices)), span.bucket
        measured = [span.indices[0], span.indices[len(span.indices) // 2], span.indices[-1]]
        crops: dict[float, dict[int, Frames]] = {}  # by position of the crop, then by index of the frame: (1 h w 3)
        fractions: dict[int, float] = {}  # share of the central crop that is text, by index of the frame
        for index, frame in zip(needed, timeline.read(needed), strict=True):
            if text_fraction is not None and index in measured:
                square = frame if frame.shape[:2] == shown else resize_and_crop(frame[None], *shown, shown=shown)[0]
                fractions[index] = text_fraction(square, crop_box(height, width, bucket.height, bucket.width))
            for position in augment.crop_positions(SourceShape(height, width, 0.0), bucket):
                crop = resize_and_crop(frame[None], bucket.height, bucket.width, position, shown)
                crops.setdefault(position, {})[index] = crop
        # The median: two of the three frames must show text. With the maximum or the mean, a single false detection
        # or a title that fades out in the first frames could decide alone.
        text = float(np.median([fractions[index] for index in measured])) if fractions else None
        for position, frames_of in crops.items():
            frames = np.concatenate([frames_of[index] for index in span.indices])
            variant = "" if position == 0.5 else f"crop {position:g}"
            unflipped = Span(span.start_seconds, bucket, variant, frames, timeline.decoder, height, width, text)
            spans.append(unflipped)
            if augment.flip:
                spans.append(replace(unflipped, variant=f"{variant} flip".strip(), frames=frames[:, :, ::-1]))
    return spans
