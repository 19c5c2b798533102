"""Still images as clips of one frame."""

import struct
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import VideoError
from data.video.resize import check_num_pixels
from data.video.transparency import over_background


def read_image(path: Path, max_pixels: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image file, rotated and mirrored as its EXIF data says.

    Raises:
        VideoError: it cannot be decoded, or its header says that it has more than `max_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            with Image.open(path) as image:
                check_num_pixels(image.height, image.width, max_pixels)
                return np.asarray(_eight_bits(_upright(image)))
    except VideoError:
        raise
    except Image.DecompressionBombError as error:  # Pillow opens no file of more than 179 million pixels
        raise VideoError("too_large", f"it is too large to be opened ({error})") from error
    except (UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error
    except OSError as error:
        if error.errno is not None:  # an error of the file system
            raise
        raise VideoError("undecodable", f"it cannot be decoded ({error})") from error


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated and mirrored as its EXIF data says.

    Raises:
        ValueError: that data is damaged, for which Pillow raises all sorts of errors.
    """
    try:
        return ImageOps.exif_transpose(image)
    except (struct.error, AttributeError, KeyError, OverflowError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"its EXIF data is damaged: {error}") from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """RGB with 8 bits: 16-bit greys are scaled, not clipped; transparent pixels are shown over white.

    Raises:
        ValueError: the pixels are floating-point numbers.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = over_background(image.convert("RGBA"))
    return image.convert("RGB")
