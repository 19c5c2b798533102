"""Animated pictures of clips, for pages and messages that take no video: GIF and WebP."""

import io
from typing import Literal

import numpy as np
from PIL import Image

from data.records import Frames

PreviewFormat = Literal["gif", "webp"]
MAX_SIDE = 256
WEBP_OPTIONS = {"quality": 80, "method": 4, "minimize_size": False}


class PreviewEncoder:
    """Writes an animated picture, in an endless loop, of a clip whose frames come in parts.

    It keeps the frames at their reduced size. Frames that do not change the picture are shown longer instead of being
    stored again.

    Args:
        fps: frame rate. Both formats count time in steps (GIF of 10 ms, WebP of 1 ms): each frame ends at the step that
            is nearest to its end in the clip, so that rounding does not add up.
        max_side: frames are shrunk so that no side is longer, in pixels.
    """

    def __init__(self, kind: PreviewFormat, fps: float, max_side: int = MAX_SIDE) -> None:
        self._kind, self._fps, self._max_side = kind, fps, max_side
        self._pictures: list[Image.Image] = []

    def add(self, frames: Frames) -> None:
        """The next frames, of the size of the first."""
        for frame in frames:
            picture = Image.fromarray(np.ascontiguousarray(frame))
            picture.thumbnail((self._max_side, self._max_side))
            self._pictures.append(picture)

    def finish(self) -> bytes:
        """The file; equal frames give equal bytes."""
        step = 10 if self._kind == "gif" else 1  # milliseconds
        ends = [round(number * 1000 / self._fps / step) for number in range(len(self._pictures) + 1)]
        durations = [max(1, end - begin) * step for begin, end in zip(ends, ends[1:], strict=False)]
        first, *others = self._pictures
        buffer = io.BytesIO()
        options = WEBP_OPTIONS if self._kind == "webp" else {}
        first.save(buffer, self._kind, save_all=True, append_images=others, duration=durations, loop=0, **options)
        return buffer.getvalue()


def encode_gif(frames: Frames, fps: float, max_side: int = MAX_SIDE) -> bytes:
    """A clip as an animated GIF; arguments as `PreviewEncoder`."""
    encoder = PreviewEncoder("gif", fps, max_side)
    encoder.add(frames)
    return encoder.finish()
