"""Stage evaluate: reconstruction, prompt adherence and distances from training clips are measured, and reported."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.distributed.config import WorkersConfig
from pipeline.evaluate.config import EvaluateConfig
from pipeline.ingest.config import DataConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import output_settings
from pipeline.run.stage import DriverStage, Outcome
from pipeline.run.stage_record import OpenStage

if TYPE_CHECKING:
    from pipeline.evaluate.measure import Networks

logger = logging.getLogger(__name__)

NUM_RECONSTRUCTIONS_SHOWN, NUM_CLIPS_SHOWN = 6, 24
GALLERY_NAME, DATASET_NAME = "gallery.html", "dataset"


@dataclass(frozen=True)
class EvaluateStage(DriverStage):
    """Measure reconstruction, prompt adherence and distances from training clips, and write the report.

    Example: `reelflow evaluate demo`
    """

    config: EvaluateConfig
    data: DataConfig
    seed: int
    guidance_scale: float
    workers: WorkersConfig

    name = "evaluate"
    folder = "evaluation"
    needs = {"samples": Need("sample", "samples"), "latents": Need("encode", "latents")}  # noqa: RUF012 - constant

    def describe(self) -> str:
        """Its line in the plan."""
        return "reconstruction, adherence, distance from training clips, report"

    def settings(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002 - of the interface
        """What is measured.

        Raises:
            FeatureError: a network cannot be used.
        """
        settings: dict[str, Any] = {"config": output_settings(self.config)}
        config = self.config
        if config.clip_features or config.frame_features or config.text_similarity:
            self._networks().check()
            settings["networks"] = self._networks().fingerprint()
        return settings

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Measure, and write the report."""
        from data.dataset.manifest import read_manifest
        from data.dataset.survey import survey_dataset
        from pipeline.encode.codec import AUTOENCODER_NAME
        from pipeline.evaluate.adherence import adherence_of, validate_judge
        from pipeline.evaluate.reconstruction import measure_reconstruction
        from pipeline.evaluate.samples import measure_samples, scale_shown
        from pipeline.report.dataset_page import write_dataset_page
        from pipeline.report.gallery import write_gallery
        from pipeline.report.run_report import Report, write_report
        from pipeline.sample.outputs import read_samples
        from pipeline.train.monitor.metrics import read_metrics

        clips_dir, latents_dir, samples_dir = (run.run_dir / name for name in ("clips", "latents", "samples"))
        reconstructions, shown = measure_reconstruction(
            clips_dir, latents_dir / AUTOENCODER_NAME, self.config.max_reconstructions, NUM_RECONSTRUCTIONS_SHOWN
        )
        clips, judge = read_samples(samples_dir), None
        if self.data.is_synthetic:  # only of drawn videos is it known what they show
            bucket = read_manifest(clips_dir).buckets[0].bucket
            scratch = opened.folder / "fresh"
            judge = validate_judge(self.config.judge_clips, self.seed, self.data.synthetic, bucket, scratch)
        networks, scale = self._networks(), scale_shown(clips, self.guidance_scale)
        samples = measure_samples(
            samples_dir,
            clips,
            clips_dir,
            networks,
            opened.folder / "measured",
            self.workers,
            None if self.data.is_synthetic else self.config.compared_clips,
            self.config.compared_clips,
            run.files,
        )
        shares = {each: adherence_of(found.measured) for each, found in samples.scales.items()}
        gallery = opened.folder / GALLERY_NAME
        write_gallery(samples_dir, samples.shown(), gallery)
        pages = write_dataset_page(survey_dataset(clips_dir), opened.folder / DATASET_NAME, NUM_CLIPS_SHOWN)
        report = Report(
            run_dir=run.run_dir,
            config_yaml=run.config_yaml,
            stages=run.records(exclude=self.folder),
            reconstructions=reconstructions,
            shown=shown,
            judge=judge,
            adherence={each: share for each, share in shares.items() if share is not None and judge is not None},
            guidance_scale=scale,
            clips=samples.shown(),
            compared=samples.compared(networks.check(), scale),
            losses={name: read_metrics(run.run_dir / name) for name in ("autoencoder", "dit")},
            latents=read_manifest(latents_dir),
            links={
                "every sampled clip, to search and to sort by score": f"{self.folder}/{GALLERY_NAME}",
                "the clips that it was trained on": f"{self.folder}/{DATASET_NAME}/{pages[0].name}",
            },
        )
        opened.save()  # so that the report has the time of this stage too
        report = report.with_stage(opened.record, run.peak_rss_bytes())
        written = [*write_report(report), gallery, pages[0]]
        for path in written:
            logger.info("  wrote %s", path)
        return Outcome(written, report.headline())

    def _networks(self) -> "Networks":
        from pipeline.evaluate.measure import Networks

        return Networks(self.config.clip_features, self.config.frame_features, self.config.text_similarity)
