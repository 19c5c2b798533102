"""What is measured of a clip, such as motion, sharpness and exposure. Filters compare these numbers with thresholds.

All are measured on the frames that are stored, so in the shape of the bucket.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter, uniform_filter1d

from data.curation.config import FilterConfig, Measure
from data.errors import ReelflowError
from data.records import Frames

ALWAYS_MEASURED: frozenset[Measure] = frozenset({"brightness", "change", "bars", "sharpness", "clipped"})
"""What takes about a hundredth of the time that a clip takes. Text, motion and logos are measured where they are asked
for."""
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # weights of R, G and B (BT.601)
BAR_LUMA = 24.0  # rows and columns with a lower mean in every frame are part of a bar; video black is 16
CLIPPED = 4.0  # of 255: so near to black or to white, no detail is left
BLUR_TAPS = 9  # of the blur that pictures are compared with, as Crete et al. 2007
LOGO_GRADIENT = 6.0  # of 255 a pixel: weakest edge of a logo
LOGO_DEVIATION = 0.5  # from the median over time, by which a logo's gradient varies at most, as a share of it
LOGO_MOVING = 0.6  # share of the edges of the picture that must not be steady: otherwise the camera stands still
LOGO_SPREAD = 2.0  # pixels by which steady edges are widened to the area of the logo


class MotionError(ReelflowError, ValueError):
    """Motion cannot be measured; the message says what is missing."""


def check_motion() -> None:
    """Check that motion can be measured, before a run starts.

    Raises:
        MotionError: OpenCV is not installed or cannot be loaded.
    """
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise MotionError(
            f"filters on motion need OpenCV ({error}): pip install 'reelflow[motion]', or leave min_motion, max_motion "
            "and motion in data.filters.measures out"
        ) from error


def measure_clip(frames: Frames, fps: float, config: FilterConfig, text: float | None) -> dict[Measure, float]:
    """Everything about a clip that the filters need, or that is to be recorded, and what is cheap in any case.

    So a filter that is turned on later need not decode the videos again (`ALWAYS_MEASURED`).

    Args:
        text: share of its picture that is text (`text_area.text_fraction`); None: not measured.
    """
    found: dict[Measure, float] = {} if text is None else {"text": text}
    if config.needs("motion"):
        found["motion"] = motion(frames, fps)
    of_luma: dict[Measure, Callable[[np.ndarray], float]] = {
        "brightness": lambda luma: float(luma.mean()),
        "change": mean_change,
        "bars": bar_share,
        "sharpness": sharpness,
        "clipped": clipped_share,
        "logo": logo_share,
    }
    luma = frames.astype(np.float32) @ LUMA  # (t, h, w)
    found.update(
        (name, measure(luma)) for name, measure in of_luma.items() if name in ALWAYS_MEASURED or config.needs(name)
    )
    return found


def mean_change(luma: Float[np.ndarray, "t h w"]) -> float:
    """Mean difference of consecutive frames, from 0 to 255; 0 for one frame."""
    if len(luma) < 2:
        return 0.0
    change = np.diff(luma, axis=0)
    return float(np.abs(change, out=change).mean())


def bar_share(luma: Float[np.ndarray, "t h w"]) -> float:
    """Share of the picture, in [0, 1], that is in dark rows at top and bottom or dark columns at the sides."""
    shares = []
    for axes in ((0, 2), (0, 1)):
        lit = np.flatnonzero(luma.max(0, keepdims=True).mean(axes) > BAR_LUMA)
        length = luma.shape[1] if axes == (0, 2) else luma.shape[2]
        shares.append((lit[-1] - lit[0] + 1) / length if len(lit) else 0.0)
    return float(1 - shares[0] * shares[1])


def motion(frames: Frames, fps: float) -> float:
    """Mean speed of the pixels in shorter sides of the picture a second, by optical flow (DIS: Kroeger et al. 2016).

    The median over the steps between frames, so that a cut or a flash does not decide. 0 for one frame.
    """
    if len(frames) < 2:
        return 0.0
    import cv2

    cv2.setNumThreads(1)
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    speeds = []
    for before, after in zip(grey, grey[1:], strict=False):
        moved: np.ndarray = flow.calc(before, after, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
        speeds.append(float(np.hypot(moved[..., 0], moved[..., 1]).mean()))
    return float(np.median(speeds)) * fps / min(frames.shape[1:3])


def sharpness(luma: Float[np.ndarray, "t h w"]) -> float:
    """How much blurring takes from the edges, from 0 (nothing: the picture is blurred) to 1.

    One minus the blur of Crete et al. 2007, equation 9. It does not depend on contrast. The median over the first,
    middle and last frame, of the less sharp direction.
    """
    values = []
    for frame in luma[[0, len(luma) // 2, -1]]:
        lost = []
        for axis in (0, 1):
            edges = np.abs(np.diff(frame, axis=axis))
            blurred = np.abs(np.diff(uniform_filter1d(frame, BLUR_TAPS, axis), axis=axis))
            total = float(edges.sum())
            lost.append(float(np.maximum(edges - blurred, 0).sum()) / total if total > 0 else 0.0)
        values.append(min(lost))
    return float(np.median(values))


def clipped_share(luma: Float[np.ndarray, "t h w"]) -> float:
    """Share of the pixels that are black or white without detail, in [0, 1]: under- or overexposed."""
    return (np.count_nonzero(luma <= CLIPPED) + np.count_nonzero(luma >= 255 - CLIPPED)) / luma.size


def logo_share(luma: Float[np.ndarray, "t h w"]) -> float:
    """Share of the picture, in [0, 1], whose edges stay in place while the rest moves: a logo, watermark or frame.

    Of a mark, also a translucent one, the median over time of the gradient is an edge; of what moves it is near zero
    (Dekel et al. 2017). 0 where most of the picture stands still, because then a mark cannot be told from it.
    """
    if len(luma) < 3:
        return 0.0
    gradient = np.stack([np.gradient(luma, axis=axis) for axis in (1, 2)])  # (2 t h w)
    mark = np.median(gradient, 1, keepdims=True)
    strength = np.hypot(*mark[:, 0])
    usual = np.median(np.hypot(*gradient), 0)
    deviation = np.hypot(*(gradient - mark)).mean(0)
    is_edge = usual >= LOGO_GRADIENT
    is_mark = (strength >= LOGO_GRADIENT) & (deviation <= LOGO_DEVIATION * strength)
    if not is_edge.any() or is_mark.sum() > (1 - LOGO_MOVING) * is_edge.sum():
        return 0.0
    # Single pixels are chance: an edge that moves along itself. A mark has many side by side.
    dense = gaussian_filter(is_mark.astype(np.float32), LOGO_SPREAD) > 0.25
    return float(dense.mean())
