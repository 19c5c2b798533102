"""Compare two sets of clips: sampled clips with the data, or the samples of two models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue, ValidationError

from data.dataset.clip import Split
from data.errors import shorten
from data.files.publish import publish_text
from data.records import Record, Settings
from launch.cluster import connected
from launch.config import ClusterConfig
from launch.outputs import Output
from launch.overrides import ConfigError, Override, apply_override, explain
from launch.plain_yaml import YamlError, read_plain_yaml
from pipeline.evaluate.clip_sets import ClipSet, ClipSetError, SampledClips, open_clips, values_of
from pipeline.evaluate.comparison import MIN_CLIPS, Comparison, compare
from pipeline.evaluate.comparison_rows import (
    copies_told,
    distance_tiles,
    figure_rows,
    nearest_pairs,
    paired_figure_rows,
    uncorrected,
)
from pipeline.evaluate.measure import Measured, Networks, measure_sets
from pipeline.evaluate.scores import ClipScores, clip_scores, shown_clips
from pipeline.report.comparison_page import ComparisonPage, write_comparison_page
from pipeline.report.gallery import GallerySide, write_comparison, write_gallery
from pipeline.sample.outputs import SAMPLES_NAME

RESULT_NAME, SCORES_NAME, GALLERY_NAME = "comparison.json", "scores.jsonl", "gallery.html"
CACHE_NAME = "measured"


class ComparingConfig(Settings):
    """The part of the configuration of a run that comparing reads."""

    cluster: ClusterConfig = ClusterConfig()
    """Where to compute, and with how many workers."""


@dataclass(frozen=True)
class Compared:
    """What is compared, and how."""

    samples: Path
    reference: Path
    output: Path | str
    """A folder, or the URI of one in a store."""
    networks: Networks
    max_clips: int
    """Of each set."""
    split: Split | None
    """Of the reference, where it is a dataset."""
    where: Mapping[str, JsonValue] = field(default_factory=dict)
    """Settings of the samples to take of their folder."""
    reference_where: Mapping[str, JsonValue] = field(default_factory=dict)
    """Likewise of the reference."""


class Source(Record):
    """A set, as the result names it."""

    folder: str
    """Names of its run and of the folder in it."""
    fingerprint: str
    num_unreadable: int
    settings: dict[str, list[JsonValue]]
    """Of sampled clips: the values that they have of each setting; of a dataset none."""


class Result(Record):
    """The contents of comparison.json."""

    samples: Source
    reference: Source
    max_clips: int
    split: Split | None
    networks: str
    """Fingerprint of the networks that clips are measured with."""
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
    samples = _open(asked, asked.samples.resolve(), None, asked.where)
    reference = _open(asked, asked.reference.resolve(), asked.split, asked.reference_where)
    names, to = asked.networks.check(), Output.of(asked.output, config.cluster)
    with to.kept(config):
        output, workers = to.folder, config.cluster.workers
        with connected(config.cluster), to.shared(config.cluster, (samples.folder, reference.folder)) as files:
            ours, theirs = measure_sets([samples, reference], asked.networks, output / CACHE_NAME, workers, files)
        for clips, measured in ((samples, ours), (reference, theirs)):
            _check_number(clips.folder, len(measured.numbers))
        found = compare(ours, samples.names, theirs, reference.names)
        result = Result(
            samples=_source(samples, ours),
            reference=_source(reference, theirs),
            max_clips=asked.max_clips,
            split=asked.split,
            networks=asked.networks.fingerprint(),
            clip_features=names[0],
            frame_features=names[1],
            comparison=found,
        )
        publish_text(output / RESULT_NAME, result.model_dump_json(indent=2) + "\n")
        scores = clip_scores(ours, samples.names, theirs)
        publish_text(output / SCORES_NAME, "".join(f"{each.model_dump_json()}\n" for each in scores.values()))
        page = write_comparison_page(_page(result, samples, reference), output)
        yield from _lines(result)
        yield f"wrote {output / RESULT_NAME}, {output / SCORES_NAME} and {page}"
        if isinstance(samples, SampledClips):
            yield _write_gallery(
                output / GALLERY_NAME, samples, scores, reference, clip_scores(theirs, reference.names)
            )
    if to.place is not None:
        yield f"stored in {to}"


def read_where(folder: Path, given: Sequence[str], guidance_scale: float | None) -> dict[str, JsonValue]:
    """The settings of the clips to take of a folder, of options SETTING=VALUE.

    Args:
        guidance_scale: of sampled clips; a dataset has none.

    Raises:
        ConfigError: an option is not of that form.
    """
    found: dict[str, JsonValue] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ConfigError(f"--where {shorten(text)}: write SETTING=VALUE, for example --where steps=8")
        try:
            found[name.removeprefix("sample.")] = read_plain_yaml(value, whole=True)
        except YamlError as error:
            raise ConfigError(f"--where {shorten(text)}: {error}") from error
    if guidance_scale is not None and (folder / SAMPLES_NAME).is_file():
        found["guidance_scale"] = guidance_scale
    return found


def _write_gallery(
    page: Path,
    samples: SampledClips,
    scores: Mapping[str, ClipScores],
    reference: ClipSet,
    reference_scores: Mapping[str, ClipScores],
) -> str:
    """A page of the samples with their scores, beside clips of equal prompt and seed if the reference has any."""
    side = GallerySide(samples.folder, shown_clips(samples, scores))
    if isinstance(reference, SampledClips):
        other = GallerySide(reference.folder, shown_clips(reference, reference_scores))
        if number := write_comparison(page, side, other, match_settings=False):
            return f"wrote {page}: {number} pairs"
    return f"wrote {page}: {write_gallery(samples.folder, side.clips, page)} clips"


def _read_config(overrides: Sequence[Override]) -> ComparingConfig:
    tree: dict = {}
    for override in overrides:
        apply_override(tree, override, ComparingConfig)
    try:
        return ComparingConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", ComparingConfig)) from error


def _open(asked: Compared, folder: Path, split: Split | None, where: Mapping[str, JsonValue]) -> ClipSet:
    clips = open_clips(folder, asked.max_clips, split, where)
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
        settings=values_of(clips.clips) if isinstance(clips, SampledClips) else {},
    )


def _lines(result: Result) -> Iterator[str]:
    found = result.comparison
    yield f"{found.num_samples} clips of {result.samples.folder}, {found.num_reference} of {result.reference.folder}"
    yield f"  Fréchet distance of clips   {found.frechet_video}  (uncorrected {found.frechet_video.value:.4g})"
    yield f"  kernel distance of clips    {found.kernel_video}"
    yield f"  Fréchet distance of frames  {found.frechet_frames}  (uncorrected {found.frechet_frames.value:.4g})"
    yield f"  features                    {result.clip_features}; {result.frame_features}"
    for name, share in found.adherence.items():
        yield f"  right in {name:18} {share}"
    for row in figure_rows(found):
        yield f"  {row.name:27} {row.samples} beside {row.reference}{', different' if row.is_different else ''}"
    if found.paired:
        yield f"  of {found.num_pairs} pairs of clips of equal prompt and seed, samples minus reference:"
    for row in paired_figure_rows(found):
        yield f"    {row.name:25} {row.difference}"
    yield f"  copies                      {copies_told(found.copies)}"


def _page(result: Result, samples: ClipSet, reference: ClipSet) -> ComparisonPage:
    found = result.comparison
    return ComparisonPage(
        samples=result.samples.folder,
        reference=result.reference.folder,
        tiles=distance_tiles(found),
        notes=[f"Features: {result.clip_features}; {result.frame_features}.", uncorrected(found)],
        rows=figure_rows(found),
        paired=paired_figure_rows(found),
        copies=copies_told(found.copies) + ".",
        pairs=nearest_pairs(found, samples, reference),
    )
