"""Video files in and out: clips of their bucket's shape are cut from sources, and written as H.264.

Pixels here are uint8 (t h w c), RGB. Which decoder reads a source is decided in `data/decoders.py`.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Literal

import av
import decord
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from data.buckets import Bucket, SourceShape, bucket_for, cropped_share
from data.clip import Decoder
from data.decoders import DECORD_ERRORS, Timeline, UnfitDecoderError, timelines
from data.probe import VideoError, probe_video
from data.resize import Box, Size, crop_box, decoding_size, resize_and_crop
from data.scenes import DETECTION_SIZE

# What a source folder is searched for.
CONTAINERS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO_SUFFIXES = frozenset(f".{name}" for name in CONTAINERS)
IMAGE_SUFFIXES = frozenset((".jpeg", ".jpg", ".png", ".webp"))  # one-frame videos
MIN_OVERHANG = 0.05  # share of the picture below which several crops would be nearly the same
TIE_SECONDS = 5e-4  # time stamps are rounded numbers: a frame that begins this much late still begins "now"

FRAMES_AHEAD = 8  # asked of decord in one call; one by one it does not notice padded rows

Frames = UInt8[np.ndarray, "t h w 3"]
TextMeasure = Callable[[UInt8[np.ndarray, "h w 3"], Box], float]


@dataclass(frozen=True)
class Span:
    """A stretch of a source video, already in the shape of its bucket."""

    start_seconds: float  # after the source's first frame
    bucket: Bucket
    variant: str  # how it was augmented; empty: not at all
    frames: Frames
    decoder: Decoder
    source_height: int  # of the video it was cut from
    source_width: int
    text_fraction: float | None = None  # of its picture; None: not measured


class AugmentConfig(BaseModel):
    """More clips from each span of the training split. Each is a sample of its own, encoded once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: bool = False  # also mirrored; for captions that name no left and right
    crops: Literal[1, 3, 5] = 1  # of pictures that overhang their bucket: the centre, and from one end to the other

    def crop_positions(self, shape: SourceShape, bucket: Bucket) -> list[float]:
        """Where the crops lie on the overhanging side, from 0 to 1; only the centre where next to nothing overhangs."""
        if self.crops == 1 or cropped_share(shape, bucket) < MIN_OVERHANG:
            return [0.5]
        return np.linspace(0, 1, self.crops).tolist()


AS_IT_IS = AugmentConfig()


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


