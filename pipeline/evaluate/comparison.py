"""Two measured sets of clips, compared: distances, drifts, diversity, copies of training clips, paired differences."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist

from data.records import Record
from pipeline.evaluate.clip_sets import ClipName
from pipeline.evaluate.distances import Gaussian, fit_gaussian, frechet_distance, kernel_distance
from pipeline.evaluate.intervals import (
    Difference,
    Estimate,
    jackknife,
    paired_difference,
    paired_share_difference,
    share,
)
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.statistics import STATISTICS
from pipeline.report.figures import ATTRIBUTES

COPY_QUANTILE = 0.01
MAX_PAIRS = 12
MIN_CLIPS = 4  # of a set, and of pairs, for an interval

Features = Float[np.ndarray, "n d"]


class Drift(Record):
    """A mean over clips in both sets."""

    samples: Estimate
    reference: Estimate
    difference: Estimate
    """Of the samples minus of the reference."""


class NearestClip(Record):
    """A sample and the clip of the reference that is most like it."""

    sample: str
    reference: str
    distance: float
    """Of the features, each divided by its standard deviation in the reference."""


class Copies(Record):
    """Whether samples are copies of clips of the reference."""

    threshold: float
    """The distance below which only one of a hundred clips of the reference has another one of the reference."""
    share_below: float
    """Of the samples, how many have a clip of the reference nearer than that; about 0.01 without copying."""
    nearest: list[NearestClip]
    """The samples that are most like a clip of the reference, the nearest first."""


class Comparison(Record):
    """The result; distances are those of samples from the reference."""

    num_samples: int
    num_reference: int
    frechet_video: Estimate
    kernel_video: Estimate
    frechet_frames: Estimate
    drifts: dict[str, Drift]
    diversity: Drift
    """Mean distance of two clips of a set, in features divided by their standard deviation in the reference."""
    same_prompt_diversity: Estimate | None
    """Mean distance of two samples of one prompt; None where no prompt has two."""
    similarity: Drift | None
    """To the text, in [-1, 1]; None where it was not measured."""
    adherence: dict[str, Estimate]
    """Share of the samples of which the judge of drawn shapes found each attribute; empty where it cannot tell."""
    copies: Copies
    num_pairs: int
    """Clips of equal prompt and seed in both sets."""
    paired: dict[str, Difference]
    """Of these, the mean difference (samples minus reference) of each statistic; empty where there are too few."""


def compare(
    samples: Measured,
    sample_names: Sequence[ClipName],
    reference: Measured,
    reference_names: Sequence[ClipName],
) -> Comparison:
    """Compare sampled clips, or any others, with a reference.

    Args:
        sample_names: of the whole set, of which `samples.numbers` were measured.

    Raises:
        ValueError: a set has fewer than 4 clips.
    """
    scale = feature_scale(reference)
    ours, theirs = samples.features / scale, reference.features / scale
    our_names = [sample_names[number] for number in samples.numbers]
    their_names = [reference_names[number] for number in reference.numbers]
    is_similarity_known = bool(np.isfinite(samples.similarity).all() and np.isfinite(reference.similarity).all())
    first, second = paired_rows([name.pair for name in our_names], [name.pair for name in their_names])
    return Comparison(
        num_samples=len(ours),
        num_reference=len(theirs),
        frechet_video=jackknife(
            frechet_distance, samples.features, reference.features, summarize=fit_gaussian, is_squared=True
        ),
        kernel_video=jackknife(kernel_distance, samples.features, reference.features),
        frechet_frames=jackknife(
            frechet_distance,
            samples.frame_features,
            reference.frame_features,
            summarize=_fit_frames,
            is_squared=True,
        ),
        drifts={
            name: _drift(_mean, samples.statistics[:, column], reference.statistics[:, column])
            for column, name in enumerate(STATISTICS)
        },
        diversity=_diversity(ours, theirs),
        same_prompt_diversity=_same_prompt_diversity(ours, [name.text for name in our_names]),
        similarity=_drift(_mean, samples.similarity, reference.similarity) if is_similarity_known else None,
        adherence=_adherence(samples),
        copies=find_copies(ours, [name.key for name in our_names], theirs, [name.key for name in their_names]),
        num_pairs=len(first),
        paired=_paired(samples, reference, first, second, has_similarity=is_similarity_known),
    )


def feature_scale(reference: Measured) -> Float[np.ndarray, " d"]:
    """What features are divided by for distances of clips: their standard deviation in the reference."""
    deviations = reference.features.std(0)
    return np.where(deviations > 0, deviations, 1)


def _adherence(samples: Measured) -> dict[str, Estimate]:
    judged = samples.right[~np.isnan(samples.right).any(1)]
    return {name: share(judged[:, column]) for column, name in enumerate(ATTRIBUTES)} if len(judged) else {}


def _fit_frames(features: Float[np.ndarray, "n f d"]) -> Gaussian:
    return fit_gaussian(rearrange(features, "n f d -> (n f) d"))


def _mean(values: Float[np.ndarray, " n"]) -> float:
    return float(values.mean())


def _drift(statistic: Callable[[np.ndarray], float], samples: np.ndarray, reference: np.ndarray) -> Drift:
    return Drift(
        samples=jackknife(statistic, samples),
        reference=jackknife(statistic, reference),
        difference=jackknife(lambda one, other: statistic(one) - statistic(other), samples, reference),
    )


def mean_pair_distance(distances: Float[np.ndarray, "n n"]) -> float:
    """The mean distance of two different clips, of the distances of every pair."""
    number = len(distances)
    return float(distances.sum() / (number * (number - 1)))


def _diversity(samples: Features, reference: Features) -> Drift:
    """`mean_pair_distance` of both sets; the jackknife leaves out rows of distances that are computed once."""
    ours, theirs = cdist(samples, samples), cdist(reference, reference)

    def mean(rows: Int[np.ndarray, " k"], distances: Float[np.ndarray, "n n"]) -> float:
        return mean_pair_distance(distances[np.ix_(rows, rows)])

    our_rows, their_rows = np.arange(len(ours)), np.arange(len(theirs))
    return Drift(
        samples=jackknife(lambda rows: mean(rows, ours), our_rows),
        reference=jackknife(lambda rows: mean(rows, theirs), their_rows),
        difference=jackknife(lambda one, other: mean(one, ours) - mean(other, theirs), our_rows, their_rows),
    )


def _same_prompt_diversity(features: Features, texts: Sequence[str]) -> Estimate | None:
    """The mean over prompts of the mean distance of two of its samples."""
    rows: dict[str, list[int]] = {}
    for row, text in enumerate(texts):
        rows.setdefault(text, []).append(row)
    means = [mean_pair_distance(cdist(features[same], features[same])) for same in rows.values() if len(same) > 1]
    return jackknife(_mean, np.array(means)) if len(means) >= MIN_CLIPS else None


def find_copies(
    samples: Features, sample_keys: Sequence[str], reference: Features, reference_keys: Sequence[str]
) -> Copies:
    """The nearest clip of the reference to each sample, beside the nearest other one to each clip of the reference."""
    own = cdist(reference, reference)
    np.fill_diagonal(own, np.inf)
    threshold = float(np.quantile(own.min(1), COPY_QUANTILE))
    between = cdist(samples, reference)
    nearest, distances = between.argmin(1), between.min(1)
    order = np.argsort(distances, kind="stable")[:MAX_PAIRS]
    return Copies(
        threshold=threshold,
        share_below=float((distances < threshold).mean()),
        nearest=[
            NearestClip(
                sample=sample_keys[row], reference=reference_keys[int(nearest[row])], distance=float(distances[row])
            )
            for row in map(int, order)
        ],
    )


def paired_rows(one: Sequence[str], other: Sequence[str]) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"]]:
    """The rows of both sets that belong together: of equal, non-empty names that neither set has twice."""

    def unique(names: Sequence[str]) -> dict[str, int]:
        rows = {name: row for row, name in enumerate(names)}
        counts = Counter(names)
        return {name: row for name, row in rows.items() if name and counts[name] == 1}

    first, second = unique(one), unique(other)
    common = [name for name in first if name in second]
    return np.array([first[name] for name in common], int), np.array([second[name] for name in common], int)


def _paired(
    samples: Measured,
    reference: Measured,
    first: Int[np.ndarray, " k"],
    second: Int[np.ndarray, " k"],
    *,
    has_similarity: bool,
) -> dict[str, Difference]:
    if len(first) < MIN_CLIPS:
        return {}
    differences = samples.statistics[first] - reference.statistics[second]
    found = {name: paired_difference(differences[:, column]) for column, name in enumerate(STATISTICS)}
    if has_similarity:
        found["similarity"] = paired_difference(samples.similarity[first] - reference.similarity[second])
    ours, theirs = samples.right[first], reference.right[second]
    is_judged = ~np.isnan(ours + theirs).any(1)
    if is_judged.sum() >= MIN_CLIPS:
        for column, name in enumerate(ATTRIBUTES):
            found[f"right in {name}"] = paired_share_difference(ours[is_judged, column], theirs[is_judged, column])
    return found
