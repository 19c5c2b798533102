"""Three decoders behind one interface: when each frame of a file is shown, and the pixels of some of them.

`timelines` offers what can be trusted about a file, fastest first: decord where the probe proves it right,
torchcodec in exact mode where it is installed and loads, PyAV everywhere. A decoder that then does not
give what the time stamps promise says so (`UnfitDecoderError`), and the next one is asked.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any, Literal

import av
import av.container
import av.filter
import decord
import numpy as np
from av.video.reformatter import VideoReformatter
from decord._ffi.base import DECORDError
from jaxtyping import UInt8

from data.dataset.clip import Decoder
from data.errors import VideoError
from data.video.entries import Entry, is_exact, plan_runs
from data.video.probe import Probe
from data.video.resize import Size

DECORD_ERRORS = (DECORDError, RuntimeError)  # the second where it cannot open a file at all
DECORD_STAMP_SECONDS = 2e-3  # decord keeps time stamps in single precision
Frame = UInt8[np.ndarray, "h w 3"]
Clock = Literal["pts", "dts"]  # when a frame is shown, or when it is decoded


class UnfitDecoderError(Exception):
    """A decoder does not give what the file's time stamps promise; another may."""


@dataclass(frozen=True)
class Timeline:
    """The presentation time of every frame of a video, and the way to read some of them."""

    times_seconds: np.ndarray  # strictly increasing
    read: Callable[[list[int]], Iterator[Frame]]  # frames by index, which must increase
    decoder: Decoder


def timelines(path: Path, probe: Probe, size: Size | None = None) -> Iterator[Timeline]:
    """The trustworthy ways to read a file, best first; the last one always answers.

    Args:
        size: what frames are wanted in (`decoding_size`); None: their own. A decoder that cannot shrink keeps theirs.

    Raises:
        VideoError: on the way to the last one: the file cannot be decoded or its frames carry no time stamps.
    """
    size = size or (probe.height, probe.width)
    if probe.suits_decord:
        timeline = _decord_timeline(path, probe, size)
        if timeline is not None:
            yield timeline
    if probe.suits_torchcodec and has_torchcodec():
        yield Timeline(probe.times_seconds, lambda indices: _torchcodec_read(path, probe, indices), "torchcodec")
    if len(probe.ticks) > 0:
        yield _pyav_timeline(path, probe, probe.ticks, "pts", size)
    yield _measured_timeline(path, probe, size)


def _decord_timeline(path: Path, probe: Probe, size: Size) -> Timeline | None:
    """decord's view of a file, or None where it cannot open it or disagrees with the packets about a time stamp."""
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's complaints come back as our own errors
    try:
        height, width = size
        reader = decord.VideoReader(str(path.resolve()), decord.cpu(0), width=width, height=height, num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))))
    except (*DECORD_ERRORS, UnicodeEncodeError):  # the last for a file name that is no Unicode
        return None
    if stamps.shape != (len(probe.ticks), 2):
        return None
    if np.abs(stamps[:, 0] - probe.times_seconds).max() > DECORD_STAMP_SECONDS:
        return None

    def read(indices: list[int]) -> Iterator[Frame]:
        for index in indices:
            yield _decord_frame(reader, index, (*size, 3))

    return Timeline(probe.times_seconds, read, "decord")


class _Lent:
    """An array of decord's for numpy to look into: `asnumpy` copies it, `get_batch` even twice."""

    def __init__(self, array: decord.ndarray.NDArray) -> None:
        self._array = array

    def __dlpack__(self, **_: object) -> Any:  # noqa: ANN401 - a capsule, which has no type before Python 3.13
        return self._array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # DLPack's number for the CPU


def _decord_frame(reader: decord.VideoReader, index: int, shape: tuple[int, int, int]) -> Frame:
    """One frame in decord's own memory, which lives as long as the array; not to be written to.

    Raises:
        UnfitDecoderError: it cannot be read.
    """
    try:
        frame = np.from_dlpack(_Lent(reader[index]))
    except StopIteration as error:  # fewer frames come out than there are packets
        raise UnfitDecoderError(f"no frame {index} comes out of decord") from error
    except DECORD_ERRORS as error:  # damage further on
        raise UnfitDecoderError(str(error)) from error
    if frame.shape != shape:  # padded rows count as more colours
        raise UnfitDecoderError(f"decord gives a frame of {frame.shape}, not {shape}")
    return frame


