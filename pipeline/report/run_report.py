"""The report of a run: report.json, one self-contained report.html, and a contact sheet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from data.dataset.manifest import Manifest
from data.files.publish import publish_bytes, publish_text
from data.video.codec import decode_clip, encode_clip
from pipeline.report.comparison_page import FigureRow, NearestPair, Tile, pair_uris
from pipeline.report.contact_sheet import SHEET_NAME, SheetClip, SheetLayout, contact_sheet, evenly
from pipeline.report.figures import ATTRIBUTES, GalleryClip, ReconstructedClip, Reconstructions, Share
from pipeline.report.pages import LINE_COLOUR, TEMPLATES, svg_of, video_uri
from pipeline.run.stage_record import StageRecord

MAX_CLIPS_SHOWN = 24
SHEET_ROWS, SHEET_FRAMES = 8, 9


@dataclass(frozen=True)
class ComparedSamples:
    """The samples of one guidance scale beside training clips."""

    guidance_scale: float
    tiles: list[Tile]
    rows: list[FigureRow]
    notes: list[str]
    copies: str
    pairs: list[NearestPair]
    """Samples that are most like a training clip."""
    figures: dict[str, Any]
    """All of them, for report.json."""


@dataclass(frozen=True)
class Report:
    """What the report of a run is made from."""

    run_dir: Path
    config_yaml: str
    stages: list[StageRecord]
    reconstructions: Reconstructions
    shown: list[ReconstructedClip]
    judge: Share | None  # of the judge itself; None for real videos, of which is not known what they show
    adherence: dict[float, Share]  # by guidance scale
    guidance_scale: float  # of the clips that are shown
    clips: list[GalleryClip]
    compared: list[ComparedSamples]  # by guidance scale, the highest first
    losses: dict[str, list[dict[str, float]]]  # lines of metrics.jsonl, by training
    latents: Manifest  # of the latent dataset
    links: dict[str, str]  # what other pages show -> their paths from the run's folder
    peak_rss_bytes: int = 0

    def with_stage(self, record: StageRecord, peak_rss_bytes: int) -> "Report":
        """The same report with the record of the stage that writes it, and the peak memory of the run."""
        peaks = [record.peak_rss_bytes for record in self.stages]
        return replace(self, stages=[*self.stages, record], peak_rss_bytes=max([peak_rss_bytes, *peaks]))

    def headline(self) -> dict[str, Any]:
        """The figures that are shown on the console and kept in the stage's record."""
        figures: dict[str, Any] = {"psnr_db": round(self.reconstructions.psnr_db, 2)}
        if self.guidance_scale in self.adherence:
            share = self.adherence[self.guidance_scale]
            figures |= {name: f"{100 * share.share(name):.1f} %" for name in ATTRIBUTES}
        elif (compared := self.compared_at(self.guidance_scale)) is not None:
            figures["frechet_video"] = round(compared.figures["frechet_video"]["corrected"], 3)
        return figures

    def compared_at(self, scale: float) -> ComparedSamples | None:
        """The comparison at a guidance scale."""
        return next((each for each in self.compared if each.guidance_scale == scale), None)

    def figures(self) -> dict[str, Any]:
        """The content of report.json."""
        wall = {record.stage: round(record.wall_seconds, 1) for record in self.stages}
        figures: dict[str, Any] = {
            "wall_seconds": wall | {"total": round(sum(wall.values()), 1)},
            "peak_rss_bytes": self.peak_rss_bytes,
            "stages": {record.stage: record.summary for record in self.stages},
            "autoencoder": self.reconstructions.model_dump(),
            "latents": self.latents.model_dump(mode="json", include={"buckets", "latent_stats", "num_samples"}),
            "final_loss": {name: rows[-1]["total"] for name, rows in self.losses.items() if rows},
        }
        if self.compared:
            figures["compared"] = {f"{each.guidance_scale:g}": each.figures for each in self.compared}
        if self.judge is not None:
            figures["judge"] = _share_json(self.judge)
        if self.adherence:
            guided = self.adherence[self.guidance_scale]
            figures["adherence"] = _share_json(guided) | {"guidance_scale": self.guidance_scale}
            if 1.0 in self.adherence and self.guidance_scale != 1.0:
                figures["adherence"]["without_guidance"] = _share_json(self.adherence[1.0])
        return figures


def _share_json(share: Share) -> dict[str, Any]:
    shares = {name: round(share.share(name), 4) for name in ATTRIBUTES}
    return shares | {"num_clips": share.num_clips, "num_right": share.right}


def write_report(report: Report) -> list[Path]:
    """Write the report into the folder of its run.

    Returns:
        The files that were written.
    """
    figures = report.figures()
    json_path, html_path = report.run_dir / "report.json", report.run_dir / "report.html"
    sheet_path = report.run_dir / SHEET_NAME
    publish_text(json_path, json.dumps(figures, indent=1) + "\n")
    guided = [clip for clip in report.clips if clip.guidance_scale == report.guidance_scale]
    picked = evenly(guided, MAX_CLIPS_SHOWN)
    compared = report.compared_at(report.guidance_scale)
    samples_dir = report.run_dir / "samples"
    publish_bytes(sheet_path, _sheet(samples_dir, picked))
    page = TEMPLATES.get_template("report.html").render(
        name=report.run_dir.name,
        figures=figures,
        attributes=ATTRIBUTES,
        adherence=sorted(report.adherence.items(), reverse=True),
        judge=report.judge,
        stages=report.stages,
        losses={name: loss_curve(rows) for name, rows in report.losses.items() if rows},
        reconstructions=[
            {
                "caption": clip.caption,
                "original": video_uri(encode_clip(clip.original, clip.fps)),
                "made": video_uri(encode_clip(clip.reconstruction, clip.fps)),
            }
            for clip in report.shown
        ],
        clips=[
            {
                "video": video_uri((samples_dir / clip.file).read_bytes()),
                "prompt": clip.prompt,
                "seed": clip.seed,
                "right": clip.right,
            }
            for clip in picked
        ],
        num_clips=len(guided),
        compared=report.compared,
        main=compared,
        pairs=[] if compared is None else [pair_uris(pair) for pair in compared.pairs],
        links=report.links,
        config=report.config_yaml,
    )
    publish_text(html_path, page)
    return [json_path, html_path, sheet_path]


def loss_curve(rows: list[dict[str, float]]) -> str:
    """The training loss over the steps, raw and smoothed by a moving average; SVG text."""
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    steps, loss = [row["step"] for row in rows], np.array([row["total"] for row in rows])
    axes.plot(steps, loss, linewidth=0.6, alpha=0.4, color=LINE_COLOUR)
    window = max(1, len(loss) // 30)
    smooth = np.convolve(np.pad(loss, (window // 2, window - 1 - window // 2), mode="edge"), np.ones(window) / window)
    axes.plot(steps, smooth[window - 1 : window - 1 + len(loss)], linewidth=1.6, color=LINE_COLOUR)
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.grid(alpha=0.25)
    return svg_of(figure)


def _sheet(samples_dir: Path, clips: Sequence[GalleryClip]) -> bytes:
    """The contact sheet of evenly spaced clips, one per row."""
    picked = clips[:: max(1, len(clips) // SHEET_ROWS)][:SHEET_ROWS]
    shown = [SheetClip(decode_clip((samples_dir / clip.file).read_bytes()), clip.prompt) for clip in picked]
    return contact_sheet(shown, SheetLayout(frames_per_clip=SHEET_FRAMES, columns=1))
