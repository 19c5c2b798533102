"""Pictures cut to the shape of a bucket: resized to cover it, antialiased, and what overhangs is cut off."""

from math import ceil

import numpy as np
from jaxtyping import UInt8
from PIL import Image

REDUCING_GAP = 3.0  # the bicubic step still shrinks at least this much: within 3 of 255 of shrinking in one step
BICUBIC_REACH = 1.5  # pixels of the result that the filter looks beyond an edge
STRIP_PIXELS = 2**16  # averaged at once: they stay in the cache between Pillow's copy of them and the average

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


def crop_box(source_height: int, source_width: int, height: int, width: int, position: float = 0.5) -> Box:
    """The part of a picture that is kept when it is to cover `height` x `width` at `position` (`resize_and_crop`)."""
    scale = max(height / source_height, width / source_width)
    crop_height, crop_width = height / scale, width / scale
    left, top = (source_width - crop_width) * position, (source_height - crop_height) * position
    # Rounded sums may lie a hair outside the picture, which Pillow refuses.
    return max(left, 0), max(top, 0), min(left + crop_width, source_width), min(top + crop_height, source_height)


def resize_and_crop(
    frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int, position: float = 0.5
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
    """Cover `height` x `width` keeping the aspect ratio, cutting the overhang.

    Pictures more than six times as large are averaged over whole pixels first: a fifth of the work at 1080p.

    Args:
        position: of what is kept, from 0 (left, top) to 1 (right, bottom).
    """
    _, source_height, source_width, _ = frames.shape
    box = crop_box(source_height, source_width, height, width, position)
    return np.stack([np.asarray(_resized(frame, (width, height), box)) for frame in frames])


def _resized(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], box: Box) -> Image.Image:
    """`Image.resize` with a reducing gap, to the bit, but only what the box needs is copied into an image."""
    left, top, right, bottom = box
    across, down = (right - left) / size[0], (bottom - top) / size[1]
    by = int(across / REDUCING_GAP) or 1, int(down / REDUCING_GAP) or 1
    if by == (1, 1):
        return Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BICUBIC, box=box)
    height, width, _ = frame.shape
    start, above = max(0, int(left - BICUBIC_REACH * across)), max(0, int(top - BICUBIC_REACH * down))
    end, below = min(width, ceil(right + BICUBIC_REACH * across)), min(height, ceil(bottom + BICUBIC_REACH * down))
    reduced = Image.fromarray(_reduced(frame, (start, above, end, below), by))
    inner = ((left - start) / by[0], (top - above) / by[1], (right - start) / by[0], (bottom - above) / by[1])
    return reduced.resize(size, Image.Resampling.BICUBIC, box=inner)


def _reduced(
    frame: UInt8[np.ndarray, "h w 3"], box: tuple[int, int, int, int], by: tuple[int, int]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Averages over `by` pixels across and down, of the part of a frame in a box."""
    left, top, right, bottom = box
    width = frame.shape[1]
    pixels = np.ascontiguousarray(frame).reshape(-1)
    rows = min(bottom - top, max(1, STRIP_PIXELS // ((right - left) * by[1])) * by[1])
    strip = Image.new("RGB", (right - left, rows), None)
    strips = []
    for at in range(top, bottom, rows):
        if at + rows > bottom:
            strip = Image.new("RGB", (right - left, bottom - at), None)
        strip.frombytes(pixels[3 * (at * width + left) :], "raw", "RGB", 3 * width, 1)
        strips.append(np.asarray(strip.reduce(by)))
    return np.concatenate(strips)
