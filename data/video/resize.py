"""Pictures cut to the shape of a bucket: resized to cover it, antialiased, and what overhangs is cut off."""

from collections.abc import Iterable
from math import ceil

import numpy as np
from jaxtyping import UInt8
from PIL import Image

REDUCING_GAP = 3.0  # the bicubic step still shrinks at least this much: within 3 of 255 of shrinking in one step
DECODING_GAP = 5.0  # the same for pictures that a decoder shrinks, which keeps colours at half their width
ROW_PIXELS = 64  # decord pads the rows of other widths and then cannot copy them out
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Size = tuple[int, int]  # height, width
DETECTION_SIZE: Size = (144, 256)  # at which scene cuts are detected: smaller than most videos, so much faster


def crop_box(source_height: int, source_width: int, height: int, width: int, position: float = 0.5) -> Box:
    """The part of a picture that is kept when it is to cover `height` x `width` at `position` (`resize_and_crop`)."""
    scale = max(height / source_height, width / source_width)
    crop_height, crop_width = height / scale, width / scale
    left, top = (source_width - crop_width) * position, (source_height - crop_height) * position
    # Rounded sums may lie a hair outside the picture, which Pillow refuses.
    return max(left, 0), max(top, 0), min(left + crop_width, source_width), min(top + crop_height, source_height)


def decoding_size(source: Size, shapes: Iterable[Size]) -> Size:
    """How large the pictures of a video have to be decoded, to be made into any of these shapes: never larger than it.

    Decoding them no larger saves a third of what decord takes for a picture of 1080p (`benchmarks/ingest.py`).
    """
    height, width = source
    by = int(min(min(height / high, width / wide) for high, wide in shapes) / DECODING_GAP)
    if by < 2:
        return source
    reduced = ceil(height / by / 2) * 2, ceil(width / by / ROW_PIXELS) * ROW_PIXELS
    return reduced if reduced[1] < width else source


def resize_and_crop(
    frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int, position: float = 0.5, shown: Size | None = None
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
    """Cover `height` x `width` keeping the aspect ratio, cutting the overhang.

    Pictures more than six times as large are averaged over whole pixels first.

    Args:
        position: of what is kept, from 0 (left, top) to 1 (right, bottom).
        shown: the size of the pictures that these were decoded from, whose aspect ratio counts; None: their own.
    """
    _, decoded_height, decoded_width, _ = frames.shape
    shown_height, shown_width = shown or (decoded_height, decoded_width)
    down, across = decoded_height / shown_height, decoded_width / shown_width
    left, top, right, bottom = crop_box(shown_height, shown_width, height, width, position)
    box = (left * across, top * down, min(right * across, decoded_width), min(bottom * down, decoded_height))
    return np.stack([_resized(frame, (width, height), box) for frame in frames])


def _resized(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], box: Box) -> UInt8[np.ndarray, "height width 3"]:
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP))
