"""Cuts, fades through one colour and cross-fades between scenes, told apart from flashes, fast pans and zooms.

Each frame is averaged to 12 x 16 blocks of RGB, so that small motion changes little. Then:

- A *cut* is a change from one frame to the next that is large, and several times that of the frames around it; a fast
  pan changes all its frames alike. If the picture soon is what it was before, it was a flash.
- A *fade* leads through frames without contrast.
- A *cross-fade* of two scenes A and B shows (1 - s) A + s B with s rising from 0 to 1. So the frames between are
  explained by the ones at both ends, which differ in structure, and have less contrast, since two unrelated pictures
  level out. The frames of a pan or a zoom do not: what comes into the picture is in neither, at full contrast.
- Where a scene moves fast, its frames at the end say nothing about those between. But its edges are as strong in one
  frame as in the next, and fine edges of two scenes are uncorrelated, so that the mean square of the gradient of a
  mixture is (1 - s)^2 times A's plus s^2 times B's: it falls to half and rises again, along a parabola that motion does
  not change (Lienhart 1999, https://doi.org/10.1117/12.333848, of the contrast of edges).

The thresholds were chosen on drawn edits (`benchmarks/curation.py`), with other seeds and other footage than those it
judges by.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from data.video.spans import Transition

BLOCKS = (12, 16)  # rows and columns that a frame is averaged to
CUT_CHANGE = 12.0  # of 255: least mean change of a cut
CUT_RATIO = 2.6  # by which it exceeds the changes around it
CUT_SECONDS = 0.4  # on both sides
FLASH_SECONDS = 0.5  # longest flash
FLASH_RETURN = 0.5  # after a flash the picture differs by less than this share of the change that began it
SAME_STRUCTURE = 0.9  # correlation from which two frames show the same under another light
SAME_AFTER_FLASH = 0.7  # correlation of the frames before and after a flash so bright that it shows nothing
FLAT_CONTRAST = 5.0  # of 255: standard deviation below which a frame shows nothing
FADE_SECONDS = 2.5  # longest part of a fade before or after the flat frames
DISSOLVE_SECONDS = (0.4, 0.55, 0.75, 1.0, 1.4, 2.0, 2.7)  # lengths that are tried
DISSOLVE_CHANGE = 10.0  # of 255: least root mean square difference of its ends
DISSOLVE_CORRELATION = 0.6  # of the structure of its ends, at most
DISSOLVE_RESIDUAL = 0.25  # largest share of the contrast of a frame between that the ends do not explain
DISSOLVE_SHARE = 0.25  # how far the share of the new scene may be from that of a cross-fade at constant speed
DISSOLVE_DIP = 0.8  # contrast (variance) in the middle, by the mean of the ends', at most; a pan keeps it
EDGE_SECONDS = 0.25  # before and after a cross-fade, in which the edges of one scene alone are measured
EDGE_DEVIATION = 0.2  # of the edges from the parabola: largest root mean square of the logarithm of the ratio
ALONE = 0.05  # share of the other scene up to which a frame counts as of one alone
CHUNK = 1024  # frames that are compared at a time

Pictures = Float[np.ndarray, "t d"]


def block_means(frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, " d"]:
    """A frame averaged to `BLOCKS`."""
    rows, columns = BLOCKS
    height, width, _ = frame.shape
    tops, lefts = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    sums = np.add.reduceat(np.add.reduceat(frame, tops, 0, np.uint32), lefts, 1)
    areas = np.diff(tops, append=height)[:, None] * np.diff(lefts, append=width)[None]
    return (sums / areas[..., None]).round().astype(np.uint8).ravel()


def edge_energy(frame: UInt8[np.ndarray, "h w 3"]) -> float:
    """Mean square difference of neighbouring pixels, down plus across, of the mean of R, G and B."""
    grey = frame.astype(np.float32) @ np.full(3, 1 / 3, np.float32)
    down, across = np.diff(grey, axis=0).ravel(), np.diff(grey, axis=1).ravel()
    return float(down @ down / max(1, down.size) + across @ across / max(1, across.size))


@dataclass(frozen=True)
class _Film:
    """The pictures of a video, its edges, and what is often asked about them."""

    pictures: Pictures
    edges: Float[np.ndarray, " t"]
    fps: float

    def frames(self, seconds: float) -> int:
        """A duration in frames, at least one."""
        return max(1, round(seconds * self.fps))


def find_transitions(
    pictures: UInt8[np.ndarray, "t d"], edges: Float[np.ndarray, " t"], fps: float
) -> list[Transition]:
    """The transitions of a video, in order; those that overlap are one.

    Args:
        pictures: `block_means` of every frame.
        edges: `edge_energy` of every frame.
        fps: frames per second.
    """
    if len(pictures) < 3:
        return []
    film = _Film(pictures.astype(np.float32), edges.astype(np.float32), fps)
    cuts = [Transition(cut, cut) for cut in _cuts(film)]
    found = [*_fades(film), *_dissolves(film), *_dissolves_by_edges(film), *cuts]
    return merged(found)


def merged(transitions: list[Transition]) -> list[Transition]:
    """Transitions in order; those that overlap or touch become one."""
    result: list[Transition] = []
    for item in sorted(transitions, key=lambda item: (item.start, item.end)):
        if result and item.start <= result[-1].end:
            result[-1] = Transition(result[-1].start, max(result[-1].end, item.end))
        else:
            result.append(item)
    return result


def _cuts(film: _Film) -> list[int]:
    """The first frame after each hard cut."""
    pictures = film.pictures
    change = np.abs(np.diff(pictures, axis=0)).mean(1)  # of frame i + 1 against frame i
    around, longest = film.frames(CUT_SECONDS), film.frames(FLASH_SECONDS)
    cuts = []
    for at in np.flatnonzero(change >= CUT_CHANGE):
        near = np.concatenate([change[max(0, at - around) : at], change[at + 1 : at + 1 + around]])
        usual = np.sort(near)[len(near) * 3 // 4] if len(near) else 0.0
        if change[at] < CUT_RATIO * usual or _correlation(pictures[at], pictures[at + 1]) > SAME_STRUCTURE:
            continue
        if not _is_flash(pictures, int(at), longest, float(change[at])):
            cuts.append(int(at) + 1)
    return cuts


def _is_flash(pictures: Pictures, at: int, longest: int, change: float) -> bool:
    """Whether the change after frame `at` begins or ends a flash: the picture soon is, or just was, the same."""
    after = pictures[at + 2 : at + 2 + longest]  # against the frame before the change
    before = pictures[max(0, at - longest) : at]  # against the frame after it
    for others, one in ((after, pictures[at]), (before, pictures[at + 1])):
        if len(others) and np.abs(others - one).mean(1).min() < FLASH_RETURN * change:
            return True
    return False


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / max(float(np.sqrt((one**2).sum() * (other**2).sum())), 1e-6))


def _fades(film: _Film) -> list[Transition]:
    """Runs of frames without contrast, with the frames that lead there and back."""
    contrast = _contrast(film.pictures)
    reach = film.frames(FADE_SECONDS)
    fades = []
    for start, end in _runs(contrast < FLAT_CONTRAST):
        first, last = start, end
        while first > 0 and start - first < reach and contrast[first - 1] > contrast[first] + 0.3:
            first -= 1
        while last < len(contrast) and last - end < reach and contrast[last] > contrast[last - 1] + 0.3:
            last += 1
        is_flash = (
            first > 0
            and last < len(contrast)
            and last - first <= film.frames(FLASH_SECONDS)
            and _correlation(film.pictures[first - 1], film.pictures[last]) > SAME_AFTER_FLASH
        )
        if (first, last) != (0, len(contrast)) and not is_flash:
            fades.append(Transition(first, last))
    return fades


def _contrast(pictures: Pictures) -> Float[np.ndarray, " t"]:
    """Standard deviation over the blocks, as the root mean square of the three channels: 0 of any one colour."""
    return np.sqrt(pictures.reshape(len(pictures), pictures.shape[1] // 3, 3).var(1).mean(1))


def _runs(mask: Bool[np.ndarray, " t"]) -> list[tuple[int, int]]:
    """Start and end of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _dissolves(film: _Film) -> list[Transition]:
    """Windows whose frames are explained as cross-fades of their first and their last frame."""
    found = []
    for seconds in DISSOLVE_SECONDS:
        quarter = round(seconds * film.fps / 4)
        if quarter < 1 or 4 * quarter >= len(film.pictures):
            continue
        for begin in range(0, len(film.pictures) - 4 * quarter, CHUNK):
            part = film.pictures[begin : begin + CHUNK + 4 * quarter]
            starts = np.flatnonzero(_are_dissolves(part, quarter)) + begin
            found += [Transition(int(start) + 1, int(start) + 4 * quarter) for start in starts]
    return [_trimmed(film.pictures, transition) for transition in merged(found)]


