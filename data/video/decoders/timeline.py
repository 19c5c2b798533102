"""What every decoder offers: the presentation time of each frame of a file, and the pixels of some of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from data.dataset.clip import Decoder

Frame = UInt8[np.ndarray, "h w 3"]


class UnfitDecoderError(Exception):
    """A decoder does not return the frames that the file's time stamps promise; another decoder may."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a video as one decoder sees them."""

    times_seconds: np.ndarray  # presentation time of each frame, strictly increasing
    # Upright frames by index; the indices must increase. Their pixels are as stored, not always square.
    read: Callable[[list[int]], Iterator[Frame]]
    decoder: Decoder
    # Called once all frames that are needed have been read: raises VideoError if none of them shows anything.
    check: Callable[[], None] = field(default=lambda: None)
