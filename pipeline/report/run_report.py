"""What people see: report.json, one self-contained report.html, a gallery, and a contact sheet."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from data.dataset.manifest import Manifest
from data.files.publish import publish_bytes, publish_text
from data.video.codec import decode_clip, encode_clip
from pipeline.report.figures import ATTRIBUTES, Reconstructions, Share, Shown
from pipeline.report.pages import LINE_COLOUR, TEMPLATES, svg_of, video_uri
from pipeline.run.stage_record import StageRecord
from pipeline.sample.outputs import SampledClip

MAX_CLIPS_SHOWN = 24
SHEET_ROWS, SHEET_FRAMES = 8, 9


@dataclass(frozen=True)
class Report:
    """Everything the report shows."""

    run_dir: Path
    config_yaml: str
    stages: list[StageRecord]
    reconstructions: Reconstructions
    shown: list[Shown]
    judge: Share | None  # None: the videos are real, and there is no truth to judge against
    adherence: dict[float, Share]  # by guidance scale
    right: dict[str, bool]  # by file
    guidance_scale: float
    clips: list[SampledClip]
    losses: dict[str, list[dict[str, float]]]
    latents: Manifest
    peak_rss_bytes: int = 0

    def with_stage(self, record: StageRecord, peak_rss_bytes: int) -> "Report":
        """The same report with the time of the stage that writes it, and the run's peak memory."""
        peaks = [record.peak_rss_bytes for record in self.stages]
        return replace(self, stages=[*self.stages, record], peak_rss_bytes=max([peak_rss_bytes, *peaks]))

    def headline(self) -> dict[str, Any]:
        """The few figures a run is judged by."""
        figures: dict[str, Any] = {"psnr_db": round(self.reconstructions.psnr_db, 2)}
        if self.guidance_scale in self.adherence:
            share = self.adherence[self.guidance_scale]
            figures |= {name: f"{100 * share.share(name):.1f} %" for name in ATTRIBUTES}
        return figures

    def figures(self) -> dict[str, Any]:
        """report.json."""
        wall = {record.stage: round(record.wall_seconds, 1) for record in self.stages}
        figures: dict[str, Any] = {
            "wall_seconds": wall | {"total": round(sum(wall.values()), 1)},
            "peak_rss_bytes": self.peak_rss_bytes,
            "stages": {record.stage: record.summary for record in self.stages},
            "autoencoder": self.reconstructions.model_dump(),
            "latents": self.latents.model_dump(mode="json", include={"buckets", "latent_stats", "num_samples"}),
            "final_loss": {name: rows[-1]["total"] for name, rows in self.losses.items() if rows},
        }
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
    """Write every file of the report and say where they are."""
    figures = report.figures()
    json_path, html_path = report.run_dir / "report.json", report.run_dir / "report.html"
    sheet_path = report.run_dir / "contact_sheet.png"
    publish_text(json_path, json.dumps(figures, indent=1) + "\n")
    guided = [clip for clip in report.clips if clip.request.guidance_scale == report.guidance_scale]
    picked = [guided[i] for i in np.linspace(0, len(guided) - 1, min(len(guided), MAX_CLIPS_SHOWN)).astype(int)]
    samples_dir = report.run_dir / "samples"
    publish_bytes(sheet_path, contact_sheet(samples_dir, picked))
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
                "prompt": clip.request.prompt,
                "seed": clip.request.seed,
                "right": report.right.get(clip.file),
            }
            for clip in picked
        ],
        num_clips=len(guided),
        config=report.config_yaml,
    )
    publish_text(html_path, page)
    return [json_path, html_path, sheet_path]


def loss_curve(rows: list[dict[str, float]]) -> str:
    """The training loss over steps, as SVG text."""
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


def contact_sheet(samples_dir: Path, clips: list[SampledClip]) -> bytes:
    """Frames of some clips side by side, one clip a row, under its prompt; a PNG."""
    rows = []
    for clip in clips[:: max(1, len(clips) // SHEET_ROWS)][:SHEET_ROWS]:
        frames = decode_clip((samples_dir / clip.file).read_bytes())
        picked = frames[np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).astype(int)]
        strip = np.concatenate(
            [np.pad(frame, ((2, 2), (2, 2), (0, 0)), constant_values=255) for frame in picked], axis=1
        )
        title = Image.new("RGB", (strip.shape[1], 16), "white")
        ImageDraw.Draw(title).text((3, 2), clip.request.prompt, fill="black")
        rows += [np.asarray(title), strip]
    width = max(row.shape[1] for row in rows)  # clips of several shapes
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(rows)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
