"""Settings of curation: what is kept of the sources."""

from typing import Literal

from pydantic import Field

from data.records import Settings


class FilterConfig(Settings):
    """Which videos and clips are left out. Each filter is off while its threshold is None."""

    too_small_pixels: int | None = Field(default=16, ge=1)
    """Videos whose shorter side has fewer pixels than this are left out; None keeps every size."""
    static_difference: float | None = Field(default=None, ge=0, le=255)
    """Clips are left out whose consecutive frames differ by at most this brightness on average, from 0 to 255."""
    black_luma: float | None = Field(default=None, ge=0, le=255)
    """Clips are left out whose mean brightness is at most this, from 0 (black) to 255 (white)."""
    letter_boxed_share: float | None = Field(default=None, ge=0, lt=1)
    """Clips are left out if more than this share of the picture, from 0 to 1, is black bars at its edges."""
    text_fraction: float | None = Field(default=None, ge=0, lt=1)
    """Clips are left out if more than this share of the picture, from 0 to 1, is text; needs the extra `text-filter`.

    It is the median over the first, middle and last frame, measured before the frames are resized.
    """
    duplicate_bits: int | None = Field(default=None, ge=0, le=32)
    """Clips are left out whose perceptual hash of 189 bits differs from an earlier clip's in at most this many bits.

    Earlier in the order of the videos: by path in a folder, by row in a table.
    """


SceneDetection = Literal["off", "content"]
