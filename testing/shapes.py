"""Buckets of several shapes, and videos that fit each of them."""

from pathlib import Path

import numpy as np
from PIL import Image

from data.dataset.buckets import Bucket
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip

WIDE = Bucket(num_frames=9, height=32, width=64, fps=8)
TALL = Bucket(num_frames=9, height=64, width=32, fps=8)
SQUARE = Bucket(num_frames=9, height=48, width=48, fps=8)
SHORT = Bucket(num_frames=5, height=48, width=48, fps=8)
STILL = Bucket(num_frames=1, height=48, width=48, fps=8)
ALL = (WIDE, TALL, SQUARE, SHORT, STILL)


def make_video(path: Path, height: int, width: int, num_frames: int, shade: int) -> None:
    """A brightness ramp over time and width at 8 frames per second; `shade` (0 to 15) makes its frames unique."""
    ramp = np.linspace(0, 200, num_frames)[:, None, None, None] + np.linspace(0, 40, width)[None, None, :, None]
    frames = np.broadcast_to(ramp + shade, (num_frames, height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_clip(frames, 8))


def write_shape_videos(folder: Path) -> Path:
    """Two wide, one tall and one square video, a short one, an image with an orientation tag, and a broken image."""
    make_video(folder / "a.mp4", 64, 128, 20, 0)
    make_video(folder / "b.mp4", 64, 128, 10, 5)
    make_video(folder / "c.mp4", 128, 64, 12, 10)
    make_video(folder / "d.mp4", 96, 96, 18, 15)
    make_video(folder / "e.mp4", 96, 96, 6, 20)
    picture = Image.fromarray(np.tile(np.arange(96, dtype=np.uint8)[:, None, None], (1, 64, 3)))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    picture.save(folder / "f.png", exif=turned)
    (folder / "g.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder


def write_two_videos(folder: Path) -> Path:
    """`a.mp4` and `sub/b.mp4` of 24 frames at 8 per second, and a text file."""
    for name in ("a.mp4", "sub/b.mp4"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_clip(render(random_scene(0, 1, combinations()), 24, 48), 8))
    (folder / "notes.txt").write_text("hello")
    return folder
