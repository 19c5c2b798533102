"""A page that shows a dataset: playing clips, histograms, buckets, and what was left out; beside it a contact sheet.

The page is one file. Captions and names of sources come from anywhere: they are text there, never markup.
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
from data.video.codec import decode_clip
from pipeline.report.contact_sheet import INK, ShownClip, contact_sheet
from pipeline.report.pages import LINE_COLOUR, TEMPLATES, svg_of, video_uri

PAGE_NAME, SHEET_NAME = "index.html", "contact_sheet.png"


@dataclass(frozen=True)
class Channel:
    """One channel of the latents."""

    number: int
    mean: float  # over the training split, from the manifest
    std: float
    low: float  # over the samples looked at
    high: float


def write_dataset_page(survey: Survey, folder: Path, num_clips: int) -> list[Path]:
    """Write the page, and of clips the contact sheet, and say where they are.

    Args:
        num_clips: how many samples are shown, evenly chosen from the index.

    Raises:
        DatasetError: the index is damaged, or a latent that was chosen.
    """
    dataset_dir, manifest = survey.dataset_dir, survey.manifest
    rows = pick_rows(dataset_dir, num_clips)
    stats = manifest.latent_stats
    reader = PayloadReader(dataset_dir, verify=True)
    clips = [_show(reader, row) for row in rows] if manifest.kind == "clips" else []
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
        sheet_name=SHEET_NAME,
    )
    publish_text(folder / PAGE_NAME, page)
    if not clips:
        return [folder / PAGE_NAME]
    publish_bytes(folder / SHEET_NAME, contact_sheet(clips))
    return [folder / PAGE_NAME, folder / SHEET_NAME]


def _short(folder: Path) -> str:
    """Run and folder, as demo/clips: pages travel, and where a home folder lies is nobody's business."""
    return "/".join(folder.resolve().parts[-2:])


def clips_dir_of(latents_dir: Path) -> Path | None:
    """Where a run keeps the clips its latents were made from; None where there are none."""
    clips_dir = latents_dir.resolve().parent / "clips"
    return clips_dir if (clips_dir / MANIFEST_NAME).is_file() else None


def _show(reader: PayloadReader, row: IndexRow) -> ShownClip:
    try:
        content = reader.read(row)
        frames = decode_clip(content)
    except (DatasetError, VideoError) as error:
        return ShownClip(row, "", np.zeros((0, row.height, row.width, 3), np.uint8), str(error))
    return ShownClip(row, video_uri(content), frames[[0, len(frames) // 2, -1]], "")


def measure_channels(dataset_dir: Path, rows: list[IndexRow], stats: LatentStats) -> list[Channel]:
    """Mean and deviation of each channel as the manifest has them, and the extremes over some samples.

    Raises:
        DatasetError: a sample cannot be read, or has another number of channels.
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
    """A histogram with its counts, as SVG text."""
    figure, axes = _plot(len(histogram.bars))
    counts = [bar.count for bar in histogram.bars]
    drawn = axes.barh([bar.label for bar in histogram.bars], counts, height=0.75, color=LINE_COLOUR)
    axes.bar_label(drawn, [f"{count:,}" for count in counts], padding=3, color=INK, fontsize=9)
    axes.set_xlim(0, 1.25 * max(counts))
    axes.set_xticks([])
    return svg_of(figure)


def channel_plot(channels: list[Channel]) -> str:
    """Each channel's extremes, and the stretch of one deviation around its mean, as SVG text; empty without any."""
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
