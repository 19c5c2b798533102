"""What several modules of `data` share."""

import numpy as np
from jaxtyping import UInt8

Frames = UInt8[np.ndarray, "t h w 3"]
