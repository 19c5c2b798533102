"""Sample a checkpoint outside its run, or a published pipeline: from prompts, without a configuration file."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from data.records import Settings
from launch.cluster import connected
from launch.config import ClusterConfig, check_writable
from launch.overrides import ConfigError, Given, Override, apply_override, explain
from pipeline.checkpoint.published import is_pipeline
from pipeline.report.gallery import GALLERY_NAME, write_gallery
from pipeline.run.lock import locked
from pipeline.sample.conditions import check_conditions
from pipeline.sample.config import SampleSection
from pipeline.sample.job import sample_clips
from pipeline.sample.model import open_model
from pipeline.sample.outputs import read_samples
from pipeline.sample.requests import plan_requests, read_prompts
from pipeline.sample.sampler import check_can_sample, prompt_warnings, settings_text

LOCK_NAME = ".sample.lock"


class SamplingConfig(Settings):
    """The part of the configuration of a run that sampling reads."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Every random number is a function of this seed and of what it is for."""
    sample: SampleSection = SampleSection()
    """How clips are sampled, and of which prompts."""
    cluster: ClusterConfig = ClusterConfig()
    """Where to compute, and with how many workers."""


def sample_checkpoint(target: Path, output_dir: Path, overrides: Sequence[Override], *, dry_run: bool) -> Iterator[str]:
    """Sample the checkpoint or the published pipeline in `target`; yields lines for the console.

    Args:
        overrides: settings such as "sample.steps=50".
        dry_run: yield the settings and the plan, and sample nothing.

    Raises:
        CheckpointError: the checkpoint cannot be sampled.
        PublishedError: the published pipeline cannot be sampled.
        TextEncoderError: its text encoder is missing or another one.
        ImageEncoderError: the image encoder of a published pipeline cannot be used.
        PromptError: the prompts file cannot be used, or asks for what the model was not trained for.
        ConfigError: a setting is wrong.
        SamplesError: the manifest in `output_dir` is damaged. All of these are raised before Ray starts.
        LockedError: another process samples into `output_dir`.
        SamplingError: clips could not be made; the others are there.
    """
    tree, warnings = _scheduler_defaults(target, overrides)
    for override in overrides:
        apply_override(tree, override, SamplingConfig)
    try:
        config = SamplingConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", SamplingConfig)) from error
    if config.sample.prompts is None:
        raise ConfigError("sample.prompts is not set; give a prompts file with --prompts")
    model = open_model(target)
    prompts, odd = read_prompts(config.sample.prompts)
    warnings += odd
    sampler = config.sample.sampler()
    check_can_sample(model, sampler)
    settings = settings_text(model, sampler)
    names = model.buckets_for(sampler.bucket, prompts)
    warnings += check_conditions(model, prompts, names[0], sampler)
    requests = plan_requests(prompts, config.sample.guidance_scales, config.seed, settings, names)
    warnings += prompt_warnings(model, sampler, prompts)
    yield from (f"warning: {warning}" for warning in warnings)
    if dry_run:
        yield yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        yield f"plan: {len(requests)} clips from {model} into {output_dir}"
        return
    check_writable(output_dir)
    with locked(output_dir / LOCK_NAME):
        read_samples(output_dir)  # a damaged manifest is refused before Ray starts
        with connected(config.cluster):
            samples = sample_clips(model, requests, output_dir, sampler, config.cluster.workers)
        write_gallery(output_dir, [clip.shown() for clip in samples.all_clips])
    samples.check_all_made()
    earlier = f" beside {len(samples.earlier)} of other settings" if samples.earlier else ""
    yield f"{len(samples.clips)} clips in {output_dir}{earlier}, shown in {output_dir / GALLERY_NAME}"


def _scheduler_defaults(target: Path, overrides: Sequence[Override]) -> tuple[dict, list[str]]:
    """Of a published pipeline, the settings that its scheduler stands for, and warnings.

    Its grid belongs to its solver: where one of them is overridden, the other is not taken either.
    """
    if not is_pipeline(target):
        return {}, []
    from pipeline.sample.published import scheduler_settings

    settings, warnings = scheduler_settings(target)
    keys = {
        override.key if isinstance(override, Given) else override.partition("=")[0].strip() for override in overrides
    }
    if {"sample.solver", "sample.grid"} & keys:
        settings = {name: value for name, value in settings.items() if name == "shift"}
    return {"sample": settings}, warnings