@lru_cache(maxsize=1)
def has_torchcodec() -> bool:
    """torchcodec is installed and finds FFmpeg's libraries."""
    if find_spec("torchcodec") is None:
        return False
    try:
        import torchcodec.decoders  # noqa: F401  # pyright: ignore[reportMissingImports] - optional
    except (ImportError, OSError, RuntimeError):  # no libraries, or of a version it does not know
        return False
    return True


def _torchcodec_read(path: Path, probe: Probe, indices: list[int]) -> Iterator[Frame]:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports] - optional

    try:
        decoder = VideoDecoder(
            str(path.resolve()),
            stream_index=probe.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
        )
        for index in indices:
            # Asked for in the middle of its time on screen, so that rounding does not matter.
            following = probe.ticks[index + 1] if index + 1 < len(probe.ticks) else probe.ticks[index] + 1
            middle = (probe.ticks[index] + following) / 2 * probe.seconds_per_tick
            frame = decoder.get_frame_played_at(middle)
            if round(frame.pts_seconds / probe.seconds_per_tick) != probe.ticks[index]:
                raise UnfitDecoderError(f"torchcodec shows the frame of {frame.pts_seconds} s at {middle} s")
            yield frame.data.numpy()
    except (RuntimeError, ValueError, IndexError) as error:
        raise UnfitDecoderError(str(error)) from error


def _pyav_timeline(path: Path, probe: Probe, ticks: np.ndarray, clock: Clock, size: Size | None = None) -> Timeline:
    size = size or (probe.height, probe.width)
    return Timeline(ticks * probe.seconds_per_tick, _PyavReader(path, probe, ticks, clock, size).read, "pyav")


class _PyavReader:
    """Reads on from where it stands, or from an entry, or again from the start, whichever is nearest."""

    def __init__(self, path: Path, probe: Probe, ticks: np.ndarray, clock: Clock, size: Size) -> None:
        self._path, self._probe, self._ticks = path, probe, ticks
        self._stored_size = size[::-1] if probe.matrix.is_transposed else size
        self._clock: Clock = clock
        self._entries = probe.entries if clock == "pts" else ()
        self._reformatter = VideoReformatter()
        self._restart()

    def _restart(self) -> None:
        self._frames, self._at = _pyav_frames(self._path, self._probe, self._clock), 0
        self._last: Frame | None = None  # frame `_at - 1`: of a slow video, the next clip begins with it as well

    def read(self, indices: list[int]) -> Iterator[Frame]:
        """Frames by index, which must increase.

        Raises:
            UnfitDecoderError: one does not come out of the decoder.
            VideoError: the file cannot be decoded.
        """
        if indices and indices[0] == self._at - 1 and self._last is not None:
            yield self._last
            indices = indices[1:]
        if indices and indices[0] < self._at:
            self._restart()
        for run in plan_runs(self._ticks, indices, self._entries, self._at):
            if run.entry is not None:
                self._frames = _pyav_frames(self._path, self._probe, self._clock, run.entry)
            try:
                yield from self._read_run(run.ticks)
            except _NoEntryError:  # before its first frame
                self._restart()
                yield from self._read_run(run.ticks)

    def _read_run(self, wanted: list[int]) -> Iterator[Frame]:
        remaining = iter(wanted)
        tick = next(remaining)
        for frame, stamp in self._frames:
            if stamp is None or stamp < tick:
                continue
            if stamp > tick:
                break
            # One thread, set up once: both cost more than the conversion of a small frame.
            height, width = self._stored_size
            picture = self._reformatter.reformat(frame, width, height, "rgb24", interpolation="AREA", threads=1)
            self._last = self._probe.matrix.apply(picture.to_ndarray())
            self._at = int(np.searchsorted(self._ticks, tick)) + 1
            yield self._last
            tick = next(remaining, None)
            if tick is None:
                return
        self._restart()
        raise UnfitDecoderError(f"no frame with the time stamp {tick} comes out of the decoder")


