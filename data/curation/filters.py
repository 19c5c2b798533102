"""Filters that leave clips out on purpose; the manifest counts the clips that each one left out."""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy.fft import dctn

from data.curation.config import FilterConfig
from data.curation.ledger import Filter
from data.records import Frames

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of R, G and B (BT.601)
BAR_LUMA = 24.0  # rows and columns with a lower mean in every frame are part of a bar; video black is 16
HASH_SIDE = 8  # a frame's hash has 63 bits: its lowest 8 x 8 frequencies without the mean
HASH_PIXELS = 32  # side of the square that a frame is averaged to before it is hashed


def failed_filter(
    frames: Frames, config: FilterConfig, text_fraction: float | None = None
) -> tuple[Filter, str] | None:
    """The first filter that a clip does not pass, with the reason as a sentence; None if it passes all.

    Args:
        text_fraction: share of its picture that is text (`text_area.text_fraction`); None: not measured.
    """
    limit = config.text_fraction
    if limit is not None and text_fraction is not None and text_fraction > limit:
        return "text_heavy", f"{text_fraction:.1%} of its picture is text, more than {100 * limit:g}%"
    if config.black_luma is config.static_difference is config.letter_boxed_share is None:
        return None
    luma = frames.astype(np.float32) @ LUMA  # (t, h, w)
    if config.black_luma is not None and (brightness := float(luma.mean())) <= config.black_luma:
        return "black", f"its mean brightness is {brightness:.1f} of 255, not above {config.black_luma:g}"
    if config.static_difference is not None and len(luma) > 1:
        change = float(np.abs(np.diff(luma, axis=0)).mean())
        if change <= config.static_difference:
            return "static", f"its frames differ by {change:.2f} of 255, not more than {config.static_difference:g}"
    if config.letter_boxed_share is not None and (share := bar_share(luma)) > config.letter_boxed_share:
        return "letter_boxed", f"{share:.0%} of its picture is black bars, more than {config.letter_boxed_share:.0%}"
    return None


def bar_share(luma: Float[np.ndarray, "t h w"]) -> float:
    """Share of the picture, in [0, 1], that is in dark rows at top and bottom or dark columns at the sides."""
    shares = []
    for axes in ((0, 2), (0, 1)):
        lit = np.flatnonzero(luma.max(0, keepdims=True).mean(axes) > BAR_LUMA)
        length = luma.shape[1] if axes == (0, 2) else luma.shape[2]
        shares.append((lit[-1] - lit[0] + 1) / length if len(lit) else 0.0)
    return float(1 - shares[0] * shares[1])


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
    rows, columns = (np.linspace(0, side, HASH_PIXELS + 1) for side in luma.shape)
    shrunk = _block_means(_block_means(luma, rows).T, columns).T
    frequencies = np.asarray(dctn(shrunk, norm="ortho"))[:HASH_SIDE, :HASH_SIDE].ravel()[1:]
    return frequencies > np.median(frequencies)


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

    def find(self, value: int) -> str | None:
        """The name of a kept clip whose hash is near enough; None if there is none."""
        for (start, mask), kept in zip(self._bands, self._kept, strict=True):
            for other, name in kept.get(value >> start & mask, ()):
                if (value ^ other).bit_count() <= self._bits:
                    return name
        return None

    def keep(self, value: int, name: str) -> None:
        """Add the hash of a clip."""
        for (start, mask), kept in zip(self._bands, self._kept, strict=True):
            kept.setdefault(value >> start & mask, []).append((value, name))
