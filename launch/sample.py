"""Sample a checkpoint outside its run, or a published pipeline: from prompts, without a configuration file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data.video.codec import check_encoder
from launch.cluster import connected
from launch.outputs import Output
from launch.overrides import ConfigError, Override
from launch.sample_settings import SamplingConfig, read_settings
from pipeline.report.gallery import GALLERY_NAME, write_gallery
from pipeline.sample.checks import check_can_sample
from pipeline.sample.config import OutputsConfig, SampleConfig
from pipeline.sample.job import Samples, folders_of_models, sample_clips
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import iterate_samples
from pipeline.sample.plan import BadRows, Plan
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.shards import Shard, held_folder
from pipeline.sample.training_set import TrainingSet, write_training_set
from pipeline.sample.truncation import truncation_warnings


@dataclass(frozen=True)
class _Job:
    """What is to be sampled into where, once all has been checked that can be before Ray starts."""

    model: SampledModel
    config: SamplingConfig
    sampler: SampleConfig
    outputs: OutputsConfig
    plan: Plan
    bad_rows: BadRows
    num_requests: int
    warnings: list[str]
    to: Output


@dataclass(frozen=True)
class _Sampled:
    """What a job has made."""

    samples: Samples
    num_listed: int  # clips in the manifest and on the page, those of other settings too
    training_set: TrainingSet | None  # where shards are asked for


def sample_checkpoint(
    target: Path, output: Path | str, overrides: Sequence[Override], *, dry_run: bool, shard: Shard | None = None
) -> Iterator[str]:
    """Sample the checkpoint or the published pipeline in `target`; yields lines for the console.

    Args:
        output: a folder, or the URI of one in a store.
        overrides: settings such as "sample.steps=50".
        dry_run: yield the settings and the plan, and sample nothing.
        shard: sample this part of the clips only.

    Raises:
        CheckpointError: the checkpoint cannot be sampled.
        PublishedError: the published pipeline cannot be sampled.
        TextEncoderError: its text encoder is missing or another one.
        ImageEncoderError: the image encoder of a published pipeline cannot be used.
        PromptError: the prompts file cannot be used, or a row asks for what the model does not take.
        ConfigError: a setting is wrong.
        EncoderError: the installed FFmpeg cannot write such videos.
        StoredRunError: the store of `output` cannot be used.
        SamplesError: the manifest in `output` is damaged. All of these are raised before Ray starts.
        LockedError: another process samples into `output`.
        SamplingError: clips could not be made; the others are there.
        StoppedError: the process got SIGTERM.
    """
    job = _checked_job(target, output, overrides, shard)
    yield from (f"warning: {warning}" for warning in job.warnings)
    if dry_run:
        yield yaml.safe_dump(job.config.model_dump(mode="json"), sort_keys=False)
        yield f"plan: {job.num_requests} clips from {job.model} into {job.to}"
        return
    made = _sample(job, shard)
    made.samples.check_all_made()
    if shard is not None:
        yield (
            f"{made.samples.num_clips} clips of part {shard} in {job.to}; once all parts are done, the same command "
            "without --shard lists and shows them together"
        )
        return
    earlier = made.num_listed - made.samples.num_clips
    beside = f" beside {earlier} of other settings" if earlier else ""
    yield f"{made.samples.num_clips} clips in {job.to}{beside}, shown in {job.to.folder / GALLERY_NAME}"
    if (training_set := made.training_set) is not None:
        rest = f"; {n} others have no latent of this model" if (n := training_set.num_left_out) else ""
        yield f"{training_set.num_clips} clips with latents in shards in {training_set.folder}{rest}"


def _checked_job(target: Path, output: Path | str, overrides: Sequence[Override], shard: Shard | None) -> _Job:
    """Read the model, the settings and the prompts, and refuse what cannot be sampled."""
    model = open_model(target)
    config, warnings = read_settings(model, overrides)
    section, to = config.sample, Output.of(output, config.cluster)
    if to.place is not None and shard is not None:
        raise ConfigError(
            f"--shard samples into a folder that the jobs of all parts see, and --output is {to}: name a folder, or "
            "sample all in one job"
        )
    if section.prompts is None:
        raise ConfigError("sample.prompts is not set; give a prompts file with --prompts")
    sampler, outputs = section.sampler(), section.files()
    check_can_sample(model, sampler)
    check_encoder(outputs.video)
    bad_rows = BadRows(section.bad_rows == "set_aside")
    prompts = PromptsFile(section.prompts, bad_rows.add)
    plan = Plan(model, sampler, prompts, config.seed, section.compare_unguided, bad_rows, outputs)
    summary = plan.check()
    warnings += prompts.notes + summary.warnings + truncation_warnings(model, sampler, prompts, summary.models)
    return _Job(model, config, sampler, outputs, plan, bad_rows, summary.num_requests, warnings, to)


def _sample(job: _Job, shard: Shard | None) -> _Sampled:
    """Make the clips that are missing, their page, and their shards where these are asked for."""
    config, output_dir = job.config, job.to.folder
    with job.to.kept(config), held_folder(output_dir, shard):
        for _ in iterate_samples(output_dir):  # a damaged manifest is refused before Ray starts
            pass
        with (
            connected(config.cluster),
            job.to.shared(config.cluster, folders_of_models(job.model, job.plan)) as files,
        ):
            samples = sample_clips(
                job.model,
                job.plan,
                output_dir,
                job.sampler,
                config.cluster.workers,
                outputs=job.outputs,
                shard=shard,
                bad_rows=job.bad_rows.reasons,
                files=files,
            )
        if shard is not None:
            return _Sampled(samples, samples.num_clips, None)
        num_listed = write_gallery(output_dir, (clip.shown() for clip in samples.all_clips))
        has_shards = "webdataset" in job.outputs.outputs
        training_set = write_training_set(output_dir, job.model, job.sampler, job.outputs) if has_shards else None
        return _Sampled(samples, num_listed, training_set)
