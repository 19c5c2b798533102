"""Search for clips that look like an earlier one, also if they are mirrored or cropped.

A clip is described by the lowest 12 x 12 DCT frequencies of its first, middle and last frame. From these follow the
frequencies of any part of the picture, without the picture. A kept clip is stored by the signs of the frequencies of
its *core*, the middle 80 % of its picture. A new clip is compared at every place where such a core may lie in its own
picture: if it is the kept clip cropped, uncropped, or mirrored.

Comparing with all kept clips would take a second each at a million of them. So they are found through tables
(locality-sensitive hashing: Indyk and Motwani 1998): each lists the clips by some of the most stable signs, and a clip
is compared with those that agree with it in at least one table.
"""

from base64 import b64decode, b64encode
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from scipy.fft import dctn

from data.curation.filters import HASH_PIXELS, shrink
from data.curation.measures import LUMA
from data.records import Frames

STORED = 12  # lowest frequencies that are stored, down and across
COMPARED = 8  # that are compared: 63 signs a frame, as the mean is left out
CORE = 0.8  # share of the side of the picture
CROPS = (0.0, 0.035, 0.07, 0.105, 0.14, 0.175, 0.21)  # shares of the side that are cropped away, both edges together
CROP_STEP = 0.035  # between the places of crops of one size; half of it is what the signs endure
NUM_TABLES, TABLE_BITS = 16, 20
STABLE = 5  # signs of the lowest 5 x 5 frequencies are used in tables
MOVING = 2.0  # of 255: root mean square change between frames from which clips are also compared by how they move
SAME_MOVEMENT = 0.5  # least correlation of how two clips change over time, if both do


