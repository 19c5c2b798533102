"""The judge of prompt adherence: tells from the pixels of a synthetic clip what it shows, without any model.

Shapes are coloured and backgrounds are grey, so saturation separates them. The colour is the hue of the coloured
pixels, the direction is the motion of their centre, and the shape is the template that overlaps them best.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from data.synthetic import COLOURS, DIRECTIONS, SHAPES, Combination, shape_mask, share_of_points

MIN_SATURATION = 60  # of 255: greys are below it, the inside of each coloured shape is above 120
MIN_SHARE = 0.006  # fraction of pixels that must be coloured for a frame to be used
MIN_TRAVEL = 0.06  # fraction of the frame's side: a shorter path of the centre is no motion
SUPERSAMPLING = 3  # samples per pixel and axis when a template is drawn
TEMPLATE_POINTS = np.linspace(-1, 1, 201)


@dataclass(frozen=True)
class Judgement:
    """What a clip shows, by the names of `data.synthetic`; None where it cannot be told."""

    colour: str | None
    shape: str | None
    direction: str | None

    def agrees(self, wanted: Combination) -> dict[str, bool]:
        """Whether each attribute is as wanted, and under `all` whether every one is."""
        right = {name: getattr(self, name) == getattr(wanted, name) for name in ("colour", "direction", "shape")}
        return right | {"all": all(right.values())}


def judge_clip(frames: UInt8[np.ndarray, "t h w 3"]) -> Judgement:
    """Judge one clip; all is None if fewer than half of its frames show a coloured shape."""
    levels = frames.astype(np.float32)
    saturation = levels.max(-1) - levels.min(-1)
    visible = np.flatnonzero((saturation > MIN_SATURATION).mean((1, 2)) > MIN_SHARE)
    if len(visible) < len(frames) / 2:
        return Judgement(None, None, None)
    levels, saturation = levels[visible], saturation[visible]
    flat = float(np.quantile(saturation[saturation > MIN_SATURATION], 0.75))  # saturation of the inside of the shape
    cover = np.clip(saturation / flat, 0, 1) * (saturation > MIN_SATURATION / 2)
    return Judgement(
        colour=_colour(levels[saturation > MIN_SATURATION]),
        shape=_shape(cover),
        direction=_direction(cover, visible),
    )


def _hue(rgb: np.ndarray) -> np.ndarray:
    """Hue of colours (..., 3), in radians (-pi, pi]."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    return np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)


def _colour(pixels: Float[np.ndarray, "n 3"]) -> str:
    """The palette colour whose hue is nearest to that of the mean pixel."""
    chroma = pixels - pixels.mean(-1, keepdims=True)
    hue = _hue(chroma.mean(0))
    palette = _hue(np.array(list(COLOURS.values()), dtype=np.float32))
    distance = np.abs(np.angle(np.exp(1j * (palette - hue))))
    return list(COLOURS)[int(distance.argmin())]


def _centres(cover: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t 2"]:
    """Centre of mass (down, right) of each frame, as fractions of its height and width."""
    _, height, width = cover.shape
    mass = cover.sum((1, 2))
    down = (cover.sum(2) @ (np.arange(height) + 0.5)) / mass / height
    right = (cover.sum(1) @ (np.arange(width) + 0.5)) / mass / width
    return np.stack([down, right], axis=1)


def _direction(cover: Float[np.ndarray, "t h w"], times: np.ndarray) -> str | None:
    """The direction nearest to a straight line that is fitted to the path of the centre; None without motion."""
    drift = np.polyfit(times, _centres(cover), 1)[0] * (times[-1] - times[0])
    if np.hypot(*drift) < MIN_TRAVEL:
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(DIRECTIONS[name], drift)))


@cache
def _template(shape: str) -> tuple[float, np.ndarray]:
    """Area (in squared radii) and centre of mass of a shape of radius 1."""
    inside = shape_mask(shape, TEMPLATE_POINTS[:, None], TEMPLATE_POINTS[None, :])
    down, right = np.nonzero(inside)
    return inside.mean() * 4, np.array([TEMPLATE_POINTS[down].mean(), TEMPLATE_POINTS[right].mean()])


def _shape(cover: Float[np.ndarray, "t h w"]) -> str | None:
    """The shape that overlaps the coloured pixels best over all frames, if drawn with their area and centre."""
    _, height, width = cover.shape
    centres, areas = _centres(cover), cover.sum((1, 2)) / (height * width)
    rows = (np.arange(height * SUPERSAMPLING) + 0.5) / (height * SUPERSAMPLING)
    columns = (np.arange(width * SUPERSAMPLING) + 0.5) / (width * SUPERSAMPLING)
    scores = dict.fromkeys(SHAPES, 0.0)
    for shape in SHAPES:
        area, offset = _template(shape)
        for seen, centre, share in zip(cover, centres, areas, strict=True):
            radius = np.sqrt(share / area)
            down, right = (rows - centre[0]) / radius + offset[0], (columns - centre[1]) / radius + offset[1]
            drawn = share_of_points(shape_mask(shape, down[:, None], right[None, :]), SUPERSAMPLING)
            scores[shape] += float(np.minimum(seen, drawn).sum() / np.maximum(seen, drawn).sum())
    return max(scores, key=lambda shape: scores[shape])
