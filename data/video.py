"""Video files in and out: decord and PyAV read, PyAV writes. Pixels here are uint8 (t h w c), RGB.

decord is fast and reads first, but it answers without an error where its table of time stamps is
nonsense (packed B-frames in AVI, edit lists), and then its frames are wrong too. So it is used where
that table is provably sane, and PyAV, which decodes from the start in order, elsewhere.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import decord
import numpy as np
from decord._ffi.base import DECORDError
from jaxtyping import UInt8
from PIL import Image

from data.buckets import Bucket
from data.clip import Decoder
from data.ledger import Reason

# What a source folder is searched for.
CONTAINERS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO_SUFFIXES = frozenset(f".{name}" for name in CONTAINERS)
DECORD_ERRORS = (DECORDError, RuntimeError)  # the second where it cannot open a file at all
TIE_SECONDS = 5e-4  # time stamps are rounded numbers: a frame that begins this much late still begins "now"

Frames = UInt8[np.ndarray, "t h w 3"]


class VideoError(ValueError):
    """A video that cannot be used; the message is one sentence for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives the way back from a worker
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.args[1]


@dataclass(frozen=True)
class Span:
    """A stretch of a source video, already in the shape of its bucket."""

    start_seconds: float  # after the source's first frame
    frames: Frames
    decoder: Decoder


@dataclass(frozen=True)
class Timeline:
    """The presentation time of every frame of a video, and the way to read some of them."""

    times_seconds: np.ndarray  # strictly increasing
    read: Callable[[list[int]], Frames]
    decoder: Decoder


def read_spans(path: Path, bucket: Bucket, max_spans: int) -> list[Span]:
    """Cut up to `max_spans` consecutive, non-overlapping clips of `bucket`'s shape from a video.

    Frames are chosen by presentation time stamp (the one on screen at each wanted instant), never by
    index, so a variable frame rate keeps its timing. They are resized to cover the bucket and
    centre-cropped in one antialiased step.

    Raises:
        VideoError: the file cannot be decoded, holds no video, or is shorter than one clip.
    """
    if path.stat().st_size == 0:
        raise VideoError("empty_file", "the file is empty")
    timeline = _decord_timeline(path)
    if timeline is not None:
        try:
            return _cut(timeline, bucket, max_spans)
        except DECORD_ERRORS:  # it opens some files whose frames it cannot copy out (widths off its padding)
            pass
    return _cut(_pyav_timeline(path), bucket, max_spans)


def _cut(timeline: Timeline, bucket: Bucket, max_spans: int) -> list[Span]:
    spans = []
    for start, indices in plan_spans(timeline.times_seconds, bucket)[:max_spans]:
        frames = resize_and_crop(timeline.read(indices), bucket.height, bucket.width)
        spans.append(Span(start, frames, timeline.decoder))
    return spans


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


def _decord_timeline(path: Path) -> Timeline | None:
    """decord's view of a file, or None where it cannot open it or its time stamps are not sane."""
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's complaints come back as our own errors
    try:
        reader = decord.VideoReader(str(path.resolve()), ctx=decord.cpu(0), num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))))
    except DECORD_ERRORS:
        return None
    if stamps.ndim != 2 or stamps[0, 0] < 0 or np.any(np.diff(stamps[:, 0]) <= 0):
        return None  # no frames, an edit list (negative start), or stamps that repeat or are missing
    return Timeline(stamps[:, 0], lambda indices: reader.get_batch(indices).asnumpy(), "decord")


def _pyav_timeline(path: Path) -> Timeline:
    """PyAV's view of a file: decoded twice, once for the time stamps and once for the wanted frames."""
    try:
        with av.open(str(path.resolve())) as container:
            if not container.streams.video:
                raise VideoError("no_video", "it holds no video stream")
            stream = container.streams.video[0]
            stamps = [(frame.pts, frame.dts) for frame in container.decode(stream)]
            time_base = float(stream.time_base or 0)
    except av.FFmpegError as error:
        raise VideoError("undecodable", f"it cannot be decoded (FFmpeg: {error.strerror})") from error
    # AVI stores when to decode a frame, not when to show it: there only the decoding stamps are in order.
    # Frames flushed out of the decoder at the end of a file may carry no stamp; they are left out.
    for ticks in zip(*stamps, strict=True):
        stamped = np.array([index for index, tick in enumerate(ticks) if tick is not None], dtype=np.int64)
        times = np.array([ticks[index] for index in stamped], dtype=np.float64) * time_base
        if len(times) and np.all(np.diff(times) > 0):
            return Timeline(times, lambda indices, stamped=stamped: _pyav_read(path, stamped[indices].tolist()), "pyav")
    if not stamps:
        raise VideoError("no_video", "it holds no video frames")
    raise VideoError("no_time_stamps", "its frames carry no usable time stamps")


def _pyav_read(path: Path, indices: list[int]) -> Frames:
    wanted, last = set(indices), max(indices)
    found: dict[int, np.ndarray] = {}
    try:
        with av.open(str(path.resolve())) as container:
            for index, frame in enumerate(container.decode(container.streams.video[0])):
                if index in wanted:  # unlike decord, PyAV leaves the display rotation to its caller
                    found[index] = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
                if index == last:
                    break
    except av.FFmpegError as error:
        raise VideoError("undecodable", f"it cannot be decoded (FFmpeg: {error.strerror})") from error
    if len({frame.shape for frame in found.values()}) > 1:
        raise VideoError("size_changes", "its frame size changes in mid-stream")
    return np.stack([found[index] for index in indices])


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