def describe(frames: Frames) -> str:
    """The description of a clip that `Lookalikes` takes, as text of 580 characters."""
    spectra = np.stack([_spectrum(frames[index]) for index in (0, len(frames) // 2, len(frames) - 1)])
    weighted = spectra * _weights()
    weighted[:, 0, 0] = 0  # the mean, which says nothing of what is shown
    scale = np.float32(max(float(np.abs(weighted).max()) / 127, 1e-3))
    return b64encode(scale.tobytes() + (weighted / scale).round().astype(np.int8).tobytes()).decode()


def _spectrum(frame: np.ndarray) -> Float[np.ndarray, "12 12"]:
    shrunk = shrink(frame.astype(np.float32) @ LUMA, HASH_PIXELS)
    return np.asarray(dctn(shrunk, norm="forward"))[:STORED, :STORED]


@lru_cache(maxsize=1)
def _weights() -> Float[np.ndarray, "12 12"]:
    """Higher frequencies are weaker: with these weights, 8 bits hold them all."""
    down, across = np.mgrid[:STORED, :STORED]
    return (1.0 + down + across).astype(np.float32)


def _read(description: str) -> Float[np.ndarray, "3 12 12"]:
    content = b64decode(description)
    scale = np.frombuffer(content[:4], np.float32)[0]
    return np.frombuffer(content[4:], np.int8).reshape(3, STORED, STORED) * scale / _weights()


def _part_matrix(start: float, end: float) -> Float[np.ndarray, "8 12"]:
    """From the frequencies of a line to those of a part of it, both as sums of cosines over [0, 1]."""
    points = (np.arange(64) + 0.5) / 64
    inside = np.cos(np.pi * np.arange(STORED)[:, None] * (start + (end - start) * points))
    inside[1:] *= 2  # scipy's `norm="forward"` divides by 2 n: the inverse doubles all but the mean
    return (np.cos(np.pi * np.arange(COMPARED)[:, None] * points) @ inside.T / 64).astype(np.float32)


@dataclass(frozen=True)
class _Places:
    """Where the core of another clip may lie in a picture."""

    down: Float[np.ndarray, "w 8 12"]
    across: Float[np.ndarray, "w 8 12"]

    def spectra(self, clip: Float[np.ndarray, "3 12 12"]) -> Float[np.ndarray, "w 3 8 8"]:
        """The frequencies of a clip at every place."""
        return np.einsum("wik,fkl,wjl->wfij", self.down, clip, self.across, optimize=True)


@lru_cache(maxsize=2)
def _places(all_of_them: bool) -> _Places:
    """Every place that is searched, or that of the clip's own core alone."""
    margin = (1 - CORE) / 2
    places = {(margin, 1 - margin, margin, 1 - margin)}
    for crop in CROPS[1:] if all_of_them else ():
        starts = np.arange(crop % CROP_STEP / 2 or 0.0, crop + 1e-6, CROP_STEP) if crop > CROP_STEP else [crop / 2]
        for top in starts:
            for left in starts:
                inner = [(edge + margin * (1 - crop), edge + (1 - margin) * (1 - crop)) for edge in (top, left)]
                outer = [((margin - edge) / (1 - crop), (1 - margin - edge) / (1 - crop)) for edge in (top, left)]
                for down, across in (inner, outer):
                    if min(*down, *across) > -1e-6 and max(*down, *across) < 1 + 1e-6:
                        places.add((round(down[0], 6), round(down[1], 6), round(across[0], 6), round(across[1], 6)))
    ordered = sorted(places)
    return _Places(
        np.stack([_part_matrix(top, bottom) for top, bottom, _, _ in ordered]),
        np.stack([_part_matrix(left, right) for _, _, left, right in ordered]),
    )


def _signs(spectra: Float[np.ndarray, "w 3 8 8"]) -> Bool[np.ndarray, "w 189"]:
    return (spectra > 0).reshape(len(spectra), 3, -1)[:, :, 1:].reshape(len(spectra), -1)


def _packed(signs: Bool[np.ndarray, "w 189"]) -> UInt64[np.ndarray, "w 3"]:
    padded = np.pad(signs, ((0, 0), (0, 192 - signs.shape[1])))
    return np.packbits(padded, axis=1).view(np.uint64)


@lru_cache(maxsize=1)
def _table_signs() -> Int[np.ndarray, "tables bits"]:
    """Which of the 189 signs each table looks at: fixed pseudo-random choices among the lowest frequencies."""
    generator = np.random.default_rng(0)
    down, across = np.divmod(np.arange(1, COMPARED**2), COMPARED)
    stable = np.flatnonzero((down < STABLE) & (across < STABLE))  # 24 of 63
    rows = []
    for _ in range(NUM_TABLES):
        chosen = generator.choice(stable, TABLE_BITS, replace=False)
        rows.append(chosen + generator.integers(0, 3, TABLE_BITS) * (COMPARED**2 - 1))
    return np.array(rows)


def _keys(signs: Bool[np.ndarray, "w 189"]) -> Int[np.ndarray, "w tables"]:
    return signs[:, _table_signs()] @ (1 << np.arange(TABLE_BITS))


class Lookalikes:
    """The clips kept so far. Takes 0.5 to 1 KB a clip, and 64 MiB."""

    def __init__(self, bits: int) -> None:
        """Clips count as alike if at most `bits` of the 189 signs differ at the best place, and they move alike."""
        self._bits, self._names = bits, list[str]()
        self._first = np.full((NUM_TABLES, 2**TABLE_BITS), -1, np.int32)  # newest clip of each key
        self._signs = np.zeros((0, 3), np.uint64)
        self._next = np.zeros((0, NUM_TABLES), np.int32)  # the clip before it with the same key
        self._cores = np.zeros((0, 3, COMPARED, COMPARED), np.float16)

    def find(self, description: str) -> str | None:
        """The name of the earliest kept clip that looks like this one; None if there is none."""
        clip = _read(description)
        spectra = _places(True).spectra(clip)
        turned = spectra * np.where(np.arange(COMPARED) % 2, -1, 1).astype(np.float32)  # mirrored
        spectra = np.concatenate([spectra, turned])
        signs = _signs(spectra)
        places, clips = self._candidates(_keys(signs))
        differing = np.bitwise_count(_packed(signs)[places] ^ self._signs[clips]).sum(1)
        near = np.flatnonzero(differing <= self._bits)
        for index in near[np.argsort(clips[near], kind="stable")]:
            if _move_alike(spectra[places[index]], self._cores[clips[index]].astype(np.float32)):
                return self._names[clips[index]]
        return None

    def keep(self, description: str, name: str) -> None:
        """Add a clip."""
        number = len(self._names)
        if number == len(self._signs):
            self._signs, self._next, self._cores = (_grown(x) for x in (self._signs, self._next, self._cores))
        core = _places(False).spectra(_read(description))
        signs = _signs(core)
        keys = _keys(signs)[0]
        tables = np.arange(NUM_TABLES)
        self._next[number], self._first[tables, keys] = self._first[tables, keys], number
        self._signs[number], self._cores[number] = _packed(signs)[0], core[0]
        self._names.append(name)

    def _candidates(self, keys: Int[np.ndarray, "w tables"]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Pairs of a place and a kept clip that share a key."""
        places, tables = (part.ravel() for part in np.mgrid[: len(keys), :NUM_TABLES])
        clips = self._first[tables, keys.ravel()]
        pairs = []
        while len(clips):
            alive = clips >= 0
            places, tables, clips = places[alive], tables[alive], clips[alive]
            pairs.append(places.astype(np.int64) << 32 | clips)
            clips = self._next[clips, tables]
        unique = np.unique(np.concatenate(pairs))
        return unique >> 32, unique & 0xFFFFFFFF


def _grown(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values, np.zeros((max(1024, len(values)), *values.shape[1:]), values.dtype)])


def _move_alike(one: Float[np.ndarray, "3 8 8"], other: Float[np.ndarray, "3 8 8"]) -> bool:
    """Whether two clips change alike over time, or one of them hardly does.

    Videos of a fixed camera have the same background, and are told apart by what moves before it.
    """
    first, second = (_change(clip) for clip in (one, other))
    energy = [float(np.sqrt((change**2).sum() / 2)) for change in (first, second)]
    if min(energy) < MOVING:
        return max(energy) < 2 * MOVING
    return float((first * second).sum()) >= SAME_MOVEMENT * 2 * energy[0] * energy[1]


def _change(clip: Float[np.ndarray, "3 8 8"]) -> Float[np.ndarray, "2 8 8"]:
    """Change from the first frame to the other two, scaled so that its norm is that of the pixels; without the mean."""
    change = clip[1:] - clip[:1]
    change[:, 0, 0] = 0
    doubled = np.where(np.arange(COMPARED) > 0, np.sqrt(2.0), 1.0)  # by Parseval's theorem
    return change * doubled[:, None] * doubled
