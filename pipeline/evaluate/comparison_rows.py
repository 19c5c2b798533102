"""A comparison as pages and the console show it: lines of tables, tiles, and pairs of clips."""

from pipeline.evaluate.clip_sets import ClipSet
from pipeline.evaluate.comparison import Comparison, Copies
from pipeline.evaluate.intervals import Difference, Estimate
from pipeline.report.comparison_page import FigureRow, NearestPair, Tile

MEANINGS = {
    "brightness": "mean luma, 0 to 1",
    "contrast": "deviation of the luma within a frame",
    "saturation": "mean of the largest minus the smallest of red, green and blue",
    "coloured_area": "share of coloured pixels",
    "sharpness": "difference of neighbouring pixels",
    "motion": "difference of neighbouring frames",
    "flicker": "difference of a frame from the mean of its neighbours",
    "diversity": "mean distance of two clips",
    "similarity": "cosine of the embeddings of frames and text",
}


def figure_rows(found: Comparison) -> list[FigureRow]:
    """What both sets have: statistics, diversity, similarity to the text."""
    drifts = {**found.drifts, "diversity": found.diversity}
    if found.similarity is not None:
        drifts["similarity"] = found.similarity
    return [
        FigureRow(
            name=name,
            meaning=MEANINGS[name],
            samples=str(drift.samples),
            reference=str(drift.reference),
            difference=str(drift.difference),
            is_different=_is_different(drift.difference),
        )
        for name, drift in drifts.items()
    ]


def paired_figure_rows(found: Comparison) -> list[FigureRow]:
    """The differences of clips of equal prompt and seed."""
    return [
        FigureRow(
            name, MEANINGS.get(name, "share of the clips"), "", "", _with_test(difference), difference.p_value < 0.05
        )
        for name, difference in found.paired.items()
    ]


def distance_tiles(found: Comparison) -> list[Tile]:
    """The distances, and the numbers of clips."""
    return [
        Tile(str(found.frechet_video), "Fréchet distance of clips"),
        Tile(str(found.kernel_video), "kernel distance of clips"),
        Tile(str(found.frechet_frames), "Fréchet distance of frames"),
        *(Tile(_percent(share), "show all that their prompt says") for share in (found.adherence.get("all"),) if share),
        Tile(f"{found.num_samples} / {found.num_reference}", "clips of samples / reference"),
    ]


def uncorrected(found: Comparison) -> str:
    """The distances as publications report them."""
    return (
        f"Without the correction: {found.frechet_video.value:.4g} of clips, {found.frechet_frames.value:.4g} of "
        "frames, which is what publications report."
    )


def copies_told(copies: Copies) -> str:
    """How many samples are as near to the reference as its own nearest clips are to each other."""
    return (
        f"{copies.share_below:.1%} of the samples are nearer to a clip of the reference than {copies.threshold:.3g}, "
        "which 1 % of its own clips are to each other"
    )


def nearest_pairs(
    found: Comparison, samples: ClipSet, reference: ClipSet, limit: int | None = None
) -> list[NearestPair]:
    """The samples that are most like a clip of the reference, beside it.

    Raises:
        DatasetError, OSError, VideoError: as `ClipSet.read`.
    """
    ours = {name.key: number for number, name in enumerate(samples.names)}
    theirs = {name.key: number for number, name in enumerate(reference.names)}
    return [
        NearestPair(
            samples.read(ours[pair.sample]),
            reference.read(theirs[pair.reference]),
            f"distance {pair.distance:.3g}: {samples.names[ours[pair.sample]].text}",
        )
        for pair in found.copies.nearest[:limit]
    ]


def _is_different(difference: Estimate) -> bool:
    return not difference.low <= 0 <= difference.high


def _with_test(difference: Difference) -> str:
    return f"{difference}, p = {difference.p_value:.2g}"


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"
