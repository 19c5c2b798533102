"""Black bars at the edges of a video, found on several of its frames so that a dark scene is not taken for bars."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, UInt8

from data.video.decoders.timeline import Frame, Timeline
from data.video.resize import Size

NUM_FRAMES = 9  # looked at, evenly spread
BLACK = 24.0  # of 255: luma up to which a pixel may be of a bar; video black is 16, and compression adds a little
LIT_SHARE = 0.02  # of the pixels of a row or column, that must be brighter in some frame for it to be of the picture
MIN_SHARE = 0.02  # of the height or width: thinner bars are kept, as they may be a blurred edge
MIN_PICTURE = 0.3  # of the height and width: a smaller picture is a dark scene with a light, not one with bars
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Picture:
    """The part of a frame within the bars, as shares of height and width; the whole frame by default."""

    top: float = 0.0
    bottom: float = 1.0
    left: float = 0.0
    right: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Whether there are no bars."""
        return self == WHOLE_PICTURE

    def size(self, shown: Size) -> Size:
        """Height and width of the part of a frame of this size."""
        height, width = shown
        return max(1, round((self.bottom - self.top) * height)), max(1, round((self.right - self.left) * width))

    def cut(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "a b 3"]:
        """The part of a frame."""
        height, width, _ = frame.shape
        rows = slice(round(self.top * height), round(self.bottom * height))
        return frame[rows, round(self.left * width) : round(self.right * width)]


WHOLE_PICTURE = Picture()


def find_picture(frames: list[Frame]) -> Picture:
    """The part within the bars that all frames have; bars need not be symmetric.

    Text in a bar counts as picture.
    """
    lit = np.max([frame.astype(np.float32) @ LUMA for frame in frames], axis=0) > BLACK
    top, bottom = _extent(lit.mean(1))
    left, right = _extent(lit.mean(0))
    if bottom - top < MIN_PICTURE or right - left < MIN_PICTURE:
        return WHOLE_PICTURE
    return Picture(top, bottom, left, right)


def _extent(lit: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """From the first to the last line that is lit, as shares; thin bars are left out."""
    lines = np.flatnonzero(lit > LIT_SHARE)
    if len(lines) == 0:
        return 0.0, 1.0
    start, end = int(lines[0]) / len(lit), (int(lines[-1]) + 1) / len(lit)
    return (start if start >= MIN_SHARE else 0.0), (end if 1 - end >= MIN_SHARE else 1.0)


def without_bars(timeline: Timeline, shown: Size) -> tuple[Timeline, Size]:
    """A video without its bars, and its size without them in square pixels."""
    number = len(timeline.times_seconds)
    indices = np.unique(np.linspace(0, number - 1, min(number, NUM_FRAMES)).round().astype(int)).tolist()
    # Copies, because a decoder may use the memory of a frame again.
    picture = find_picture([np.array(frame) for frame in timeline.read(indices)])
    if picture.is_whole:
        return timeline, shown

    def read(indices: list[int], size: Size | None = None) -> Iterator[Frame]:  # noqa: ARG001 - of the interface
        return (picture.cut(frame) for frame in timeline.read(indices))

    return replace(timeline, read=read), picture.size(shown)
