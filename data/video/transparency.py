"""Transparent pictures: one rule for images and videos.

Transparent pixels still have a colour, which nobody is meant to see. Every picture is shown over white, as browsers
and most image viewers show it.
"""

import numpy as np
from av.video.format import VideoFormat
from jaxtyping import UInt8
from PIL import Image

BACKGROUND = "white"


def over_background(image: Image.Image) -> Image.Image:
    """An RGBA image composited over the background; RGBA, opaque."""
    return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image)


def composited(pixels: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB of an RGBA picture (alpha not premultiplied) over the background."""
    return np.asarray(over_background(Image.fromarray(pixels)).convert("RGB"))


def may_be_transparent(pixel_format: VideoFormat) -> bool:
    """Whether frames of a pixel format can have transparent pixels: it has an alpha channel or a palette."""
    return pixel_format.has_palette or any(component.is_alpha for component in pixel_format.components)
