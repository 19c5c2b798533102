"""Frames of moving shapes with lines of text drawn into them."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.dataset.buckets import Bucket
from data.synthetic import combinations, random_scene, render

BUCKET = Bucket(num_frames=9, height=64, width=64, fps=8)

FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"

CREDITS = ("DIRECTED BY", "ANNA KARLSSON", "PRODUCED BY", "PETER NOWAK")


def moving(width: int = 320, number: int = 0) -> np.ndarray:
    """12 frames of 240 x `width` pixels."""
    return render(random_scene(0, number, combinations()), 12, max(240, width))[:, :240, :width]


def written(frames: np.ndarray, lines: tuple[str, ...], pixels: int, left: int = 10, top: int = 10) -> np.ndarray:
    """The frames with lines of text drawn over them, `pixels` high."""
    font, drawn = ImageFont.truetype(str(FONT), pixels), []
    for frame in frames:
        image = Image.fromarray(frame)
        for number, line in enumerate(lines):
            place = (left, top + round(1.3 * pixels) * number)
            ImageDraw.Draw(image).text(place, line, "white", font, stroke_width=1, stroke_fill="black")
        drawn.append(np.asarray(image))
    return np.stack(drawn)
