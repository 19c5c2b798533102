"""The share of a picture that is text (subtitles, credits, signs), by RapidOCR's detector (PP-OCRv4, in its wheel).

Text is located, not recognised. Frames are measured before they are resized, which would make small letters illegible.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from data.errors import ReelflowError
from data.video.resize import Box

DETECT_MAX_SIDE = 960  # pixels, the detector's default: larger pictures are shrunk to it, at 1080p a fifth of the work
DETECT_MIN_SIDE = 480  # pixels: smaller pictures are enlarged to it; at 64 x 64 the detector misses every letter
MIN_SCORE = 0.6  # confidence from which a line counts, PP-OCR's default
MIN_ASPECT = 1.5  # length by height from which a line counts: the detector takes a lone circle or cross for a letter
Frame = UInt8[np.ndarray, "h w 3"]


class TextDetectionError(ReelflowError, ValueError):
    """Text detection is not available; the message says what is missing."""


def check_text_detection() -> None:
    """Check that text detection is available, before a run starts.

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
    """The share of a part of a picture that is covered by text, in [0, 1].

    Args:
        box: the part. Text is detected in the whole picture, so that lines across the edge of the part are found.
    """
    return covered_fraction(find_text(frame), box)


def find_text(frame: Frame) -> list[Float[np.ndarray, "4 2"]]:
    """The corners (x, y in pixels) of a quadrilateral around each line of text; single letters are ignored."""
    found, _ = _detector()(np.ascontiguousarray(frame[..., ::-1]), use_det=True, use_cls=False, use_rec=False)
    quadrilaterals = [np.asarray(corners, np.float64) for corners in found or ()]
    return [corners for corners in quadrilaterals if _aspect(corners) >= MIN_ASPECT]


def covered_fraction(quadrilaterals: Iterable[Float[np.ndarray, "4 2"]], box: Box) -> float:
    """The share of a box that quadrilaterals cover together, in [0, 1]; overlaps count once."""
    import shapely

    part = shapely.box(*box)
    # The corners of nearly flat ones may be in an order in which the sides cross.
    hulls = [shapely.MultiPoint(corners).convex_hull for corners in quadrilaterals]
    return shapely.intersection(shapely.union_all(hulls), part).area / part.area


def _aspect(corners: Float[np.ndarray, "4 2"]) -> float:
    """The longer side divided by the shorter one, each the mean of two opposite sides."""
    sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
    across, along = sorted((sides[0] + sides[2], sides[1] + sides[3]))
    return along / max(across, 1.0)


@lru_cache(maxsize=1)
def _detector() -> Any:  # noqa: ANN401 - a class of an optional package
    """One detector per process, with one thread, because several processes run at once."""
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
