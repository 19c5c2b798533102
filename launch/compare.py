"""Compare two sets of clips: sampled clips with the data, or the samples of two models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data.dataset.clip import Split
from data.files.publish import publish_text
from data.records import Record, Settings
from launch.cluster import connected
from launch.config import ClusterConfig, check_writable
from launch.overrides import ConfigError, Override, apply_override, explain
from pipeline.evaluate.clip_sets import ClipSet, ClipSetError, open_clips
from pipeline.evaluate.comparison import MIN_CLIPS, Comparison, compare
from pipeline.evaluate.intervals import Estimate
from pipeline.evaluate.measure import Measured, Networks, measure_sets
from pipeline.report.comparison_page import ComparisonPage, FigureRow, NearestPair, Tile, write_comparison_page

RESULT_NAME = "comparison.json"
CACHE_NAME = "measured"
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


class ComparingConfig(Settings):
    """The part of the configuration of a run that comparing reads."""

    cluster: ClusterConfig = ClusterConfig()
    """Where to compute, and with how many workers."""


@dataclass(frozen=True)
class Compared:
    """What is compared, and how."""

    samples: Path
    reference: Path
    output: Path
    networks: Networks
    max_clips: int
    """Of each set."""
    split: Split | None
    """Of the reference, where it is a dataset."""
    guidance_scale: float | None
    """Of sampled clips; None: they have one."""


class Source(Record):
    """A set, as the result names it."""

    folder: str
    """Names of its run and of the folder in it."""
    fingerprint: str
    num_unreadable: int


class Result(Record):
    """The contents of comparison.json."""

    samples: Source
    reference: Source
    clip_features: str
    frame_features: str
    comparison: Comparison


def compare_folders(asked: Compared, overrides: Sequence[Override]) -> Iterator[str]:
    """Measure both sets and write the figures and a page; yields lines for the console.

    Raises:
        ClipSetError: a folder holds no clips, or too few.
        ConfigError: a setting is wrong.
        FeatureError: a network cannot be used. All of these are raised before Ray starts.
        VideoError: no clip of a set can be read.
    """
    config = _read_config(overrides)
    samples, reference = _open(asked, asked.samples, None), _open(asked, asked.reference, asked.split)
    names = asked.networks.check()
    check_writable(asked.output)
    cache, workers = asked.output / CACHE_NAME, config.cluster.workers
    with connected(config.cluster):
        ours, theirs = measure_sets([samples, reference], asked.networks, cache, workers)
    for clips, measured in ((samples, ours), (reference, theirs)):
        _check_number(clips.folder, len(measured.numbers))
    found = compare(ours, samples.names, theirs, reference.names)
    result = Result(
        samples=_source(samples, ours),
        reference=_source(reference, theirs),
        clip_features=names[0],
        frame_features=names[1],
        comparison=found,
    )
    publish_text(asked.output / RESULT_NAME, result.model_dump_json(indent=2) + "\n")
    page = write_comparison_page(_page(result, samples, reference), asked.output)
    yield from _lines(result)
    yield f"wrote {asked.output / RESULT_NAME} and {page}"


def _read_config(overrides: Sequence[Override]) -> ComparingConfig:
    tree: dict = {}
    for override in overrides:
        apply_override(tree, override, ComparingConfig)
    try:
        return ComparingConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", ComparingConfig)) from error


def _open(asked: Compared, folder: Path, split: Split | None) -> ClipSet:
    clips = open_clips(folder, asked.max_clips, split, asked.guidance_scale)
    _check_number(folder, len(clips.names))
    return clips


def _check_number(folder: Path, number: int) -> None:
    if number < MIN_CLIPS:
        raise ClipSetError(f"{folder} has {number} clips that can be read, and a comparison needs at least {MIN_CLIPS}")


def _source(clips: ClipSet, measured: Measured) -> Source:
    return Source(
        folder="/".join(clips.folder.resolve().parts[-2:]),  # results are shared: no paths of the machine
        fingerprint=clips.fingerprint,
        num_unreadable=len(clips.names) - len(measured.numbers),
    )


def _lines(result: Result) -> Iterator[str]:
    found = result.comparison
    yield f"{found.num_samples} clips of {result.samples.folder}, {found.num_reference} of {result.reference.folder}"
    yield f"  Fréchet distance of clips   {found.frechet_video}  (uncorrected {found.frechet_video.value:.4g})"
    yield f"  kernel distance of clips    {found.kernel_video}"
    yield f"  Fréchet distance of frames  {found.frechet_frames}  (uncorrected {found.frechet_frames.value:.4g})"
    yield f"  features                    {result.clip_features}; {result.frame_features}"
    for row in _rows(found):
        yield f"  {row.name:27} {row.samples} beside {row.reference}{', different' if row.is_different else ''}"
    yield f"  copies                      {_copies(found)}"


def _rows(found: Comparison) -> list[FigureRow]:
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


def _is_different(difference: Estimate) -> bool:
    return not difference.low <= 0 <= difference.high


def _copies(found: Comparison) -> str:
    copies = found.copies
    return (
        f"{copies.share_below:.1%} of the samples are nearer to a clip of the reference than {copies.threshold:.3g}, "
        "which 1 % of its own clips are to each other"
    )


def _page(result: Result, samples: ClipSet, reference: ClipSet) -> ComparisonPage:
    found = result.comparison
    ours = {name.key: number for number, name in enumerate(samples.names)}
    theirs = {name.key: number for number, name in enumerate(reference.names)}
    return ComparisonPage(
        samples=result.samples.folder,
        reference=result.reference.folder,
        tiles=[
            Tile(str(found.frechet_video), "Fréchet distance of clips"),
            Tile(str(found.kernel_video), "kernel distance of clips"),
            Tile(str(found.frechet_frames), "Fréchet distance of frames"),
            Tile(f"{found.num_samples} / {found.num_reference}", "clips of samples / reference"),
        ],
        notes=[
            f"Features: {result.clip_features}; {result.frame_features}.",
            f"Without the correction: {found.frechet_video.value:.4g} of clips, {found.frechet_frames.value:.4g} of "
            "frames, which is what publications report.",
        ],
        rows=_rows(found),
        paired=[
            FigureRow(name, MEANINGS[name], "", "", str(estimate), _is_different(estimate))
            for name, estimate in found.paired.items()
        ],
        copies=_copies(found) + ".",
        pairs=[
            NearestPair(
                samples.read(ours[pair.sample]),
                reference.read(theirs[pair.reference]),
                f"distance {pair.distance:.3g}: {samples.names[ours[pair.sample]].text}",
            )
            for pair in found.copies.nearest
        ],
    )
