"""Scene cuts, found by PySceneDetect: no clip may reach across one.

The frames come from the same timeline that the clips are cut from, so a cut is known by its frame and
not by a time that another decoder made up.
"""

import numpy as np

from data.errors import ReelflowError
from data.video.decoders.timeline import Timeline
from data.video.resize import DETECTION_SIZE, Size, resize_and_crop


class ScenesError(ReelflowError, ValueError):
    """Scene detection cannot run here; the message says what is missing."""


def check_scene_detection() -> None:
    """Fail before a run starts, rather than on its first video.

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
    """The first frame of every scene but the first, by PySceneDetect's content detector at its default threshold.

    Args:
        shown: the size of the video, where its frames are decoded in another.
    """
    from scenedetect import ContentDetector, FrameTimecode  # pyright: ignore[reportMissingImports] - optional

    detector = ContentDetector(min_scene_len=1)
    cuts: list[int] = []
    for index, frame in enumerate(timeline.read(list(range(len(timeline.times_seconds))))):
        small = resize_and_crop(frame[None], *DETECTION_SIZE, shown=shown)[0]
        # A rate of 1 makes its time code count frames: the times on screen are the timeline's business.
        found = detector.process_frame(FrameTimecode(index, fps=1.0), np.ascontiguousarray(small[..., ::-1]))
        cuts += [cut.frame_num for cut in found]
    return sorted(set(cuts))
