"""Video files in and out: clips of a bucket's shape are cut from sources, and written as H.264.

Pixels here are uint8 (t h w c), RGB. Which decoder reads a source is decided in `data/decoders.py`.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import decord
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.buckets import Bucket
from data.clip import Decoder
from data.decoders import DECORD_ERRORS, Timeline, UnfitDecoderError, timelines
from data.probe import VideoError, probe_video

# What a source folder is searched for.
CONTAINERS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO_SUFFIXES = frozenset(f".{name}" for name in CONTAINERS)
TIE_SECONDS = 5e-4  # time stamps are rounded numbers: a frame that begins this much late still begins "now"

Frames = UInt8[np.ndarray, "t h w 3"]


@dataclass(frozen=True)
class Span:
    """A stretch of a source video, already in the shape of its bucket."""

    start_seconds: float  # after the source's first frame
    frames: Frames
    decoder: Decoder


@dataclass(frozen=True)
class Stretch:
    """A part of a video, in seconds after its first frame."""

    start_seconds: float = 0.0
    end_seconds: float = float("inf")


WHOLE = Stretch()


def read_spans(
    path: Path,
    bucket: Bucket,
    max_spans: int,
    *,
    stretch: Stretch = WHOLE,
    min_side_pixels: int = 1,
    find_cuts: Callable[[Timeline], list[int]] | None = None,
) -> list[Span]:
    """Cut up to `max_spans` consecutive, non-overlapping clips of `bucket`'s shape from a video.

    Frames are chosen by presentation time stamp (the one on screen at each wanted instant), never by
    index, so a variable frame rate keeps its timing. They are resized to cover the bucket and
    centre-cropped in one antialiased step.

    Args:
        stretch: the part of the video to cut from.
        min_side_pixels: videos whose shorter side has fewer are refused.
        find_cuts: gives the first frame of each scene but the first; no clip reaches across a cut.

    Raises:
        VideoError: the file cannot be decoded, holds no video, is too small, or is shorter than one clip.
    """
    probe = probe_video(path)
    if min(probe.height, probe.width) < min_side_pixels:
        size = f"{probe.width} x {probe.height}"
        raise VideoError("too_small", f"it is too small: {size} pixels, and the shorter side needs {min_side_pixels}")
    for timeline in timelines(path, probe):
        try:
            cuts = find_cuts(timeline) if find_cuts is not None else []
            return [
                Span(start, _read_clip(timeline, indices, bucket), timeline.decoder)
                for start, indices in plan_spans(timeline.times_seconds, bucket, cuts, stretch)[:max_spans]
            ]
        except UnfitDecoderError:
            continue
    raise VideoError("undecodable", "no decoder can read its frames")


def _read_clip(timeline: Timeline, indices: list[int], bucket: Bucket) -> Frames:
    """Frames in the shape of the bucket; each is resized as it comes, so only one is held at full size."""
    needed = sorted(set(indices))
    resized = {
        index: resize_and_crop(frame[None], bucket.height, bucket.width)[0]
        for index, frame in zip(needed, timeline.read(needed), strict=True)
    }
    return np.stack([resized[index] for index in indices])


def plan_spans(
    times_seconds: np.ndarray, bucket: Bucket, cuts: Sequence[int] = (), stretch: Stretch = WHOLE
) -> list[tuple[float, list[int]]]:
    """Start (seconds after the first frame) and frame indices of every clip that fits.

    Args:
        times_seconds: when each frame is shown, strictly increasing.
        cuts: indices of frames that begin a new scene; each scene is cut on its own.
        stretch: the part of the video to cut from.

    Raises:
        VideoError: not even one clip fits.
    """
    # The last frame stays on screen for one more frame interval; without that a 2.0 s file has no 2.0 s clip.
    interval = float(np.median(np.diff(times_seconds))) if len(times_seconds) > 1 else 1 / bucket.fps
    shown = float(times_seconds[-1] - times_seconds[0]) + interval
    start, end = min(stretch.start_seconds, shown), min(stretch.end_seconds, shown)
    scenes = [float(times_seconds[cut] - times_seconds[0]) for cut in cuts]
    edges = [start, *(edge for edge in scenes if start < edge < end), end]
    needed, pitch = bucket.duration_seconds, bucket.num_frames / bucket.fps
    spans = []
    for scene_start, scene_end in pairwise(edges):
        # At the end of a scene the next frame is already another one, at the end of the video there is none.
        room = scene_end - scene_start - (0 if scene_end == shown else 2 * TIE_SECONDS)
        for number in range(int((room - needed) // pitch) + 1 if room >= needed else 0):
            span_start = scene_start + number * pitch
            wanted = times_seconds[0] + span_start + np.arange(bucket.num_frames) / bucket.fps
            indices = np.searchsorted(times_seconds, wanted + TIE_SECONDS, side="right") - 1
            spans.append((span_start, indices.tolist()))
    if not spans:
        scene = " in one scene" if len(edges) > 2 else ""
        longest = max(after - before for before, after in pairwise(edges))
        raise VideoError(
            "too_short",
            f"it is too short: it shows {max(longest, 0):.2f} s of video{scene}, but a clip of "
            f"{bucket.num_frames} frames at {bucket.fps:g} fps needs {needed:.2f} s",
        )
    return spans


def resize_and_crop(frames: Frames, height: int, width: int) -> Frames:
    """Cover `height` x `width` keeping the aspect ratio, cutting the overhang equally on both sides."""
    _, source_height, source_width, _ = frames.shape
    scale = max(height / source_height, width / source_width)
    crop_height, crop_width = height / scale, width / scale
    left, top = (source_width - crop_width) / 2, (source_height - crop_height) / 2
    # Rounded sums may lie a hair outside the picture, which Pillow refuses.
    box = (max(left, 0), max(top, 0), min(left + crop_width, source_width), min(top + crop_height, source_height))
    images = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    return np.stack([np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box)) for image in images])


def decode_clip(content: bytes | memoryview) -> Frames:
    """All frames of a clip that `encode_clip` wrote.

    Raises:
        VideoError: the bytes are not a readable video.
    """
    try:
        reader = decord.VideoReader(io.BytesIO(content), ctx=decord.cpu(0), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()
    except DECORD_ERRORS:  # some widths, which its padding does not divide
        pass
    try:
        with av.open(io.BytesIO(content), mode="r") as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error


def encode_clip(frames: Frames, fps: float, crf: int = 14) -> bytes:
    """H.264 in MP4 (yuv420p, which every browser plays), as bytes; equal frames give equal bytes."""
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        # Without its macroblock tree: with it, x264's AVX-512 code gives other bytes now and then at small sizes.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # clips are small: many at once beat many threads on one
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
