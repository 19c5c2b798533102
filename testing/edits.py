"""Edited videos with known cuts, fades, cross-fades, flashes, fast pans and zooms, from drawn or given footage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data.records import Frames
from data.video.resize import resize_and_crop

HEIGHT, WIDTH = 144, 256
Motion = Literal["still", "drift", "shake", "pan", "zoom"]
Edit = Literal["cut", "black", "red", "dissolve"]
THROUGH: dict[Edit, tuple[int, int, int]] = {"black": (0, 0, 0), "red": (190, 30, 40)}  # what a fade leads through
MOTIONS: tuple[Motion, ...] = ("still", "drift", "shake", "pan", "zoom")


@dataclass(frozen=True)
class KnownEdit:
    """A transition of an edited video, in frames."""

    kind: Edit
    start: int  # first frame that is not of the old scene alone
    end: int  # first frame that is of the new scene alone

    @property
    def num_frames(self) -> int:
        """Frames that are of no scene alone; 0 for a cut."""
        return self.end - self.start


def draw_picture(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture with the power spectrum of photographs (1 / f) and a few flat shapes; uint8 (h w 3)."""
    waves_down, waves_across = np.meshgrid(
        np.fft.fftfreq(height) * height, np.fft.fftfreq(width) * width, indexing="ij"
    )
    amplitude = 1 / np.maximum(np.hypot(waves_down, waves_across), 1.0) ** 1.1
    noise = generator.standard_normal((4, height, width))
    fields = np.fft.ifft2(np.fft.fft2(noise) * amplitude).real
    fields /= fields.std((1, 2), keepdims=True)
    mean, contrast = generator.uniform(70, 170), generator.uniform(30, 55)
    picture = mean + contrast * (fields[0][..., None] + 0.4 * np.moveaxis(fields[1:], 0, -1))
    rows, columns = np.mgrid[:height, :width]
    for _ in range(generator.integers(3, 9)):
        radius = generator.uniform(0.04, 0.18) * height
        top, left = generator.uniform(0, height), generator.uniform(0, width)
        is_round = generator.random() < 0.5
        distance = (
            np.hypot(rows - top, columns - left) if is_round else np.maximum(abs(rows - top), abs(columns - left))
        )
        picture[distance < radius] = generator.uniform(10, 245, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_shot(generator: np.random.Generator, num_frames: int, motion: Motion) -> Frames:
    """One scene with a moving camera, and an object that crosses it."""
    scale = 3 if motion == "pan" else 2
    world = draw_picture(generator, 2 * HEIGHT, scale * WIDTH)
    thing = draw_picture(generator, HEIGHT // 3, HEIGHT // 4)
    time = np.linspace(0, 1, num_frames)
    room_down, room_across = world.shape[0] - HEIGHT, world.shape[1] - WIDTH
    top, left = np.full(num_frames, room_down / 2), np.full(num_frames, room_across / 2)
    zoom = np.ones(num_frames)
    if motion == "drift":
        top, left = top + generator.uniform(-30, 30) * time, left + generator.uniform(-60, 60) * time
    elif motion == "shake":
        top = top + generator.normal(0, 2.5, num_frames)
        left = left + generator.normal(0, 2.5, num_frames)
    elif motion == "pan":  # several picture widths in the shot, there and back
        left = room_across * (0.5 - 0.5 * np.cos(2 * np.pi * time * generator.uniform(0.6, 1.2)))
    elif motion == "zoom":
        zoom = np.linspace(1, generator.uniform(1.5, 1.9), num_frames)
        zoom = zoom if generator.random() < 0.5 else zoom[::-1]
    path = np.linspace(generator.uniform(0, 0.3), generator.uniform(0.6, 1), num_frames)
    frames = []
    for number in range(num_frames):
        high, wide = HEIGHT / zoom[number], WIDTH / zoom[number]
        y, x = round(top[number] + (HEIGHT - high) / 2), round(left[number] + (WIDTH - wide) / 2)
        frame = world[y : y + round(high), x : x + round(wide)]
        frame = resize_and_crop(frame[None], HEIGHT, WIDTH)[0].copy()
        at = round(path[number] * (WIDTH - thing.shape[1]))
        frame[HEIGHT // 2 : HEIGHT // 2 + thing.shape[0], at : at + thing.shape[1]] = thing
        frames.append(frame)
    return np.stack(frames)


def add_flash(frames: Frames, at: int, num_frames: int, strength: float) -> Frames:
    """The frames with a flash of light: `strength` from 0 to 1, where 1 is white."""
    lit = frames.copy()
    part = lit[at : at + num_frames].astype(np.float32)
    lit[at : at + num_frames] = (part + (255 - part) * strength).astype(np.uint8)
    return lit


def add_noise(frames: Frames, generator: np.random.Generator, sigma: float) -> Frames:
    """The frames with the noise of a sensor."""
    return np.clip(frames + generator.normal(0, sigma, frames.shape), 0, 255).astype(np.uint8)


def join(shots: Sequence[Frames], edits: Sequence[Edit], lengths: Sequence[int]) -> tuple[Frames, list[KnownEdit]]:
    """Edit shots together.

    Args:
        edits: what leads from each shot to the next.
        lengths: of each edit in frames; a cut has none. A fade takes half of them to one colour and half from it,
            a cross-fade takes them from the end of one shot and the start of the next.
    """
    frames, known = list(shots[0].astype(np.float32)), []
    for kind, length, shot in zip(edits, lengths, shots[1:], strict=True):
        incoming = list(shot.astype(np.float32))
        if kind == "cut":
            known.append(KnownEdit("cut", len(frames), len(frames)))
        elif kind in THROUGH:
            half, colour = length // 2, np.array(THROUGH[kind], np.float32)
            known.append(KnownEdit(kind, len(frames) - half, len(frames) + length - half))
            for step in range(half):
                at = len(frames) - half + step
                frames[at] = colour + (frames[at] - colour) * (1 - (step + 1) / half)
            for step in range(length - half):
                incoming[step] = colour + (incoming[step] - colour) * (step / (length - half))
        else:
            start = len(frames) - length
            known.append(KnownEdit("dissolve", start, len(frames)))
            for step in range(length):
                share = (step + 1) / (length + 1)
                frames[start + step] = (1 - share) * frames[start + step] + share * incoming[step]
            incoming = incoming[length:]
        frames += incoming
    return np.stack(frames).round().astype(np.uint8), known
