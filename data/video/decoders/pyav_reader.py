"""PyAV (FFmpeg) as the decoder of source videos: reads every file, slower than the others."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter

from data.errors import VideoError
from data.video.decoders.pyav_stream import Clock, NoEntryError, decode_frames
from data.video.decoders.timeline import Frame, Timeline, UnfitDecoderError
from data.video.entries import plan_runs
from data.video.probe import Probe
from data.video.resize import Size
from data.video.tone_map import tone_map
from data.video.transparency import composited, may_be_transparent

OPAQUE = 255  # alpha


def packet_timeline(path: Path, probe: Probe, size: Size) -> Timeline | None:
    """Frames read by PyAV at the time stamps of the packets; None if the packets do not tell when frames are shown."""
    return pyav_timeline(path, probe, probe.ticks, "pts", size) if len(probe.ticks) > 0 else None


def measured_timeline(path: Path, probe: Probe, size: Size) -> Timeline:
    """Frames read by PyAV at the time stamps that they carry once decoded: the whole file is decoded to list them.

    AVI stores when a frame is decoded, not when it is shown: there only the stamps of decoding are in order. Frames
    without a stamp, which some decoders return at the end of a file, are left out.

    Raises:
        VideoError: the file cannot be decoded, or neither kind of stamps is in order.
    """
    for clock in ("pts", "dts"):
        ticks = np.array([tick for _, tick in decode_frames(path, probe, clock) if tick is not None], np.int64)
        if len(ticks) and np.all(np.diff(ticks) > 0):
            return pyav_timeline(path, probe, ticks, clock, size)
    raise VideoError("no_time_stamps", "its frames carry no usable time stamps")


def pyav_timeline(path: Path, probe: Probe, ticks: np.ndarray, clock: Clock, size: Size | None = None) -> Timeline:
    """Frames at the given time stamps.

    Args:
        ticks: of the frames, strictly increasing.
        clock: which time stamps these are.
        size: height and width to decode to; None: those of the upright frames. Transparent frames keep theirs.
    """
    size = size or probe.upright_size
    reader = _PyavReader(path, probe, ticks, clock, size)
    return Timeline(ticks * probe.seconds_per_tick, reader.read, "pyav", reader.check)


class _PyavReader:
    """Reads frames by continuing from the current one, from an entry, or from the start, whichever skips most."""

    def __init__(self, path: Path, probe: Probe, ticks: np.ndarray, clock: Clock, size: Size) -> None:
        self._path, self._probe, self._ticks = path, probe, ticks
        self._stored_size = size[::-1] if probe.matrix.is_transposed else size
        self._clock: Clock = clock
        self._entries = probe.entries if clock == "pts" else ()
        self._reformatter = VideoReformatter()
        self._num_read = self._num_invisible = 0  # frames; those in which every pixel is transparent
        self._restart()

    def _restart(self) -> None:
        self._frames, self._next_index = decode_frames(self._path, self._probe, self._clock), 0
        # Frame `_next_index - 1`: at a low frame rate the next clip may begin with the frame that ended this one.
        self._last: Frame | None = None

    def read(self, indices: list[int]) -> Iterator[Frame]:
        """Frames by index; the indices must increase.

        Raises:
            UnfitDecoderError: the decoder does not return one of them.
            VideoError: the file cannot be decoded.
        """
        if indices and indices[0] == self._next_index - 1 and self._last is not None:
            yield self._last
            indices = indices[1:]
        if indices and indices[0] < self._next_index:
            self._restart()
        for run in plan_runs(self._ticks, indices, self._entries, self._next_index):
            if run.entry is not None:
                self._frames = decode_frames(self._path, self._probe, self._clock, run.entry)
            try:
                yield from self._read_run(run.ticks)
            except NoEntryError:  # raised before the first frame
                self._restart()
                yield from self._read_run(run.ticks)

    def check(self) -> None:
        """Refuse a video of whose frames, as far as they were read, no pixel can be seen.

        Raises:
            VideoError: there are such frames only.
        """
        if self._num_read and self._num_invisible == self._num_read:
            raise VideoError(
                "undecodable",
                f"every pixel is transparent in all {self._num_read} frames that are used; if its alpha means nothing, "
                f"remove it: `ffmpeg -i OLD -vf format=rgb24,format=yuv420p NEW.mp4`",
            )

    def _pixels(self, frame: av.VideoFrame) -> Frame:
        """A frame as stored, in RGB. Transparent pixels are composited first: resized, their colours would show."""
        # One thread and one reformatter: starting either costs more than converting a small frame.
        self._num_read += 1
        space = Colorspace.ITU709 if self._probe.is_untagged_hd else None
        if may_be_transparent(frame.format) and not self._probe.ignores_alpha:
            pixels = self._reformatter.reformat(frame, format="rgba", src_colorspace=space, threads=1).to_ndarray()
            self._num_invisible += not pixels[..., 3].any()
            if pixels[..., 3].min() < OPAQUE:
                return composited(pixels)
        height, width = self._stored_size
        if self._probe.is_tone_mapped and self._probe.hdr is not None:
            deep = self._reformatter.reformat(frame, width, height, "rgb48le", interpolation="AREA", threads=1)
            return tone_map(deep.to_ndarray(), self._probe.hdr)
        picture = self._reformatter.reformat(frame, width, height, "rgb24", space, interpolation="AREA", threads=1)
        return picture.to_ndarray()

    def _read_run(self, wanted: list[int]) -> Iterator[Frame]:
        remaining = iter(wanted)
        tick = next(remaining)
        for frame, stamp in self._frames:
            if stamp is None or stamp < tick:
                continue
            if stamp > tick:
                break
            self._last = self._probe.matrix.apply(self._pixels(frame))
            self._next_index = int(np.searchsorted(self._ticks, tick)) + 1
            yield self._last
            tick = next(remaining, None)
            if tick is None:
                return
        self._restart()
        raise UnfitDecoderError(f"the decoder returns no frame with the time stamp {tick}")
