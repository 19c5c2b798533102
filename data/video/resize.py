"""Resizing and cropping to the shape of a bucket, antialiased, keeping the aspect ratio."""

from collections.abc import Iterable
from math import ceil

import numpy as np
from jaxtyping import UInt8
from PIL import Image

REDUCING_GAP = 3.0  # Pillow: the bicubic step shrinks at least this much; within 3 of 255 of one bicubic step alone
DECODING_GAP = 5.0  # as above for frames shrunk by a decoder, whose chroma has half the resolution
ROW_PIXELS = 64  # decord pads rows of other widths, and then cannot copy them
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Size = tuple[int, int]  # height, width
DETECTION_SIZE: Size = (144, 256)  # at which scene cuts are detected: smaller than most videos, so much faster


def is_hd(height: int, width: int) -> bool:
    """Whether a video without a tag has the colours of HD (BT.709), by its size, as players decide it."""
    return height >= 720 or width >= 1280


def crop_box(source_height: int, source_width: int, height: int, width: int, position: float = 0.5) -> Box:
    """The part of a picture that is kept when it is resized to `height` x `width` (`resize_and_crop`)."""
    scale = max(height / source_height, width / source_width)
    crop_height, crop_width = height / scale, width / scale
    left, top = (source_width - crop_width) * position, (source_height - crop_height) * position
    # Rounding errors may place the box slightly outside the picture, which Pillow refuses.
    return max(left, 0), max(top, 0), min(left + crop_width, source_width), min(top + crop_height, source_height)


def decoding_size(shown: Size, shapes: Iterable[Size], upright: Size | None = None) -> Size:
    """The size to decode the frames of a video to, so that they can be resized to any of these shapes.

    At 1080p it saves a third of decord's time (`benchmarks/ingest.py`). Never larger than the decoded frames.

    Args:
        shown: height and width of the video in square pixels.
        upright: those of its decoded frames, if its pixels are not square; None: they are.
    """
    height, width = shown
    upright = upright or shown
    by = int(min(min(height / high, width / wide) for high, wide in shapes) / DECODING_GAP)
    if by < 2:
        return upright
    reduced = ceil(height / by / 2) * 2, ceil(width / by / ROW_PIXELS) * ROW_PIXELS
    return reduced if reduced[0] <= upright[0] and reduced[1] < upright[1] else upright


def resize_and_crop(
    frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int, position: float = 0.5, shown: Size | None = None
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
    """Resize to cover `height` x `width`, keeping the aspect ratio, and crop what is outside.

    Frames more than six times as large are averaged over whole pixels first.

    Args:
        position: of the crop, from 0 (left, top) to 1 (right, bottom).
        shown: height and width of the video in square pixels, if its frames were decoded to another size or their
            pixels are not square; None: that of the frames.
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