def _dissolves_by_edges(film: _Film) -> list[Transition]:
    """Windows in which the strength of edges follows the parabola of a cross-fade; of those that overlap, the best."""
    found: list[tuple[float, int, int]] = []  # deviation, start, end
    around = film.frames(EDGE_SECONDS)
    for seconds in DISSOLVE_SECONDS:
        length = film.frames(seconds)
        if length < 4:
            continue
        for begin in range(around, len(film.edges) - length - around + 1, CHUNK):
            starts = np.arange(begin, min(begin + CHUNK, len(film.edges) - length - around + 1))
            deviation = _deviation_of_edges(film.edges, starts, length, around)
            starts, deviation = starts[deviation <= EDGE_DEVIATION], deviation[deviation <= EDGE_DEVIATION]
            differ = _are_other_scenes(film.pictures[starts - 1], film.pictures[starts + length])
            found += [
                (float(value), int(start), int(start) + length)
                for value, start in zip(deviation[differ], starts[differ], strict=True)
            ]
    chosen: list[Transition] = []
    for _, start, end in sorted(found):
        if all(end <= other.start or start >= other.end for other in chosen):
            chosen.append(Transition(start, end))
    return chosen


def _deviation_of_edges(
    edges: Float[np.ndarray, " t"], starts: Int[np.ndarray, " n"], length: int, around: int
) -> Float[np.ndarray, " n"]:
    """How far the edges of the windows that begin at `starts` are from those of a cross-fade: 0 is exact."""
    share = (np.arange(length) + 1) / (length + 1)  # of the new scene
    medians = np.median(sliding_window_view(edges, around), axis=1)
    before, after = medians[starts - around, None], medians[starts + length, None]
    expected = before * (1 - share) ** 2 + after * share**2
    ratio = (sliding_window_view(edges, length)[starts] + 1e-3) / (expected + 1e-3)
    return np.sqrt((np.log(ratio) ** 2).mean(1))


