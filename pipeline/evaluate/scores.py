"""What was measured of single clips, as galleries and scores.jsonl have it."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from data.records import Record
from pipeline.evaluate.clip_sets import ClipName, SampledClips
from pipeline.evaluate.comparison import feature_scale
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.statistics import STATISTICS
from pipeline.report.figures import ATTRIBUTES, GalleryClip


class ClipScores(Record):
    """What was measured of one clip."""

    clip: str
    """File of a sampled clip, or key of a dataset's."""
    right: bool | None
    """Whether it shows all that its text says; None where that is not known."""
    scores: dict[str, float]


def clip_scores(
    measured: Measured, names: Sequence[ClipName], reference: Measured | None = None
) -> dict[str, ClipScores]:
    """The scores of each clip of a set that was measured, by file or key.

    Args:
        reference: another set, to whose nearest clip the distance is given as `nearest`.
    """
    columns = {name: measured.statistics[:, column] for column, name in enumerate(STATISTICS)}
    columns["similarity"] = measured.similarity
    if reference is not None:
        scale = feature_scale(reference)
        columns["nearest"] = cdist(measured.features / scale, reference.features / scale).min(1)
    found = {}
    for row, number in enumerate(measured.numbers):
        right, key = measured.right[row, ATTRIBUTES.index("all")], names[number].key
        scores = {name: float(values[row]) for name, values in columns.items() if np.isfinite(values[row])}
        found[key] = ClipScores(clip=key, right=None if np.isnan(right) else bool(right), scores=scores)
    return found


def shown_clips(clips: SampledClips, scores: Mapping[str, ClipScores]) -> list[GalleryClip]:
    """The clips as a gallery shows them; those that could not be measured have no scores."""
    found = []
    for clip in clips.clips:
        known = scores.get(clip.file)
        found.append(clip.shown() if known is None else clip.shown(known.right, known.scores))
    return found
