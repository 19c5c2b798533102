"""Synthetic captioned clips of one moving shape: simple enough to learn in minutes and to evaluate exactly.

Every clip is a pure function of its `Scene`, every scene of (seed, index). Some combinations of colour, shape and
direction are held out of training, to test generalisation to combinations that were never shown.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (30, 175, 50),
    "blue": (40, 70, 230),
    "yellow": (240, 215, 30),
    "purple": (165, 40, 200),
    "cyan": (30, 205, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[float, float]] = {  # unit vectors (down, right)
    "left": (0.0, -1.0),
    "right": (0.0, 1.0),
    "up": (-1.0, 0.0),
    "down": (1.0, 0.0),
}
SIZES: dict[str, float] = {"small": 0.24, "large": 0.30}  # radius as a share of the frame
SPEEDS: dict[str, float] = {
    "slowly": 0.24,
    "quickly": 0.36,
}  # distance travelled in the whole clip, as a share of the frame
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # grey levels, top to bottom
    "black": ((8, 8, 8), (8, 8, 8)),
    "dark": ((40, 40, 40), (40, 40, 40)),
    "grey": ((80, 80, 80), (80, 80, 80)),
    "dusky": ((14, 15, 20), (84, 82, 78)),
    "foggy": ((86, 87, 90), (30, 30, 29)),
}
PHRASINGS = (
    "a {colour} {shape} moves {direction}",
    "a {size} {colour} {shape} moves {direction}",
    "a {colour} {shape} moves {direction} {speed}",
    "a {colour} {shape} moving {direction} on {background}",
    "{colour} {shape}, going {direction}",
    "a {colour} {shape} drifts {speed} to the {side}",
    "a {size} {colour} {shape} goes {direction} {speed}",
)
SIDES = {"left": "left", "right": "right", "up": "top", "down": "bottom"}


@dataclass(frozen=True)
class Combination:
    """The attributes that a prompt asks for and the judge detects."""

    colour: str
    shape: str
    direction: str


@dataclass(frozen=True)
class Scene:
    """Everything that determines the pixels of a clip and its caption."""

    combination: Combination
    size: str
    speed: str
    background: str
    offset: tuple[float, float]  # of the middle of the path from the centre (down, right), as a share of the frame
    phrasing: str

    @property
    def caption(self) -> str:
        """The caption of the clip."""
        combination = self.combination
        return self.phrasing.format(
            colour=combination.colour,
            shape=combination.shape,
            direction=combination.direction,
            side=SIDES[combination.direction],
            size=self.size,
            speed=self.speed,
            background=self.background,
        )


def combinations() -> list[Combination]:
    """Every colour x shape x direction, in a fixed order."""
    return [Combination(*names) for names in itertools.product(COLOURS, SHAPES, DIRECTIONS)]


def held_out_combinations() -> list[Combination]:
    """A quarter of all combinations, which training never shows: a Latin square over the three attributes.

    Each colour, shape and direction, and each pair of them, still occurs in training; only the triple is new.
    """
    held_out = []
    for combination in combinations():
        colour, shape, direction = (
            list(names).index(name)
            for names, name in (
                (COLOURS, combination.colour),
                (SHAPES, combination.shape),
                (DIRECTIONS, combination.direction),
            )
        )
        if (colour + shape + direction) % 4 == 0:
            held_out.append(combination)
    return held_out


def training_combinations() -> list[Combination]:
    """The combinations that training may show."""
    held_out = set(held_out_combinations())
    return [combination for combination in combinations() if combination not in held_out]


def random_scene(seed: int, index: int, allowed: list[Combination]) -> Scene:
    """Scene number `index` of a seed, independent of all others.

    Args:
        allowed: the combinations to choose from.
    """
    random = np.random.default_rng([seed, index])
    combination = allowed[index % len(allowed)]  # each combination equally often
    drift = (random.uniform(-0.02, 0.02), random.uniform(-0.15, 0.15))  # (along the motion, across it)
    vertical = DIRECTIONS[combination.direction][0] != 0
    return Scene(
        combination=combination,
        size=str(random.choice(list(SIZES))),
        speed=str(random.choice(list(SPEEDS))),
        background=str(random.choice(list(BACKGROUNDS))),
        offset=drift if vertical else (drift[1], drift[0]),
        phrasing=str(random.choice(PHRASINGS)),
    )


def shape_mask(shape: str, down: np.ndarray, right: np.ndarray) -> Bool[np.ndarray, "..."]:
    """Whether points are inside a shape; coordinates are relative to its centre, in units of its radius."""
    if shape == "circle":
        return down**2 + right**2 <= 1
    if shape == "square":
        return np.maximum(abs(down), abs(right)) <= 0.85
    if shape == "triangle":  # point upwards
        return (down <= 0.8) & (abs(right) <= (down + 1.0) / 1.8)
    return (np.minimum(abs(down), abs(right)) <= 0.34) & (np.maximum(abs(down), abs(right)) <= 1.0)  # cross


def share_of_points(inside: Bool[np.ndarray, "h_n w_n"], n: int) -> Float32[np.ndarray, "h w"]:
    """The share of the n² points of each pixel that are inside; counted by slices, which is quicker than a mean."""
    points = inside.astype(np.uint16)
    columns = sum((points[i::n] for i in range(1, n)), start=points[::n])
    count = sum((columns[:, j::n] for j in range(1, n)), start=columns[:, ::n])
    return count.astype(np.float32) / n**2


def render(scene: Scene, num_frames: int, pixels: int, supersampling: int = 4) -> UInt8[np.ndarray, "t h w 3"]:
    """Draw a scene as a square clip, antialiased by averaging `supersampling`² points per pixel.

    Args:
        pixels: height and width.
    """
    top, bottom = (np.array(level, dtype=np.float32) for level in BACKGROUNDS[scene.background])
    height = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
    background = np.broadcast_to((top + (bottom - top) * height[:, None])[:, None], (pixels, pixels, 3))
    colour = np.array(COLOURS[scene.combination.colour], dtype=np.float32)
    step = DIRECTIONS[scene.combination.direction]
    radius = SIZES[scene.size]
    points = (np.arange(pixels * supersampling, dtype=np.float32) + 0.5) / (pixels * supersampling)
    frames = np.empty((num_frames, pixels, pixels, 3), dtype=np.uint8)
    for frame, progress in enumerate(np.linspace(-0.5, 0.5, num_frames)):
        travelled = progress * SPEEDS[scene.speed]
        centre = [0.5 + scene.offset[axis] + step[axis] * travelled for axis in (0, 1)]
        near = [  # only the pixels around the shape are supersampled
            slice(max(0, int((middle - radius) * pixels)), min(pixels, int((middle + radius) * pixels) + 2))
            for middle in centre
        ]
        down, right = (
            (points[part.start * supersampling : part.stop * supersampling] - middle) / radius
            for part, middle in zip(near, centre, strict=True)
        )
        cover = share_of_points(shape_mask(scene.combination.shape, down[:, None], right[None, :]), supersampling)
        drawn = background.copy()
        drawn[near[0], near[1]] += cover[..., None] * (colour - drawn[near[0], near[1]])
        frames[frame] = drawn.round()
    return frames
