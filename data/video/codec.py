"""Encoding and decoding of prepared clips in memory: H.264, and GIF for previews."""

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain, islice

import av
import decord
import numpy as np
from PIL import Image

from data.errors import VideoError
from data.records import Frames
from data.video.decoders.decord_reader import DECORD_ERRORS
from data.video.resize import is_hd

SMPTE_170M = 6  # FFmpeg's AVCOL_SPC_SMPTE170M: the matrix of BT.601, by which clips are encoded
CHUNK_FRAMES = 8  # frames per call to decord, which does not detect padded rows in single frames
MP4_MARK = b"ftyp"  # type of the first box of every file that `encode_clip` writes, after its four bytes of length


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


def encode_gif(frames: Frames, fps: float, max_side: int = 256) -> bytes:
    """An animated GIF in an endless loop, shrunk so that no side is longer than `max_side` pixels."""
    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    duration = round(1000 / fps)  # milliseconds
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return buffer.getvalue()


class ClipEncoder:
    """Writes a clip whose frames come in parts, as `encode_clip` writes a whole one; what it keeps is compressed."""

    def __init__(self, fps: float, crf: int = 14) -> None:
        self._buffer = io.BytesIO()
        self._container = av.open(self._buffer, mode="w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        # mbtree=0: with macroblock trees, x264's AVX-512 code is not deterministic at small sizes.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.pix_fmt = "yuv420p"
        self._has_size = False
        self._stream.codec_context.thread_count = 1  # clips are small: processes are faster than threads

    def add(self, frames: Frames) -> None:
        """The next frames, of the size of the first."""
        if not self._has_size:  # it cannot be set once there are frames
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
    encoder = ClipEncoder(fps, crf)
    encoder.add(frames)
    return encoder.finish()
