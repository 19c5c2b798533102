"""Filters that leave clips out on purpose; the manifest counts the clips that each one left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import gt, le, lt

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.fft import dctn

from data.curation.config import FilterConfig, Measure
from data.curation.ledger import Filter
from data.curation.measures import LUMA
from data.records import Frames

HASH_SIDE = 8  # a frame's hash has 63 bits: its lowest 8 x 8 frequencies without the mean
HASH_PIXELS = 32  # side of the square that a frame is averaged to before it is hashed


@dataclass(frozen=True)
class _Rule:
    """A threshold: which measure it is for, when a clip fails, and how that is said."""

    setting: str  # field of FilterConfig
    measure: Measure
    reason: Filter
    fails: Callable[[float, float], bool]  # from the measured value and the threshold
    sentence: Callable[[float, float], str]


RULES = (  # in the order in which they are applied
    _Rule(
        *("text_fraction", "text", "text_heavy", gt),
        lambda value, limit: f"{value:.1%} of its picture is text, more than {100 * limit:g}%",
    ),
    _Rule(
        *("black_luma", "brightness", "black", le),
        lambda value, limit: f"its mean brightness is {value:.1f} of 255, not above {limit:g}",
    ),
    _Rule(
        *("static_difference", "change", "static", le),
        lambda value, limit: f"its frames differ by {value:.2f} of 255, not more than {limit:g}",
    ),
    _Rule(
        *("letter_boxed_share", "bars", "letter_boxed", gt),
        lambda value, limit: f"{value:.0%} of its picture is black bars, more than {limit:.0%}",
    ),
    _Rule(
        *("min_motion", "motion", "too_still", lt),
        lambda value, limit: f"it moves by {value:.3g} of the shorter side a second, less than {limit:g}",
    ),
    _Rule(
        *("max_motion", "motion", "too_fast", gt),
        lambda value, limit: f"it moves by {value:.3g} of the shorter side a second, more than {limit:g}",
    ),
    _Rule(
        *("min_sharpness", "sharpness", "blurred", lt),
        lambda value, limit: f"its sharpness is {value:.3f}, less than {limit:g}",
    ),
    _Rule(
        *("max_clipped_share", "clipped", "badly_exposed", gt),
        lambda value, limit: f"{value:.1%} of its pixels are black or white, more than {100 * limit:g}%",
    ),
    _Rule(
        *("max_logo_share", "logo", "logo", gt),
        lambda value, limit: f"{value:.2%} of its picture is a mark that does not move, more than {100 * limit:g}%",
    ),
)
OF_MOVING_CLIPS = frozenset({"change", "motion"})  # measures that mean nothing for a clip of one frame


def failed_filter(
    measured: Mapping[Measure, float], config: FilterConfig, is_still: bool = False
) -> tuple[Filter, str] | None:
    """The first filter that a clip does not pass, with the reason as a sentence; None if it passes all.

    Args:
        measured: `measures.measure_clip`.
        is_still: it has one frame, so that it is not asked how it moves.
    """
    for rule in RULES:
        limit, value = getattr(config, rule.setting), measured.get(rule.measure)
        if limit is None or value is None or (is_still and rule.measure in OF_MOVING_CLIPS):
            continue
        if rule.fails(value, limit):
            return rule.reason, rule.sentence(value, limit)
    return None


def perceptual_hash(frames: Frames) -> int:
    """189 bits of a clip's first, middle and last frame: which low DCT frequencies are above their median (pHash).

    It changes little when a clip is scaled or encoded again. `imagehash.phash` is not used because shard commits store
    these bits: its bits agree in 99.1 % (all 63 of a frame in 78 % of 1602 frames of the test videos).
    """
    bits = [_frame_bits(frames[index]) for index in (0, len(frames) // 2, len(frames) - 1)]
    return int("".join("1" if bit else "0" for bit in np.concatenate(bits)), 2)


def _frame_bits(frame: UInt8[np.ndarray, "h w 3"]) -> Bool[np.ndarray, " bits"]:
    """63 bits of a frame."""
    luma = frame.astype(np.float32) @ LUMA
    frequencies = np.asarray(dctn(shrink(luma, HASH_PIXELS), norm="ortho"))[:HASH_SIDE, :HASH_SIDE].ravel()[1:]
    return frequencies > np.median(frequencies)


def shrink(values: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "side side"]:
    """A picture averaged to a square of `side` pixels."""
    rows, columns = (np.linspace(0, length, side + 1) for length in values.shape)
    return _block_means(_block_means(values, rows).T, columns).T


def _block_means(values: Float[np.ndarray, "n m"], edges: np.ndarray) -> Float[np.ndarray, "k m"]:
    """Means of the rows between fractional edges, from differences of the linearly interpolated cumulative sum."""
    integral = np.concatenate([np.zeros((1, values.shape[1]), values.dtype), np.cumsum(values, 0)])
    below = np.minimum(edges.astype(int), len(values) - 1)
    part = (edges - below)[:, None]
    at_edges = integral[below] * (1 - part) + integral[below + 1] * part
    return np.diff(at_edges, axis=0) / np.diff(edges)[:, None]


class Duplicates:
    """The hashes of the clips kept so far, with exact search for one that differs in at most `bits` bits.

    Two such hashes are equal in at least one of `bits + 1` bands (pigeonhole principle), so only hashes that share a
    band are compared.
    """

    def __init__(self, bits: int, num_bits: int = 3 * (HASH_SIDE**2 - 1)) -> None:
        self._bits = bits
        edges = [num_bits * band // (bits + 1) for band in range(bits + 2)]
        self._bands = [(start, (1 << (stop - start)) - 1) for start, stop in zip(edges, edges[1:], strict=False)]
        self._kept: list[dict[int, list[tuple[int, str]]]] = [{} for _ in self._bands]

    def find(self, digits: str) -> str | None:
        """The name of a kept clip whose hash (hexadecimal) is near enough; None if there is none."""
        value = int(digits, 16)
        for (start, mask), kept in zip(self._bands, self._kept, strict=True):
            for other, name in kept.get(value >> start & mask, ()):
                if (value ^ other).bit_count() <= self._bits:
                    return name
        return None

    def keep(self, digits: str, name: str) -> None:
        """Add the hash of a clip."""
        value = int(digits, 16)
        for (start, mask), kept in zip(self._bands, self._kept, strict=True):
            kept.setdefault(value >> start & mask, []).append((value, name))
