"""The page of a dataset: playing clips, histograms, buckets, measures, what was left out. A contact sheet is beside it.

The page is one file. Captions and names of sources are untrusted: they are always escaped.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors import SafetensorError
from safetensors.numpy import load

from data.dataset.index import IndexRow
from data.dataset.manifest import MANIFEST_NAME, LatentStats
from data.dataset.reader import PayloadReader
from data.dataset.survey import Histogram, Survey, pick_rows
from data.errors import DatasetError, VideoError
from data.files.publish import publish_bytes, publish_text
from data.records import Frames
from data.video.codec import decode_clip
from pipeline.report.contact_sheet import INK, SHEET_NAME, SheetClip, SheetLayout, contact_sheet
from pipeline.report.pages import LINE_COLOUR, TEMPLATES, svg_of, video_uri

PAGE_NAME = "index.html"


@dataclass(frozen=True)
class DatasetClip:
    """One clip of the page and of the contact sheet."""

    row: IndexRow
    video: str  # a data URI of the MP4; empty where the clip cannot be read
    thumbs: Frames  # its first, middle and last frame; none where it cannot be read
    problem: str  # why it cannot be read; empty where it can


@dataclass(frozen=True)
class Channel:
    """One channel of the latents."""

    number: int
    mean: float  # over the training split, from the manifest
    std: float  # as the mean
    low: float  # over the samples that were read
    high: float  # as the lowest value


@dataclass(frozen=True)
class Measured:
    """One measure: the distribution of its values, and what its thresholds left out."""

    histogram: Histogram
    thresholds: tuple[str, ...]  # as sentences
    median: float
    low: float  # of every hundred spans, one is below it
    high: float  # and one above it


@dataclass(frozen=True)
class MeasuredSpans:
    """What was measured of a dataset."""

    measures: tuple[Measured, ...]  # empty: nothing was, or the commits are not there
    num_spans: int
    num_shards: int  # that were read


NOTHING_MEASURED = MeasuredSpans((), 0, 0)


def write_dataset_page(
    survey: Survey, folder: Path, num_clips: int, measured: MeasuredSpans = NOTHING_MEASURED
) -> list[Path]:
    """Write the page and, for a dataset of clips, the contact sheet.

    Args:
        num_clips: number of samples to show, evenly spaced in the index.
        measured: what was measured of the clips (`pipeline/ingest/measured.py`).

    Returns:
        The files that were written.

    Raises:
        DatasetError: the index or one of the chosen latents is damaged.
    """
    dataset_dir, manifest = survey.dataset_dir, survey.manifest
    rows = pick_rows(dataset_dir, num_clips)
    stats = manifest.latent_stats
    reader = PayloadReader(dataset_dir, verify=True)
    clips = [_read_clip(reader, row) for row in rows] if manifest.kind == "clips" else []
    channels = measure_channels(dataset_dir, rows, stats) if stats is not None else []
    clips_dir = clips_dir_of(dataset_dir)
    page = TEMPLATES.get_template("dataset.html").render(
        name=_short(dataset_dir),
        survey=survey,
        manifest=manifest,
        clips=clips,
        channels=channels,
        channel_plot=channel_plot(channels),
        num_looked_at=len(rows),
        clips_dir=_short(clips_dir) if clips_dir is not None else None,
        plots=[(histogram, bar_plot(histogram)) for histogram in survey.histograms if histogram.bars],
        measured=measured,
        measured_plots=[(found, bar_plot(found.histogram)) for found in measured.measures],
        sheet_name=SHEET_NAME,
    )
    publish_text(folder / PAGE_NAME, page)
    if not clips:
        return [folder / PAGE_NAME]
    sheet = [SheetClip(clip.thumbs, clip.problem or clip.row.caption, bool(clip.problem)) for clip in clips]
    publish_bytes(folder / SHEET_NAME, contact_sheet(sheet, SheetLayout()))
    return [folder / PAGE_NAME, folder / SHEET_NAME]


def _short(folder: Path) -> str:
    """The names of run and folder, as demo/clips: pages are shared, and must not show paths of the machine."""
    return "/".join(folder.resolve().parts[-2:])


def clips_dir_of(latents_dir: Path) -> Path | None:
    """The clips that a run's latents were made from; None where the run has none."""
    clips_dir = latents_dir.resolve().parent / "clips"
    return clips_dir if (clips_dir / MANIFEST_NAME).is_file() else None


def _read_clip(reader: PayloadReader, row: IndexRow) -> DatasetClip:
    try:
        content = reader.read(row)
        frames = decode_clip(content)
    except (DatasetError, VideoError) as error:
        return DatasetClip(row, "", np.zeros((0, row.height, row.width, 3), np.uint8), str(error))
    return DatasetClip(row, video_uri(content), frames[[0, len(frames) // 2, -1]], "")


def measure_channels(dataset_dir: Path, rows: list[IndexRow], stats: LatentStats) -> list[Channel]:
    """Mean and standard deviation of each channel, from the manifest, and its extremes over some samples.

    Raises:
        DatasetError: a sample cannot be read or has another number of channels.
    """
    reader, num_channels = PayloadReader(dataset_dir, verify=True), len(stats.mean)
    low, high = np.full(num_channels, np.inf), np.full(num_channels, -np.inf)
    for row in rows:
        content = reader.read(row)
        try:
            latent = load(content)["mean"].reshape(num_channels, -1)  # (c, t h w)
        except (SafetensorError, KeyError, ValueError) as error:
            raise DatasetError(
                f"{dataset_dir / row.shard}: sample {row.key} is no latent of {num_channels} channels ({error}); "
                f"make {dataset_dir} again"
            ) from error
        low, high = np.minimum(low, latent.min(axis=1)), np.maximum(high, latent.max(axis=1))
    columns = zip(stats.mean, stats.std, low.tolist(), high.tolist(), strict=True)
    return [Channel(number, *values) for number, values in enumerate(columns)]


def bar_plot(histogram: Histogram) -> str:
    """A histogram with its counts; SVG text."""
    figure, axes = _plot(len(histogram.bars))
    counts = [bar.count for bar in histogram.bars]
    drawn = axes.barh([bar.label for bar in histogram.bars], counts, height=0.75, color=LINE_COLOUR)
    axes.bar_label(drawn, [f"{count:,}" for count in counts], padding=3, color=INK, fontsize=9)
    axes.set_xlim(0, 1.25 * max(counts))
    axes.set_xticks([])
    return svg_of(figure)


def channel_plot(channels: list[Channel]) -> str:
    """The extremes of each channel, and one standard deviation around its mean; SVG text, empty without channels."""
    if not channels:
        return ""
    figure, axes = _plot(len(channels))
    numbers, means = [str(channel.number) for channel in channels], np.array([channel.mean for channel in channels])
    stds = np.array([channel.std for channel in channels])
    axes.hlines(numbers, [c.low for c in channels], [c.high for c in channels], color=LINE_COLOUR, linewidth=1)
    axes.barh(numbers, 2 * stds, left=means - stds, height=0.6, color=LINE_COLOUR, alpha=0.55)
    axes.plot(means, numbers, "|", color=INK, markersize=9)
    axes.grid(axis="x", alpha=0.25)
    return svg_of(figure)


def _plot(num_lines: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.6, 0.3 + 0.22 * num_lines), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_ylim(num_lines - 0.5, -0.5)
    return figure, axes
