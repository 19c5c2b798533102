"""Transitions between scenes, so that no clip spans one: by PySceneDetect, or by `data/curation/transitions.py`.

The frames come from the timeline that clips are cut from, so a cut is given by the index of a frame and not by a time
that another decoder measured.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

from data.curation.config import SceneDetection
from data.curation.transitions import block_means, edge_energy, find_transitions
from data.errors import ReelflowError
from data.video.decoders.timeline import Timeline
from data.video.extract import FindCuts
from data.video.resize import DETECTION_SIZE, Size, reading_size, resize_and_crop
from data.video.spans import Transition


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
            f"data.scene_detection: content needs PySceneDetect ({error}): "
            "pip install 'reelflow[scenes]', or set it to transitions or off"
        ) from error


def find_cuts(timeline: Timeline, shown: Size | None = None) -> list[Transition]:
    """Hard cuts, by PySceneDetect's content detector with its defaults.

    Args:
        shown: height and width of the video in square pixels, if its frames are decoded to another size; None: they are
            not.
    """
    from scenedetect import ContentDetector, FrameTimecode  # pyright: ignore[reportMissingImports] - optional

    detector = ContentDetector(min_scene_len=1)
    cuts: list[int] = []
    for index, small in enumerate(_small_frames(timeline, shown)):
        # At a rate of 1 its time codes are frame indices.
        found = detector.process_frame(FrameTimecode(index, fps=1.0), np.ascontiguousarray(small[..., ::-1]))
        cuts += [cut.frame_num for cut in found]
    return [Transition(cut, cut) for cut in sorted(set(cuts))]


def find_scene_transitions(timeline: Timeline, shown: Size | None = None) -> list[Transition]:
    """Hard cuts, fades and cross-fades (`data/curation/transitions.py`); the arguments are those of `find_cuts`."""
    pictures, edges = [], []
    for frame in _small_frames(timeline, shown):
        pictures.append(block_means(frame))
        edges.append(edge_energy(frame))
    steps = np.diff(timeline.times_seconds)
    if not len(steps):
        return []
    return find_transitions(np.stack(pictures), np.array(edges), 1 / float(np.median(steps)))


def _small_frames(timeline: Timeline, shown: Size | None) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    size = None if shown is None else reading_size(shown, *DETECTION_SIZE)
    for frame in timeline.read(list(range(len(timeline.times_seconds))), size):
        yield resize_and_crop(frame[None], *DETECTION_SIZE, shown=shown)[0]


SCENE_FINDERS: dict[SceneDetection, FindCuts | None] = {
    "off": None,
    "content": find_cuts,
    "transitions": find_scene_transitions,
}
