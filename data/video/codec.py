"""Encoding and decoding of prepared clips in memory, as MP4."""

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import cast

import av
import decord
import numpy as np
from av.codec.codec import UnknownCodecError

from data.errors import ReelflowError, VideoError
from data.records import Frames
from data.video.config import Codec, VideoConfig
from data.video.container import MP4_MARK
from data.video.decoders.decord_reader import DECORD_ERRORS
from data.video.resize import is_hd

SMPTE_170M = 6  # FFmpeg's AVCOL_SPC_SMPTE170M: the matrix of BT.601, by which clips are encoded
CHUNK_FRAMES = 8  # frames per call to decord, which does not detect padded rows in single frames
DEFAULT = VideoConfig()


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
    """The frames of `decode_clip` in chunks of the given lengths, each decoded when it is asked for.

    Raises:
        VideoError: as `decode_clip`, or the number of frames is not the sum of `lengths`; after some chunks, possibly.
    """
    frames = chain.from_iterable(_decode_blocks(content, CHUNK_FRAMES))
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
    """The frames of a clip in blocks of at most `most` frames; None: in one block."""
    if bytes(content[4:8]) != MP4_MARK:  # FFmpeg would also read a list of other files
        raise VideoError("undecodable", "it cannot be decoded (it is not an MP4 file)")
    num_read = 0
    try:
        reader = decord.VideoReader(io.BytesIO(content), ctx=decord.cpu(0), num_threads=1)
        while num_read < len(reader):
            end = len(reader) if most is None else min(num_read + most, len(reader))
            yield reader.get_batch(range(num_read, end)).asnumpy()
            num_read = end
    except DECORD_ERRORS:  # some widths, whose padded rows decord cannot copy: PyAV reads the rest
        pass
    else:
        return
    try:
        with av.open(io.BytesIO(content), mode="r", format="mp4") as container:
            for frame in islice(container.decode(video=0), num_read, None):
                yield frame.to_ndarray(format="rgb24")[None]
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error


ENCODERS: dict[Codec, tuple[str, ...]] = {"h264": ("libx264",), "hevc": ("libx265",), "av1": ("libsvtav1",)}
"""FFmpeg's names of the encoders of each codec whose output is a function of the frames alone."""


class EncoderError(ReelflowError, ValueError):
    """A codec that the installed FFmpeg cannot write; the message names it and the way out."""


def check_encoder(config: VideoConfig) -> None:
    """Check that clips can be encoded so.

    Raises:
        EncoderError: the installed FFmpeg has no encoder of the codec, or it does not take the pixel format.
    """
    known = [codec for codec in ENCODERS if _encoder(codec) is not None]
    encoder = _encoder(config.codec)
    if encoder is None:
        raise EncoderError(
            f"codec {config.codec}: the FFmpeg of the installed PyAV lacks the encoder {ENCODERS[config.codec][0]}; it "
            f"has those of {', '.join(known) or 'none of these codecs'}"
        )
    formats = [each.name for each in encoder.video_formats or ()]
    if config.pixel_format not in formats:
        raise EncoderError(f"pixel_format {config.pixel_format}: {encoder.name} takes {', '.join(formats)}")


def _encoder(codec: Codec) -> av.Codec | None:
    """The first encoder of a codec that is installed."""
    for name in ENCODERS[codec]:
        try:
            return av.Codec(name, "w")
        except UnknownCodecError:
            continue
    return None


def _options(config: VideoConfig) -> dict[str, str]:
    """Of the encoder: its rate and effort, and what makes its output a function of the frames alone."""
    options = {"crf": str(config.crf), "preset": str(config.preset)}
    match config.codec:
        case "h264":  # with macroblock trees, x264's AVX-512 code is not deterministic at small sizes
            options["x264-params"] = "mbtree=0"
        case "hevc":  # nor is x265 with such trees (cutree), with which it also crashes, or with larger blocks
            options["x265-params"] = "pools=none:frame-threads=1:cutree=0:ctu=16:log-level=none"
        case "av1":
            os.environ.setdefault("SVT_LOG", "1")  # errors only: it would print its settings for every clip
            options["svtav1-params"] = "lp=1"
    return options


class ClipEncoder:
    """Writes a clip whose frames come in parts, as `encode_clip` writes a whole one; what it keeps is compressed.

    Args:
        config: that has passed `check_encoder`.
        metadata: tags of the MP4 file by FFmpeg's names, such as title and comment; any length, any text.
    """

    def __init__(
        self, fps: float, config: VideoConfig = DEFAULT, metadata: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._config = config = config.resolved()
        check_encoder(config)
        encoder = _encoder(config.codec)
        assert encoder is not None
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, mode="w", format="mp4")
        self._container.metadata.update(metadata)
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = cast(
            "av.VideoStream", self._container.add_stream(encoder.name, rate=rate, options=_options(config))
        )
        self._stream.pix_fmt = config.pixel_format
        if config.codec == "hevc":
            self._stream.codec_context.codec_tag = "hvc1"  # by which Apple's players know it
        self._has_size = False
        self._stream.codec_context.thread_count = 1  # clips are small: processes are faster than threads

    def add(self, frames: Frames) -> None:
        """The next frames, of the size of the first.

        Raises:
            EncoderError: the codec does not take that size.
        """
        if not self._has_size:  # it cannot be set once there are frames
            if (refusal := self._config.size_refusal(*frames.shape[1:3])) is not None:
                raise EncoderError(refusal)
            self._stream.height, self._stream.width = frames.shape[1:3]
            if is_hd(*frames.shape[1:3]):  # without a tag, players would take the colours for those of BT.709
                self._stream.codec_context.colorspace = SMPTE_170M
            self._has_size = True
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def finish(self) -> bytes:
        """The file. No frames can be added any more."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._buffer.getvalue()


def encode_clip(frames: Frames, fps: float, crf: int = 14) -> bytes:
    """H.264 in MP4 (yuv420p, which every browser plays); equal frames give equal bytes.

    Args:
        crf: constant rate factor of x264, from 0 (lossless) to 51; lower is better.
    """
    encoder = ClipEncoder(fps, VideoConfig(crf=crf))
    encoder.add(frames)
    return encoder.finish()


def read_tags(path: Path) -> dict[str, str]:
    """The metadata of an MP4 file, by FFmpeg's names.

    Raises:
        VideoError: it is no MP4 file, or is cut short.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(8)[4:] != MP4_MARK:  # FFmpeg would also read a list of other files
            raise VideoError("undecodable", "it is not an MP4 file")
        file.seek(0)
        try:
            with av.open(file, mode="r", format="mp4", metadata_errors="replace") as container:
                return dict(container.metadata)
        except (av.FFmpegError, ValueError) as error:
            raise VideoError("undecodable", f"it cannot be read as MP4 ({error})") from error
