"""Resizing and cropping to the shape of a bucket, antialiased, keeping the aspect ratio."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data.errors import VideoError

REDUCING_GAP = 3.0  # Pillow: the bicubic step shrinks at least this much; within 3 of 255 of one bicubic step alone
MAX_OVERHANG = 4  # area of a scaled picture, in areas of the clip, from which it is cropped before it is scaled
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Size = tuple[int, int]  # height, width
DETECTION_SIZE: Size = (144, 256)  # at which scene cuts are detected: smaller than most videos, so much faster


def is_hd(height: int, width: int) -> bool:
    """Whether a video without a tag has the colours of HD (BT.709), by its size, as players decide it."""
    return height >= 720 or width >= 1280


def check_num_pixels(height: int, width: int, max_pixels: int | None) -> None:
    """Refuse a picture of more than `max_pixels`, before memory is taken for it; None refuses none.

    Raises:
        VideoError: it has more.
    """
    if max_pixels is not None and height * width > max_pixels:
        raise VideoError(
            "too_large",
            f"it is too large: {width} x {height} pixels are {height * width / 1e6:.1f} million, more than "
            f"{max_pixels / 1e6:.1f} million",
        )


def crop_box(source_height: int, source_width: int, height: int, width: int, position: float = 0.5) -> Box:
    """The part of a picture that is kept when it is resized to `height` x `width` (`resize_and_crop`)."""
    scale = max(height / source_height, width / source_width)
    crop_height, crop_width = height / scale, width / scale
    left, top = (source_width - crop_width) * position, (source_height - crop_height) * position
    # Rounding errors may place the box slightly outside the picture, which Pillow refuses.
    return max(left, 0), max(top, 0), min(left + crop_width, source_width), min(top + crop_height, source_height)


def cover_size(shown: Size, height: int, width: int) -> Size:
    """The size at which a picture covers `height` x `width` and keeps its aspect ratio to half a pixel.

    Args:
        shown: height and width of the picture in square pixels.
    """
    scale = max(height / shown[0], width / shown[1])
    return max(height, round(shown[0] * scale)), max(width, round(shown[1] * scale))


def reading_size(shown: Size, height: int, width: int) -> Size | None:
    """The size to decode frames to, so that they need not be resized any more; None: their own, to be cropped first.

    Scaling a picture while it is converted to RGB costs much less than resizing it afterwards. Of a picture that is
    much longer than the clip, too much would be scaled only to be cropped.
    """
    covering = cover_size(shown, height, width)
    return covering if covering[0] * covering[1] <= MAX_OVERHANG * height * width else None


def resize_and_crop(
    frames: UInt8[np.ndarray, "t h w 3"], height: int, width: int, position: float = 0.5, shown: Size | None = None
) -> UInt8[np.ndarray, "t {height} {width} 3"]:
    """Resize to cover `height` x `width`, keeping the aspect ratio, and crop what is outside.

    Frames that were decoded to `reading_size` are only cropped, to whole pixels. Frames more than six times as large
    are averaged over whole pixels first.

    Args:
        position: of the crop, from 0 (left, top) to 1 (right, bottom).
        shown: height and width of the video in square pixels, if its frames were decoded to another size or their
            pixels are not square; None: that of the frames.
    """
    _, decoded_height, decoded_width, _ = frames.shape
    shown_height, shown_width = shown or (decoded_height, decoded_width)
    if (decoded_height, decoded_width) == reading_size((shown_height, shown_width), height, width):
        top, left = round((decoded_height - height) * position), round((decoded_width - width) * position)
        return frames[:, top : top + height, left : left + width]
    down, across = decoded_height / shown_height, decoded_width / shown_width
    left, top, right, bottom = crop_box(shown_height, shown_width, height, width, position)
    box = (left * across, top * down, min(right * across, decoded_width), min(bottom * down, decoded_height))
    return np.stack([_resized(frame, (width, height), box) for frame in frames])


def _resized(frame: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], box: Box) -> UInt8[np.ndarray, "height width 3"]:
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=REDUCING_GAP))
