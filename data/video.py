"""Video files in and out: clips of a bucket's shape are cut from sources, and written as H.264.

Pixels here are uint8 (t h w c), RGB. Which decoder reads a source is decided in `data/decoders.py`.
"""

import io
from dataclasses import dataclass
from fractions import Fraction
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


def read_spans(path: Path, bucket: Bucket, max_spans: int) -> list[Span]:
    """Cut up to `max_spans` consecutive, non-overlapping clips of `bucket`'s shape from a video.

    Frames are chosen by presentation time stamp (the one on screen at each wanted instant), never by
    index, so a variable frame rate keeps its timing. They are resized to cover the bucket and
    centre-cropped in one antialiased step.

    Raises:
        VideoError: the file cannot be decoded, holds no video, or is shorter than one clip.
    """
    probe = probe_video(path)
    for timeline in timelines(path, probe):
        try:
            return [
                Span(start, _read_clip(timeline, indices, bucket), timeline.decoder)
                for start, indices in plan_spans(timeline.times_seconds, bucket)[:max_spans]
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


def plan_spans(times_seconds: np.ndarray, bucket: Bucket) -> list[tuple[float, list[int]]]:
    """Start (seconds after the first frame) and frame indices of every clip that fits.

    Raises:
        VideoError: not even one clip fits.
    """
    # The last frame stays on screen for one more frame interval; without that a 2.0 s file has no 2.0 s clip.
    interval = float(np.median(np.diff(times_seconds))) if len(times_seconds) > 1 else 1 / bucket.fps
    length = float(times_seconds[-1] - times_seconds[0]) + interval
    needed = bucket.duration_seconds
    if length < needed:
        raise VideoError(
            "too_short",
            f"it is too short: it shows {length:.2f} s of video, but a clip of "
            f"{bucket.num_frames} frames at {bucket.fps:g} fps needs {needed:.2f} s",
        )
    pitch = bucket.num_frames / bucket.fps
    spans = []
    for span in range(int((length - needed) // pitch) + 1):
        start = span * pitch
        wanted = times_seconds[0] + start + np.arange(bucket.num_frames) / bucket.fps
        spans.append((start, (np.searchsorted(times_seconds, wanted + TIE_SECONDS, side="right") - 1).tolist()))
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


def decode_clip(content: bytes) -> Frames:
    """All frames of a clip that `encode_clip` wrote.

    Raises:
        VideoError: the bytes are not a readable video.
    """
    try:
        reader = decord.VideoReader(io.BytesIO(content), ctx=decord.cpu(0), num_threads=1)
        return reader.get_batch(range(len(reader))).asnumpy()
    except DECORD_ERRORS:  # some widths: see read_spans
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
        stream = container.add_stream("libx264", rate=rate, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # clips are small: many at once beat many threads on one
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
