"""Stage evaluate: reconstruction and prompt adherence are measured, and the report is written."""

import logging
from dataclasses import dataclass
from typing import Any

from pipeline.evaluate.config import EvaluateConfig
from pipeline.ingest.config import DataConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import output_settings
from pipeline.run.stage import DriverStage, Outcome
from pipeline.run.stage_record import OpenStage

logger = logging.getLogger(__name__)

NUM_RECONSTRUCTIONS_SHOWN = 6


@dataclass(frozen=True)
class EvaluateStage(DriverStage):
    """Measure reconstruction and prompt adherence, and write the report.

    Example: `reelflow evaluate demo`
    """

    config: EvaluateConfig
    data: DataConfig
    seed: int
    guidance_scale: float

    name = "evaluate"
    folder = "evaluation"
    needs = {"samples": Need("sample", "samples"), "latents": Need("encode", "latents")}  # noqa: RUF012 - constant

    def describe(self) -> str:
        """Its line in the plan."""
        return "reconstruction, adherence, report"

    def settings(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002 - of the interface
        """What is measured."""
        return {"config": output_settings(self.config)}

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Measure, and write the report."""
        from data.dataset.manifest import read_manifest
        from pipeline.encode.codec import AUTOENCODER_NAME
        from pipeline.evaluate.adherence import measure_adherence, validate_judge
        from pipeline.evaluate.reconstruction import measure_reconstruction
        from pipeline.report.run_report import Report, write_report
        from pipeline.sample.outputs import read_samples
        from pipeline.train.monitor.metrics import read_metrics

        clips_dir, latents_dir, samples_dir = (run.run_dir / name for name in ("clips", "latents", "samples"))
        reconstructions, shown = measure_reconstruction(
            clips_dir, latents_dir / AUTOENCODER_NAME, self.config.max_reconstructions, NUM_RECONSTRUCTIONS_SHOWN
        )
        clips = read_samples(samples_dir)
        judge, adherence, right = None, {}, {}
        if self.data.is_synthetic:  # only of drawn videos is it known what they show
            bucket = read_manifest(clips_dir).buckets[0].bucket
            scratch = opened.folder / "fresh"
            judge = validate_judge(self.config.judge_clips, self.seed, self.data.synthetic, bucket, scratch)
            adherence, right = measure_adherence(samples_dir, clips)
        report = Report(
            run_dir=run.run_dir,
            config_yaml=run.config_yaml,
            stages=run.records(exclude=self.folder),
            reconstructions=reconstructions,
            shown=shown,
            judge=judge,
            adherence=adherence,
            guidance_scale=self.guidance_scale,
            clips=[clip.shown(right.get(clip.file)) for clip in clips],
            losses={name: read_metrics(run.run_dir / name) for name in ("autoencoder", "dit")},
            latents=read_manifest(latents_dir),
        )
        opened.save()  # so that the report has the time of this stage too
        report = report.with_stage(opened.record, run.peak_rss_bytes())
        written = write_report(report)
        for path in written:
            logger.info("  wrote %s", path)
        return Outcome(written, report.headline())
