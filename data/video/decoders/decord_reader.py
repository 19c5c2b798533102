"""decord as the decoder of source videos, only right about some files (`Probe.suits_decord`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import decord
import numpy as np
from decord._ffi.base import DECORDError

from data.video.decoders.timeline import Frame, Timeline, UnfitDecoderError
from data.video.probe import Probe
from data.video.resize import Size

DECORD_ERRORS = (DECORDError, RuntimeError)  # RuntimeError: it cannot open the file at all
STAMP_TOLERANCE_SECONDS = 2e-3  # decord keeps time stamps in single precision


def decord_timeline(path: Path, probe: Probe) -> Timeline | None:
    """Frames read by decord; None if it may read the file wrongly.

    That is, if the probe does not prove the file safe, or decord cannot open it or disagrees with a time stamp of the
    packets.
    """
    if not probe.suits_decord:
        return None
    decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's complaints are reported by our own errors
    try:
        reader = decord.VideoReader(str(path.resolve()), decord.cpu(0), num_threads=1)
        stamps = np.asarray(reader.get_frame_timestamp(range(len(reader))))
    except (*DECORD_ERRORS, UnicodeEncodeError):  # UnicodeEncodeError: a file name that is not valid Unicode
        return None
    if stamps.shape != (len(probe.ticks), 2):
        return None
    if np.abs(stamps[:, 0] - probe.times_seconds).max() > STAMP_TOLERANCE_SECONDS:
        return None

    def read(indices: list[int], size: Size | None = None) -> Iterator[Frame]:  # noqa: ARG001 - of the interface
        for index in indices:
            yield _read_frame(reader, index, (*probe.upright_size, 3))

    return Timeline(probe.times_seconds, read, "decord")


class _DlpackView:
    """Lets numpy use the memory of a decord array: `asnumpy` copies it once, `get_batch` twice."""

    def __init__(self, array: decord.ndarray.NDArray) -> None:
        self._array = array

    def __dlpack__(self, **_: object) -> Any:  # noqa: ANN401 - a capsule, which has no type before Python 3.13
        return self._array.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # DLPack's number for the CPU


def _read_frame(reader: decord.VideoReader, index: int, shape: tuple[int, int, int]) -> Frame:
    """One frame, read-only, in memory that decord frees together with the array.

    Raises:
        UnfitDecoderError: it cannot be read.
    """
    try:
        frame = np.from_dlpack(_DlpackView(reader[index]))
    except StopIteration as error:  # fewer frames than packets
        raise UnfitDecoderError(f"decord does not return frame {index}") from error
    except DECORD_ERRORS as error:  # the file is damaged at a later place
        raise UnfitDecoderError(str(error)) from error
    if frame.shape != shape:  # padding of the rows is counted as further channels
        raise UnfitDecoderError(f"decord returns a frame of {frame.shape}, not {shape}")
    return frame
