"""Stage sample: prompts become clips."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.synthetic import held_out_combinations
from pipeline.distributed.config import WorkersConfig
from pipeline.ingest.config import DataConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import fingerprint, fingerprint_of_items, output_settings, stored
from pipeline.run.stage import DriverStage, Outcome
from pipeline.run.stage_record import OpenStage
from pipeline.sample.config import SampleSection

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.sample.model import SampledModel
    from pipeline.sample.plan import BadRows, Plan
    from pipeline.sample.prompt_files import PromptsFile
    from pipeline.sample.prompts import PlacedPrompt

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
    network: str = "dit"
    """The folder of the network, one of those it `needs`."""

    name = "sample"
    folder = "samples"
    needs = {  # noqa: RUF012 - constant
        "dit": Need("train dit", "weights"),
        "distill": Need("train distill", "weights"),
    }

    def required_folders(self) -> Mapping[str, Need]:
        """That of the network."""
        return {self.network: self.needs[self.network]}

    def describe(self) -> str:
        """Its line in the plan."""
        config = self.config
        method = config.solver if config.sde_sigma == 0 else f"Euler-Maruyama with noise {config.sde_sigma:g}"
        return f"{method}, {config.steps} steps, guidance {config.guidance_scale:g}"

    def check(self) -> None:
        """Refuse a prompts file that cannot be opened: the stages before this one may take days.

        Raises:
            PromptError: it is missing, unreadable or empty.
        """
        from pipeline.sample.prompt_files import PromptsFile

        if self.config.prompts is not None:
            for _ in PromptsFile(self.config.prompts, lambda _place, _error: None):  # rows are checked with the model
                break

    def settings(self, run: RunContext) -> dict[str, Any]:
        """How clips are sampled, and of which prompts.

        What cannot be sampled is refused here, before earlier samples are archived.

        Raises:
            PromptError: the prompts file cannot be used, or asks for a bucket or an image that was not trained.
            CheckpointError: the checkpoint was not trained for these settings.
            TextEncoderError: its text encoder is missing or another one.
            EncoderError: the installed FFmpeg cannot write such videos.
        """
        from data.video.codec import check_encoder
        from pipeline.sample.checks import check_can_sample
        from pipeline.sample.model import open_model
        from pipeline.sample.plan import BadRows
        from pipeline.sample.requests import prompt_settings
        from pipeline.sample.truncation import truncation_warnings

        model, sampler = open_model(run.run_dir / self.network, verify=False), self.config.sampler()
        check_can_sample(model, sampler)
        check_encoder(self.config.video)
        bad_rows = BadRows(self.config.bad_rows == "set_aside")
        prompts = self._prompts(run, bad_rows)
        summary = self._plan(model, prompts, bad_rows).check()
        notes = [] if isinstance(prompts, list) else prompts.notes
        for warning in notes + summary.warnings + truncation_warnings(model, sampler, prompts, summary.models):
            logger.warning("  warning: %s", warning)
        fingerprints = {name: other.fingerprint for name, other in summary.models.items()}
        settings = {
            "sampler": output_settings(sampler),
            "prompts": fingerprint_of_items(prompt_settings(prompts, fingerprints)),
            "scales": self.config.guidance_scales,
            "seed": self.seed,
        }
        return settings | ({"weaker": sorted(summary.weaker)} if summary.weaker else {})

    def continues(self) -> dict[str, Any]:
        """Which files are made of each clip: another one is added to the clips that are there."""
        return stored(self.config.files())

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Sample every clip that is missing or cut short.

        Raises:
            SamplingError: clips could not be made; the others are there.
        """
        from data.files.publish import published
        from pipeline.report.gallery import GALLERY_NAME, write_gallery
        from pipeline.sample.job import sample_clips
        from pipeline.sample.model import open_model
        from pipeline.sample.outputs import SAMPLES_NAME
        from pipeline.sample.plan import BadRows
        from pipeline.sample.prompts import format_prompts
        from pipeline.sample.shards import held_folder
        from pipeline.sample.training_set import write_training_set

        outputs = self.config.files()
        bad_rows = BadRows(self.config.bad_rows == "set_aside")
        prompts = self._prompts(run, bad_rows)
        with published(opened.folder / "prompts.jsonl") as path, path.open("w", encoding="utf-8") as file:
            file.writelines(format_prompts(placed.prompt for placed in prompts))
        model, sampler = open_model(run.run_dir / self.network), self.config.sampler()
        plan = self._plan(model, prompts, bad_rows)
        with held_folder(opened.folder):
            samples = sample_clips(
                model,
                plan,
                opened.folder,
                sampler,
                self.workers,
                outputs=outputs,
                bad_rows=bad_rows.reasons,
                files=run.files,
            )
            write_gallery(opened.folder, (clip.shown() for clip in samples.all_clips))
            shards = write_training_set(opened.folder, model, sampler, outputs).files if self._has_shards else []
        samples.check_all_made()
        clips = samples.clips
        others = [other.file for clip in clips for other in clip.others if other.kind in outputs.outputs]
        files = [opened.folder / name for name in (SAMPLES_NAME, GALLERY_NAME, *(clip.file for clip in clips), *others)]
        return Outcome([*files, *shards], {"clips": len(clips)})

    def contents(self, folder: Path) -> dict[str, str]:
        """The clips, by their checksums."""
        from data.files.checksums import file_sha256
        from pipeline.sample.outputs import read_samples

        clips = {clip.file: clip.sha256 or file_sha256(folder / clip.file) for clip in read_samples(folder)}
        return {"samples": f"samples-{fingerprint(clips)}"}

    def is_whole(self, output: Path) -> bool:
        """Whether a file is there, and a clip of full length."""
        from pipeline.sample.outputs import is_whole_clip

        return is_whole_clip(output) if output.suffix == ".mp4" else super().is_whole(output)

    def _plan(self, model: "SampledModel", prompts: "Iterable[PlacedPrompt]", bad_rows: "BadRows") -> "Plan":
        from pipeline.sample.plan import Plan

        unguided = self.config.compare_unguided
        return Plan(model, self.config.sampler(), prompts, self.seed, unguided, bad_rows, self.config.files())

    @property
    def _has_shards(self) -> bool:
        return "webdataset" in self.config.outputs

    def _prompts(self, run: RunContext, bad_rows: "BadRows") -> "PromptsFile | list[PlacedPrompt]":
        """The prompts file; without one, held-out combinations, or captions of real videos."""
        from data.dataset.index import read_index
        from pipeline.sample.prompt_files import PromptsFile
        from pipeline.sample.prompts import PlacedPrompt, Prompt

        if self.config.prompts is not None:
            return PromptsFile(self.config.prompts, bad_rows.add)
        if self.data.is_synthetic:
            prompts = [
                Prompt(prompt=f"a {c.colour} {c.shape} moves {c.direction}", seed=number, expect=vars(c))
                for c in held_out_combinations()
                for number in range(self.prompts_per_combination)
            ]
        else:
            captions: list[str] = []
            for some in read_index(run.run_dir / "clips").chunks("caption"):
                captions = sorted({*captions, *some})[:MAX_CAPTIONS]
            prompts = [Prompt(prompt=text, seed=number) for text in captions for number in range(CLIPS_PER_CAPTION)]
        return [PlacedPrompt(f"prompt {number}", prompt) for number, prompt in enumerate(prompts, 1)]