def _are_other_scenes(one: Pictures, other: Pictures) -> Bool[np.ndarray, " t"]:
    """Whether two frames show something, and not the same: in levels and in structure."""
    difference = np.sqrt(((one - other) ** 2).mean(1))
    contrast = np.minimum(_contrast(one), _contrast(other))
    one, other = one - one.mean(1, keepdims=True), other - other.mean(1, keepdims=True)
    aa, bb, ab = (np.einsum("td,td->t", x, y) for x, y in ((one, one), (other, other), (one, other)))
    correlation = ab / np.sqrt(np.maximum(aa * bb, 1e-6))
    good: np.ndarray = (difference >= DISSOLVE_CHANGE) & (correlation <= DISSOLVE_CORRELATION)
    return good & (contrast > FLAT_CONTRAST)


def _trimmed(pictures: Pictures, transition: Transition) -> Transition:
    """A cross-fade without the frames at both ends that show one scene alone, which long windows include."""
    start, end = transition.start, transition.end
    old, new = pictures[start - 1], pictures[end]
    difference = new - old
    share = (pictures[start:end] - old) @ difference / max(float(difference @ difference), 1e-6)  # of the new scene
    mixed = np.flatnonzero((share > ALONE) & (share < 1 - ALONE))
    return Transition(start + int(mixed[0]), start + int(mixed[-1]) + 1) if len(mixed) else transition


def _are_dissolves(pictures: Pictures, quarter: int) -> Bool[np.ndarray, " t"]:
    """Whether a cross-fade leads from each frame to the one four quarters later."""
    centred = pictures - pictures.mean(1, keepdims=True)
    first, last = centred[: -4 * quarter], centred[4 * quarter :]
    aa, bb, ab = (np.einsum("td,td->t", x, y) for x, y in ((first, first), (last, last), (first, last)))
    difference = np.sqrt(((pictures[4 * quarter :] - pictures[: -4 * quarter]) ** 2).mean(1))
    correlation = ab / np.sqrt(np.maximum(aa * bb, 1e-6))
    good: np.ndarray = (difference >= DISSOLVE_CHANGE) & (correlation <= DISSOLVE_CORRELATION)
    good &= np.minimum(aa, bb) > pictures.shape[1] * FLAT_CONTRAST**2  # otherwise it is a fade
    for step in (1, 2, 3):
        middle = centred[step * quarter : step * quarter + len(first)]
        # Least squares: the frame between is a first + b last, both weights free.
        am, bm = np.einsum("td,td->t", first, middle), np.einsum("td,td->t", last, middle)
        mm = np.einsum("td,td->t", middle, middle)
        determinant = np.maximum(aa * bb - ab**2, 1e-6)
        a, b = (am * bb - bm * ab) / determinant, (bm * aa - am * ab) / determinant
        residual = 1 - (a * am + b * bm) / np.maximum(mm, 1e-6)
        good &= residual <= DISSOLVE_RESIDUAL
        if step == 2:
            good &= mm <= DISSOLVE_DIP * (aa + bb) / 2
        good &= (abs(b - step / 4) <= DISSOLVE_SHARE) & (abs(a + b - 1) <= DISSOLVE_SHARE)
    return good
