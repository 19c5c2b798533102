"""More clips from each span of a video."""

from typing import Literal

import numpy as np

from data.dataset.buckets import Bucket, SourceShape, cropped_share
from data.records import Settings

MIN_OVERHANG = 0.05  # share of the picture below which several crops would be nearly the same


class AugmentConfig(Settings):
    """More clips from each span of the training split. Each is a sample of its own, encoded once."""

    flip: bool = False
    """Also mirrored; for captions that name no left and right."""
    crops: Literal[1, 3, 5] = 1
    """Of pictures that overhang their bucket: the centre, and from one end to the other."""

    def crop_positions(self, shape: SourceShape, bucket: Bucket) -> list[float]:
        """Where the crops lie on the overhanging side, from 0 to 1; only the centre where next to nothing overhangs."""
        if self.crops == 1 or cropped_share(shape, bucket) < MIN_OVERHANG:
            return [0.5]
        return np.linspace(0, 1, self.crops).tolist()


AS_IT_IS = AugmentConfig()
