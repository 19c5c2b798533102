"""TODO testing/shapes."""

import numpy as np

from data.dataset.buckets import (
    Bucket,
)
from data.video.codec import encode_clip

WIDE = Bucket(num_frames=9, height=32, width=64, fps=8)

TALL = Bucket(num_frames=9, height=64, width=32, fps=8)

SQUARE = Bucket(num_frames=9, height=48, width=48, fps=8)

SHORT = Bucket(num_frames=5, height=48, width=48, fps=8)

STILL = Bucket(num_frames=1, height=48, width=48, fps=8)

ALL = (WIDE, TALL, SQUARE, SHORT, STILL)


def make_video(path, height, width, num_frames, shade):
    ramp = np.linspace(0, 200, num_frames)[:, None, None, None] + np.linspace(0, 40, width)[None, None, :, None]
    frames = np.broadcast_to(ramp + shade, (num_frames, height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_clip(frames, 8))
