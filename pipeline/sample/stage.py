"""Stage sample: prompts become clips."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.synthetic import held_out_combinations
from pipeline.distributed.config import WorkersConfig
from pipeline.ingest.config import DataConfig
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import fingerprint, output_settings
from pipeline.run.stage import DriverStage, Outcome
from pipeline.run.stage_record import OpenStage
from pipeline.sample.config import SampleSection

if TYPE_CHECKING:
    from pipeline.sample.requests import Prompt

logger = logging.getLogger(__name__)

MAX_CAPTIONS, CLIPS_PER_CAPTION = 32, 2
"""Of the data, where real videos are sampled without a prompts file."""


@dataclass(frozen=True)
class SampleStage(DriverStage):
    """Turn prompts into clips.

    Example: `reelflow sample runs/demo/dit --prompts prompts.txt --output clips --set sample.guidance_scale=4`
    """

    config: SampleSection
    data: DataConfig
    seed: int
    prompts_per_combination: int
    workers: WorkersConfig

    name = "sample"
    folder = "samples"
    needs = {"dit": "train dit"}  # noqa: RUF012 - constant

    def describe(self) -> str:
        """Its line in the plan."""
        config = self.config
        method = config.solver if config.sde_sigma == 0 else f"Euler-Maruyama with noise {config.sde_sigma:g}"
        return f"{method}, {config.steps} steps, guidance {config.guidance_scale:g}"

    def settings(self, run: RunContext) -> dict[str, Any]:
        """How clips are sampled, and of which prompts.

        What cannot be sampled is refused here, before earlier samples are archived.

        Raises:
            PromptError: the prompts file cannot be used, or asks for what was not trained.
            CheckpointError: the checkpoint was not trained for these settings.
            TextEncoderError: its text encoder is missing or another one.
        """
        from pipeline.sample.conditions import check_conditions
        from pipeline.sample.model import open_model
        from pipeline.sample.requests import prompt_settings
        from pipeline.sample.sampler import check_can_sample, prompt_warnings

        prompts, warnings = self._prompts(run)
        names = self._buckets(run, prompts)
        model, sampler = open_model(run.run_dir / "dit", verify=False), self.config.sampler()
        check_can_sample(model, sampler)
        warnings += check_conditions(model, prompts, names[0], sampler)
        warnings += prompt_warnings(model, sampler, prompts)
        for warning in warnings:
            logger.warning("  warning: %s", warning)
        return {
            "sampler": output_settings(sampler),
            "prompts": fingerprint(prompt_settings(prompts)),
            "scales": self.config.guidance_scales,
            "seed": self.seed,
        }

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Sample every clip that is missing or cut short.

        Raises:
            SamplingError: clips could not be made; the others are there.
        """
        from data.files.publish import publish_text
        from pipeline.report.gallery import GALLERY_NAME, write_gallery
        from pipeline.sample.job import sample_clips
        from pipeline.sample.model import open_model
        from pipeline.sample.outputs import SAMPLES_NAME
        from pipeline.sample.requests import format_prompts, plan_requests
        from pipeline.sample.sampler import settings_text

        prompts, _ = self._prompts(run)
        publish_text(opened.folder / "prompts.jsonl", format_prompts(prompts))
        model, sampler = open_model(run.run_dir / "dit"), self.config.sampler()
        address, names = settings_text(model, sampler), self._buckets(run, prompts)
        requests = plan_requests(prompts, self.config.guidance_scales, self.seed, address, names)
        samples = sample_clips(model, requests, opened.folder, sampler, self.workers)
        write_gallery(opened.folder, [clip.shown() for clip in samples.all_clips])
        samples.check_all_made()
        files = [clip.file for clip in samples.clips]
        return Outcome([opened.folder / name for name in (SAMPLES_NAME, GALLERY_NAME, *files)], {"clips": len(files)})

    def is_whole(self, output: Path) -> bool:
        """Whether a file is there, and a clip of full length."""
        from pipeline.sample.outputs import is_whole_clip

        return is_whole_clip(output) if output.suffix == ".mp4" else super().is_whole(output)

    def _buckets(self, run: RunContext, prompts: "list[Prompt]") -> list[str]:
        """Names of the buckets that were trained, the one for prompts without a bucket first."""
        from data.dataset.manifest import read_manifest
        from pipeline.sample.requests import order_buckets

        trained = [record.bucket.name for record in read_manifest(run.run_dir / "latents").buckets]
        return order_buckets(trained, self.config.bucket, prompts)

    def _prompts(self, run: RunContext) -> "tuple[list[Prompt], list[str]]":
        """The prompts file and what is odd in it; without one, held-out combinations, or captions of real videos."""
        from data.dataset.index import read_index
        from pipeline.sample.requests import Prompt, read_prompts

        if self.config.prompts is not None:
            return read_prompts(self.config.prompts)
        if self.data.is_synthetic:
            prompts = [
                Prompt(prompt=f"a {c.colour} {c.shape} moves {c.direction}", seed=number, expect=vars(c))
                for c in held_out_combinations()
                for number in range(self.prompts_per_combination)
            ]
            return prompts, []
        captions = sorted(set(read_index(run.run_dir / "clips").values("caption")))[:MAX_CAPTIONS]
        return [Prompt(prompt=text, seed=number) for text in captions for number in range(CLIPS_PER_CAPTION)], []
