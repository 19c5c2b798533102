"""Numbers of single clips that need no network: light, colour, sharpness, motion and flicker."""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from data.records import Frames

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)
COLOURED = 60 / 255  # saturation from which a pixel counts as coloured, as in `judge`


@dataclass(frozen=True)
class ClipStatistics:
    """Of one clip; all are means over its frames and lie in [0, 1]."""

    brightness: float
    """Mean luma."""
    contrast: float
    """Standard deviation of the luma over a frame."""
    saturation: float
    """Mean of the largest minus the smallest of red, green and blue."""
    coloured_area: float
    """Share of the pixels that are coloured."""
    sharpness: float
    """Mean absolute difference of the luma of neighbouring pixels."""
    motion: float
    """Mean absolute difference of the luma of neighbouring frames; 0 of a single frame."""
    flicker: float
    """Mean absolute difference of the luma of a frame from the mean of the frames before and after it.

    Steady motion hardly counts, noise and jumps do; 0 of fewer than three frames.
    """


STATISTICS = tuple(field.name for field in fields(ClipStatistics))


def measure_clip(frames: Frames) -> ClipStatistics:
    """The statistics of a clip."""
    pixels = frames.astype(np.float32) / 255
    luma = pixels @ LUMA
    saturation = pixels.max(-1) - pixels.min(-1)
    return ClipStatistics(
        brightness=_mean(luma),
        contrast=_mean(luma.std((1, 2))),
        saturation=_mean(saturation),
        coloured_area=_mean(saturation > COLOURED),
        sharpness=(_mean(np.abs(np.diff(luma, axis=1))) + _mean(np.abs(np.diff(luma, axis=2)))) / 2,
        motion=_mean(np.abs(np.diff(luma, axis=0))),
        flicker=_mean(np.abs(luma[1:-1] - (luma[:-2] + luma[2:]) / 2)),
    )


def _mean(values: Float[np.ndarray, "..."]) -> float:
    """The mean; 0 where there are none."""
    return float(values.mean()) if values.size else 0.0
