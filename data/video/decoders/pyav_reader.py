"""PyAV (FFmpeg) as the decoder of source videos: reads every file, and scales frames while it converts them to RGB."""

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from data.errors import VideoError
from data.video.decoders.pyav_stream import Clock, NoEntryError, decode_frames
from data.video.decoders.timeline import Frame, Timeline, UnfitDecoderError
from data.video.entries import Entry, plan_runs
from data.video.probe import Probe
from data.video.resize import Size
from data.video.tone_map import tone_map
from data.video.transparency import composited, may_be_transparent

OPAQUE = 255  # alpha
# Bicubic, with its support widened when it shrinks; chroma is interpolated to the full resolution of the result.
# Without the last two flags the results of libswscale differ between processors.
SCALING = (
    Interpolation.BICUBIC
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.ACCURATE_RND
    | Interpolation.BITEXACT
)
# Planes of the same values as rgb24, in a third of the time: libswscale has vector code for planes only.
SCALED_LAYOUT = "gbrp"


def packet_timeline(path: Path, probe: Probe) -> Timeline | None:
    """Frames read by PyAV at the time stamps of the packets; None if the packets do not tell when frames are shown."""
    return pyav_timeline(path, probe, probe.ticks, "pts") if len(probe.ticks) > 0 else None


def measured_timeline(path: Path, probe: Probe) -> Timeline:
    """Frames read by PyAV at the time stamps that they carry once decoded: the whole file is decoded to list them.

    AVI stores when a frame is decoded, not when it is shown: there only the stamps of decoding are in order. Frames
    without a stamp, which some decoders return at the end of a file, are left out.

    Raises:
        VideoError: the file cannot be decoded, or neither kind of stamps is in order.
    """
    for clock in ("pts", "dts"):
        ticks = np.array([tick for _, tick in decode_frames(path, probe, clock) if tick is not None], np.int64)
        if len(ticks) and np.all(np.diff(ticks) > 0):
            return pyav_timeline(path, probe, ticks, clock, is_analysed=True)
    raise VideoError("no_time_stamps", "its frames carry no usable time stamps")


def pyav_timeline(path: Path, probe: Probe, ticks: np.ndarray, clock: Clock, *, is_analysed: bool = False) -> Timeline:
    """Frames at the given time stamps.

    Args:
        ticks: of the frames, strictly increasing.
        clock: which time stamps these are.
        is_analysed: how the file is opened first (`decode_frames`).
    """
    reader = _PyavReader(path, probe, ticks, clock, is_analysed)
    return Timeline(ticks * probe.seconds_per_tick, reader.read, "pyav", reader.check)


class _PyavReader:
    """Reads frames by continuing from the current one, from an entry, or from the start, whichever skips most."""

    def __init__(self, path: Path, probe: Probe, ticks: np.ndarray, clock: Clock, is_analysed: bool) -> None:
        self._path, self._probe, self._ticks = path, probe, ticks
        self._clock: Clock = clock
        self._entries = probe.entries if clock == "pts" else ()
        self._reformatter = VideoReformatter()
        self._is_analysed = is_analysed  # set where a frame is missing that analysis may bring: none is mistaken
        self._num_read = self._num_invisible = 0  # frames; those in which every pixel is transparent
        self._wanted: frozenset[int] = frozenset()  # ticks of the present run
        self._last_wanted = -1
        self._restart()

    def _restart(self) -> None:
        self._frames, self._next_index = self._decoded(None), 0
        # Frame `_next_index - 1`: at a low frame rate the next clip may begin with the frame that ended this one.
        self._last: av.VideoFrame | None = None

    def _decoded(self, entry: Entry | None) -> Iterator[tuple[av.VideoFrame, int | None]]:
        can_skip = self._clock == "pts" and not self._is_analysed
        return decode_frames(
            self._path,
            self._probe,
            self._clock,
            entry,
            is_analysed=self._is_analysed,
            is_needed=self._is_needed if can_skip else None,
        )

    def _is_needed(self, tick: int) -> bool:
        """Whether a frame is wanted, or may be later: frames are asked for in order."""
        return tick >= self._last_wanted or tick in self._wanted

    def read(self, indices: list[int], size: Size | None = None) -> Iterator[Frame]:
        """Frames by index, as `ReadFrames` says.

        Raises:
            UnfitDecoderError: the decoder does not return one of them.
            VideoError: the file cannot be decoded.
        """
        if indices and indices[0] == self._next_index - 1 and self._last is not None:
            yield self._pixels(self._last, size)
            indices = indices[1:]
        if indices and indices[0] < self._next_index:
            self._restart()
        for run in plan_runs(self._ticks, indices, self._entries, self._next_index):
            if run.entry is not None:
                self._frames = self._decoded(run.entry)
            try:
                yield from self._read_run(run.ticks, size)
            except NoEntryError:  # raised before the first frame
                self._restart()
                yield from self._read_run(run.ticks, size)

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

    def _pixels(self, frame: av.VideoFrame, size: Size | None) -> Frame:
        """A frame upright, in RGB. Transparent pixels are composited first: resized, their colours would show."""
        # One thread and one reformatter: starting either costs more than converting a small frame.
        matrix = self._probe.matrix
        self._num_read += 1
        space = Colorspace.ITU709 if self._probe.is_untagged_hd else None
        if may_be_transparent(frame.format) and not self._probe.ignores_alpha:
            pixels = self._reformatter.reformat(frame, format="rgba", src_colorspace=space, threads=1).to_ndarray()
            self._num_invisible += not pixels[..., 3].any()
            if pixels[..., 3].min() < OPAQUE:
                return matrix.apply(composited(pixels))
        height, width = self._probe.upright_size if size is None else size
        if matrix.is_transposed:
            height, width = width, height
        hdr = self._probe.hdr if self._probe.is_tone_mapped else None
        # Unscaled, chroma is repeated: interpolated, it would lose sharpness when the clip is encoded.
        how = Interpolation.BILINEAR if (height, width) == (frame.height, frame.width) else SCALING
        layout = "rgb48le" if hdr is not None else "rgb24" if how != SCALING else SCALED_LAYOUT
        picture = self._reformatter.reformat(frame, width, height, layout, space, interpolation=how, threads=1)
        pixels = picture.to_ndarray()
        return matrix.apply(pixels if hdr is None else tone_map(pixels, hdr))

    def _read_run(self, wanted: list[int], size: Size | None) -> Iterator[Frame]:
        self._wanted, self._last_wanted = frozenset(wanted), wanted[-1]
        remaining = iter(wanted)
        tick = next(remaining)
        for frame, stamp in self._frames:
            if stamp is None or stamp < tick:
                continue
            if stamp > tick:
                break
            self._last = frame
            self._next_index = int(np.searchsorted(self._ticks, tick)) + 1
            yield self._pixels(frame, size)
            tick = next(remaining, None)
            if tick is None:
                return
        is_analysed, self._is_analysed = self._is_analysed, True
        self._restart()
        if is_analysed:
            raise UnfitDecoderError(f"the decoder returns no frame with the time stamp {tick}")
        yield from self._read_run([tick, *remaining], size)