def read_spans(
    path: Path,
    buckets: Sequence[Bucket],
    max_spans: int,
    *,
    stretch: Stretch = WHOLE,
    min_side_pixels: int = 1,
    find_cuts: Callable[[Timeline, Size], list[int]] | None = None,
    text_fraction: TextMeasure | None = None,
    augment: AugmentConfig = AS_IT_IS,
) -> list[Span]:
    """Cut up to `max_spans` consecutive, non-overlapping clips from a video, or the only one from an image.

    Frames are chosen by presentation time stamp (the one on screen at each wanted instant), never by
    index, so a variable frame rate keeps its timing. They are resized to cover the bucket and
    centre-cropped, antialiased.

    Args:
        buckets: the shapes there are; each scene takes the one that suits it (`bucket_for`).
        stretch: the part of the video to cut from.
        min_side_pixels: videos whose shorter side has fewer are refused.
        find_cuts: gives the first frame of each scene but the first, of a timeline and the size of the video; no clip
            reaches across a cut.
        text_fraction: measures how much of a part of a picture is text; asked at full size, before anything is resized.
        augment: which clips are made of each span; `max_spans` counts spans.

    Raises:
        VideoError: the file cannot be decoded, holds no video, is too small, or is shorter than one clip.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        picture = read_image(path)
        height, width, _ = picture.shape
        _check_size(height, width, min_side_pixels)
        still = Timeline(np.zeros(1), lambda _: iter([picture]), "pillow")
        planned = plan_spans(still.times_seconds, (height, width), buckets)
        return _cut(still, planned, (height, width), augment, text_fraction)
    probe = probe_video(path)
    _check_size(probe.height, probe.width, min_side_pixels)
    shown = (probe.height, probe.width)
    shapes = [(bucket.height, bucket.width) for bucket in buckets]
    if find_cuts is not None:
        shapes.append(DETECTION_SIZE)
    for timeline in timelines(path, probe, shown if text_fraction is not None else decoding_size(shown, shapes)):
        try:
            cuts = find_cuts(timeline, shown) if find_cuts is not None else []
            planned = plan_spans(timeline.times_seconds, shown, buckets, cuts, stretch)
            return _cut(timeline, planned[:max_spans], shown, augment, text_fraction)
        except UnfitDecoderError:
            continue
    raise VideoError("undecodable", "no decoder can read its frames")


def measure_source(path: Path, stretch: Stretch = WHOLE) -> SourceShape:
    """What a file offers, without decoding more than one frame.

    Raises:
        VideoError: it cannot be read.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = read_image(path).shape[:2]
        return SourceShape(height, width, 0.0)
    probe = probe_video(path)
    if len(probe.ticks) == 0:  # only decoding it tells; nothing says that it is short
        return SourceShape(probe.height, probe.width, float("inf"))
    _, end = _shown_part(probe.times_seconds, stretch)
    return SourceShape(probe.height, probe.width, max(0.0, end - min(stretch.start_seconds, end)))


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image file, the way up that it says.

    Raises:
        VideoError: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_eight_bits(ImageOps.exif_transpose(image)))
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error
    except OSError as error:
        if error.errno is not None:  # of the file system
            raise
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB: 16 bits of grey are scaled, not clipped, and what is transparent shows white."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
    """Frames in the shape of their bucket; each is resized as it comes, so only one is held as it was decoded."""
    spans = []
    height, width = shown
    for span in planned:
        needed, bucket = sorted(set(span.indices)), span.bucket
        looked_at = [span.indices[0], span.indices[len(span.indices) // 2], span.indices[-1]]
        crops: dict[float, dict[int, Frames]] = {}  # position -> index -> one frame
        fractions: dict[int, float] = {}  # index -> how much of what the central crop keeps is text
        for index, frame in zip(needed, timeline.read(needed), strict=True):
            if text_fraction is not None and index in looked_at:
                fractions[index] = text_fraction(frame, crop_box(height, width, bucket.height, bucket.width))
            for position in augment.crop_positions(SourceShape(height, width, 0.0), bucket):
                crop = resize_and_crop(frame[None], bucket.height, bucket.width, position, shown)
                crops.setdefault(position, {})[index] = crop
        # The median: two of the three have to show text. With the largest, or the mean, one false alarm or a title
        # that fades out in the first frames could decide alone.
        text = float(np.median([fractions[index] for index in looked_at])) if fractions else None
        for position, frames_of in crops.items():
            frames = np.concatenate([frames_of[index] for index in span.indices])
            variant = "" if position == 0.5 else f"crop {position:g}"
            as_it_is = Span(span.start_seconds, bucket, variant, frames, timeline.decoder, height, width, text)
            spans.append(as_it_is)
            if augment.flip:
                spans.append(replace(as_it_is, variant=f"{variant} flip".strip(), frames=frames[:, :, ::-1]))
    return spans


def _shown_part(times_seconds: np.ndarray, stretch: Stretch) -> tuple[float, float]:
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
    shown, end = _shown_part(times_seconds, stretch)
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


def decode_clip(content: bytes | memoryview) -> Frames:
    """All frames of a clip that `encode_clip` wrote.

    Raises:
        VideoError: the bytes are not a readable video.
    """
    blocks = list(_decode_blocks(content, None))
    if not blocks:
        raise VideoError("undecodable", "it cannot be decoded (it holds no frames)")
    return np.concatenate(blocks)


def decode_chunks(content: bytes | memoryview, lengths: Sequence[int]) -> Iterator[Frames]:
    """The frames of `decode_clip`, so many at a time: they are decoded when they are asked for, and not kept.

    Raises:
        VideoError: on the way: as `decode_clip`, or the clip has not as many frames as `lengths` together.
    """
    frames = chain.from_iterable(_decode_blocks(content, FRAMES_AHEAD))
    num_found = 0
    for length in lengths:
        chunk = list(islice(frames, length))
        num_found += len(chunk)
        if len(chunk) < length:
            break
        yield np.stack(chunk)
    num_found += sum(1 for _ in frames)
    if num_found != sum(lengths):
        raise VideoError("undecodable", f"it has {num_found} frames and not the {sum(lengths)} of its record")


def _decode_blocks(content: bytes | memoryview, most: int | None) -> Iterator[Frames]:
    """The frames of a clip, at most so many at once; None: all."""
    num_given = 0
    try:
        reader = decord.VideoReader(io.BytesIO(content), ctx=decord.cpu(0), num_threads=1)
        while num_given < len(reader):
            end = len(reader) if most is None else min(num_given + most, len(reader))
            yield reader.get_batch(range(num_given, end)).asnumpy()
            num_given = end
    except DECORD_ERRORS:  # some widths, which its padding does not divide
        pass
    else:
        return
    try:
        with av.open(io.BytesIO(content), mode="r") as container:
            for frame in islice(container.decode(video=0), num_given, None):
                yield frame.to_ndarray(format="rgb24")[None]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error


def encode_gif(frames: Frames, fps: float, max_side: int = 256) -> bytes:
    """An animated GIF that repeats for ever, made smaller where a side is longer than `max_side` pixels."""
    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    duration = round(1000 / fps)  # milliseconds
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return buffer.getvalue()


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
