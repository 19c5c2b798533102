"""How much of a picture is text: subtitles, credits, signs, found by RapidOCR's detector (PP-OCRv4, in its wheel).

Only where text is matters, not what it says, so nothing is recognised. Pictures are looked at as they were
decoded: in the small clip made of them the letters could no longer be told.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data.errors import ReelflowError
from data.video.resize import Box

DETECT_MAX_SIDE = (
    960  # pixels, the detector's usual limit: larger pictures are shrunk to it, a fifth of the work at 1080p
)
DETECT_MIN_SIDE = 480  # smaller ones are enlarged: at 64 x 64 it would miss every letter
MIN_SCORE = 0.6  # how sure the detector has to be of a line: PP-OCR's own default
MIN_ASPECT = 1.5  # length by height of a line; to the detector a lone circle, cross or square is a letter
Frame = UInt8[np.ndarray, "h w 3"]


class TextDetectionError(ReelflowError, ValueError):
    """Text detection cannot run here; the message says what is missing."""


def check_text_detection() -> None:
    """Fail before a run starts, rather than on its first video.

    Raises:
        TextDetectionError: RapidOCR is not installed or cannot load ONNX Runtime or OpenCV.
    """
    try:
        import rapidocr_onnxruntime  # noqa: F401
        import shapely  # noqa: F401
    except ImportError as error:
        raise TextDetectionError(
            f"data.filters.text_fraction needs RapidOCR ({error}): pip install 'reelflow[text-filter]', or leave it out"
        ) from error


def text_fraction(frame: Frame, box: Box) -> float:
    """The share of a part of a picture that is covered by text, from 0 to 1.

    Args:
        box: the part; text is looked for in the whole picture, so that the part's edges cut no line in two unseen.
    """
    return covered_fraction(find_text(frame), box)


def find_text(frame: Frame) -> list[Float[np.ndarray, "4 2"]]:
    """The corners (right, down, in pixels) of a quadrilateral around each line of text; not around lone letters."""
    found, _ = _detector()(np.ascontiguousarray(frame[..., ::-1]), use_det=True, use_cls=False, use_rec=False)
    quadrilaterals = [np.asarray(corners, np.float64) for corners in found or ()]
    return [corners for corners in quadrilaterals if _aspect(corners) >= MIN_ASPECT]


def covered_fraction(quadrilaterals: Iterable[Float[np.ndarray, "4 2"]], box: Box) -> float:
    """The share of a box that they cover together, from 0 to 1; where they overlap counts once."""
    import shapely

    part = shapely.box(*box)
    # Of nearly flat ones the corners may come in an order that crosses itself.
    hulls = [shapely.MultiPoint(corners).convex_hull for corners in quadrilaterals]
    return shapely.intersection(shapely.union_all(hulls), part).area / part.area


def _aspect(corners: Float[np.ndarray, "4 2"]) -> float:
    """The longer side by the shorter one, each the mean of two that face each other."""
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    across, along = sorted((sides[0] + sides[2], sides[1] + sides[3]))
    return along / max(across, 1.0)


@lru_cache(maxsize=1)
def _detector() -> Any:  # noqa: ANN401 - a class of an optional package
    """One for each process, on one thread: processes work side by side."""
    import cv2
    from rapidocr_onnxruntime import RapidOCR

    cv2.setNumThreads(1)
    return RapidOCR(
        intra_op_num_threads=1,
        inter_op_num_threads=1,
        max_side_len=DETECT_MAX_SIDE,
        det_limit_type="min",
        det_limit_side_len=DETECT_MIN_SIDE,
        det_box_thresh=MIN_SCORE,
    )
