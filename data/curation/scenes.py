"""Scene cuts, found by PySceneDetect, so that no clip spans one.

The frames come from the timeline that clips are cut from, so a cut is given by the index of a frame and not by a time
that another decoder measured.
"""

import numpy as np

from data.errors import ReelflowError
from data.video.decoders.timeline import Timeline
from data.video.resize import DETECTION_SIZE, Size, reading_size, resize_and_crop


class ScenesError(ReelflowError, ValueError):
    """Scene detection is not available; the message says what is missing."""


def check_scene_detection() -> None:
    """Check that scene detection is available, before a run starts.

    Raises:
        ScenesError: PySceneDetect is not installed or cannot load OpenCV.
    """
    try:
        import scenedetect  # noqa: F401  # pyright: ignore[reportMissingImports] - optional
    except ImportError as error:
        raise ScenesError(
            f"data.scene_detection needs PySceneDetect ({error}): pip install 'reelflow[scenes]', or set it to off"
        ) from error


def find_cuts(timeline: Timeline, shown: Size | None = None) -> list[int]:
    """Indices of the first frame of each scene after the first, by PySceneDetect's content detector with its defaults.

    Args:
        shown: height and width of the video in square pixels, if its frames are decoded to another size; None: they are
            not.
    """
    from scenedetect import ContentDetector, FrameTimecode  # pyright: ignore[reportMissingImports] - optional

    detector = ContentDetector(min_scene_len=1)
    cuts: list[int] = []
    size = None if shown is None else reading_size(shown, *DETECTION_SIZE)
    for index, frame in enumerate(timeline.read(list(range(len(timeline.times_seconds))), size)):
        small = resize_and_crop(frame[None], *DETECTION_SIZE, shown=shown)[0]
        # At a rate of 1 its time codes are frame indices.
        found = detector.process_frame(FrameTimecode(index, fps=1.0), np.ascontiguousarray(small[..., ::-1]))
        cuts += [cut.frame_num for cut in found]
    return sorted(set(cuts))