def _measured_timeline(path: Path, probe: Probe, size: Size) -> Timeline:
    """Where the packets do not tell: the time stamps that the frames have once they are decoded.

    AVI stores when to decode a frame, not when to show it: there only the decoding stamps are in order.
    Frames flushed out of the decoder at the end of a file may carry no stamp; they are left out.
    """
    for clock in ("pts", "dts"):
        ticks = np.array([tick for _, tick in _pyav_frames(path, probe, clock) if tick is not None], np.int64)
        if len(ticks) and np.all(np.diff(ticks) > 0):
            return _pyav_timeline(path, probe, ticks, clock, size)
    raise VideoError("no_time_stamps", "its frames carry no usable time stamps")


def _pyav_frames(
    path: Path, probe: Probe, clock: Clock, entry: Entry | None = None
) -> Iterator[tuple[av.VideoFrame, int | None]]:
    """Every frame that is shown, in the order of decoding, deinterlaced, with its time stamp in ticks.

    Args:
        entry: where to begin; None: at the start of the file.
    """
    try:
        with av.open(str(path.resolve())) as container:
            stream = container.streams[probe.stream_index]
            assert isinstance(stream, av.VideoStream)
            stream.codec_context.thread_count = 1  # more processes beat more threads
            frames = container.decode(stream) if entry is None else _frames_from(entry, container, stream)
            for frame in _deinterlaced(frames, stream) if probe.is_interlaced else frames:
                if (frame.height, frame.width) != probe.stored_size:
                    raise VideoError("size_changes", "its frame size changes in mid-stream")
                yield frame, frame.dts if clock == "dts" else frame.pts
    except av.FFmpegError as error:
        raise VideoError("undecodable", f"it cannot be decoded (FFmpeg: {error.strerror})") from error


class _NoEntryError(Exception):
    """The file does not keep at an entry what its list of packets promised."""


def _frames_from(
    entry: Entry, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    """The frames from an entry on.

    Raises:
        _NoEntryError: the container does not lead there, or the bitstream is not one to begin with at this place.
    """
    try:
        # The first packet tells which encoder wrote the file, whose mistakes FFmpeg makes up for (4:4:4 of old x264).
        next(container.demux(stream)).decode()
        container.seek(entry.seek_tick, stream=stream)
        packets = dropwhile(lambda packet: packet.pts != entry.tick, container.demux(stream))
        first = next(packets, None)
    except av.FFmpegError as error:
        raise _NoEntryError from error
    if first is None or not first.is_keyframe or not is_exact(stream.codec_context.codec.canonical_name, bytes(first)):
        raise _NoEntryError
    frames = (frame for packet in chain((first,), packets) for frame in packet.decode())
    for frame in frames:
        assert isinstance(frame, av.VideoFrame)
        if frame.pts is not None and frame.pts >= entry.tick:
            if frame.pts > entry.tick or not frame.key_frame:
                raise _NoEntryError
            yield frame
            break
    for frame in frames:
        assert isinstance(frame, av.VideoFrame)
        yield frame


def _deinterlaced(frames: Iterator[av.VideoFrame], stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """Whole pictures: lines of the other field are interpolated in frames that are flagged as interlaced."""
    graph = av.filter.Graph()
    graph.link_nodes(
        graph.add_buffer(template=stream),
        graph.add("bwdif", "mode=send_frame:deint=interlaced"),
        graph.add("buffersink"),
    ).configure()
    for frame in chain(frames, (None,)):  # None: there are no more, give what is kept
        graph.vpush(frame)
        while (picture := _pull(graph)) is not None:
            if picture.pts is not None:  # the filter counts in half ticks
                assert picture.time_base is not None
                assert stream.time_base is not None
                picture.pts = round(picture.pts * picture.time_base / stream.time_base)
            yield picture


def _pull(graph: av.filter.Graph) -> av.VideoFrame | None:
    try:
        return graph.vpull()
    except (av.BlockingIOError, av.EOFError):
        return None
