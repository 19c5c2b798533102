"""`plan`: what a run needs on given GPUs, before any is taken."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from launch.config import RunConfig
from launch.overrides import ConfigError
from launch.plan_data import DataPlan, finished_clips, plan_data
from launch.plan_fit import nearest_fit
from launch.plan_hardware import Hardware
from launch.plan_training import (
    Trained,
    TrainingPlan,
    autoencoder_training,
    flow_training,
    plan_training,
    tokenizer_training,
)
from models.text.pretrained import read_embedding_width

PARTS = ("weights", "gradients", "optimizer", "averages", "activations", "buffers")


@dataclass(frozen=True)
class RunPlan:
    """Everything that a plan says."""

    name: str
    hardware: Hardware
    data: DataPlan
    trainings: tuple[TrainingPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every training does."""
        return all(training.fits for training in self.trainings)

    def as_json(self) -> str:
        """For scripts: bytes, hours and operations, under the names of the records."""
        trainings = [
            asdict(each) | {"memory": asdict(each.memory) | {"total": each.memory.total}} for each in self.trainings
        ]
        whole = {"name": self.name, "fits": self.fits, "hardware": asdict(self.hardware), "data": asdict(self.data)}
        return json.dumps(whole | {"trainings": trainings}, indent=1)


def plan_run(config: RunConfig, hardware: Hardware, num_clips: int | None = None) -> RunPlan:
    """Plan a run.

    Args:
        num_clips: as the user expects it; None: as counted.

    Raises:
        ConfigError: the buckets are not known before the videos are looked at.
        WorldSizeError: the GPUs cannot share a global batch evenly; names what would fit.
        PublishedError: the folder of a published autoencoder cannot be used.
    """
    buckets = _buckets(config)
    channels, compression = _latents(config)
    text = config.encode.text
    width = None if text is None else read_embedding_width(text.folder)
    data = plan_data(config, buckets, channels=channels, compression=compression, text_width=width, num_clips=num_clips)
    trainings = []
    for trained, folder in _trainings(config, buckets, channels, compression):
        planned = plan_training(trained, hardware, config.run_dir / folder)
        trainings.append(planned if planned.fits else replace(planned, ways_out=nearest_fit(trained, hardware)))
    return RunPlan(config.name, hardware, data, tuple(trainings))


def _trainings(
    config: RunConfig, buckets: tuple[Bucket, ...], channels: int, compression: Compression
) -> Iterator[tuple[Trained, str]]:
    if config.autoencoder.published is None:
        yield autoencoder_training(config, buckets), "autoencoder"
    if config.tokenizer is not None:
        yield tokenizer_training(config.tokenizer, buckets, channels, compression), "tokenizer"
    yield flow_training(config, buckets, channels, compression), "dit"


def _buckets(config: RunConfig) -> tuple[Bucket, ...]:
    if config.known_buckets is not None:
        return config.known_buckets
    if (manifest := finished_clips(config)) is not None:
        return tuple(record.bucket for record in manifest.buckets)
    raise ConfigError(
        "data.choose_buckets chooses the buckets from the videos, so a plan needs the run's clips: run stage shard "
        "first, or set data.buckets"
    )


def _latents(config: RunConfig) -> tuple[int, Compression]:
    """Channels and strides of the autoencoder that the run uses."""
    if config.autoencoder.published is None:
        return config.autoencoder.model.latent_channels, config.autoencoder.model.compression
    from pipeline.encode.published import autoencoder_stats, open_autoencoder

    stats, compression = autoencoder_stats(open_autoencoder(config.autoencoder.published))
    return stats.num_channels, compression


def describe_run_plan(plan: RunPlan) -> str:
    """The plan in a screen of text."""
    return "\n".join([*_describe_data(plan.data), *(line for t in plan.trainings for line in _describe(t, plan))])


def _describe_data(data: DataPlan) -> Iterator[str]:
    count = "?" if data.num_clips is None else f"{data.num_clips:,}"
    whole = "" if data.latent_bytes is None else f", latents {size(data.latent_bytes)}"
    yield f"data           {count} clips ({data.counted}){whole}"
    for row in data.buckets:
        clips = "" if row.num_clips is None else f", {row.num_clips:,} clips"
        yield f"  {row.bucket:18} {row.tokens:>9,} tokens, latent {size(row.latent_bytes)} a clip{clips}"
    if data.examined:
        kept = ", ".join(f"{name} {number}" for name, number in data.kept.items()) or "nothing"
        dropped = ", ".join(f"{reason} {number}" for reason, number in data.dropped.items()) or "nothing"
        yield f"  buckets keep   {kept}  (of {data.examined})"
        yield f"  and drop       {dropped}"


def _describe(training: TrainingPlan, plan: RunPlan) -> Iterator[str]:
    memory, hardware = training.memory, plan.hardware
    frozen = f", and {training.frozen_parameters:,} frozen" if training.frozen_parameters else ""
    yield ""
    yield f"{training.stage}: {training.parameters:,} parameters{frozen}"
    clips = " or ".join(
        f"{number} clips" + (f" ({name})" if len(training.clips_per_step) > 1 else "")
        for name, number in training.clips_per_step.items()
    )
    yield f"  each step      {clips}, {training.tokens_per_step:,} tokens, {training.flops_per_step:.3g} operations"
    yield f"  on each GPU    {training.micro_batch} clips at a time"
    for part in PARTS:
        yield f"    {part:12} {size(getattr(memory, part)):>10}"
    verdict = "fits" if training.fits else "DOES NOT FIT"
    yield (
        f"    {'total':12} {size(memory.total):>10}  {verdict}: {size(hardware.usable_bytes)} of "
        f"{size(hardware.memory_bytes)} can be used"
    )
    if memory.host:
        yield f"    {'host memory':12} {size(memory.host):>10}"
    if not training.fits:
        ways = " ".join(f"--set {way}" for way in training.ways_out)
        yield f"  it fits with   {ways or 'nothing that was tried: use more GPUs, or a smaller bucket or model'}"
    cost = "" if training.cost is None else f", cost {training.cost:,.2f}"
    spent = f"{duration(training.hours)}, {training.gpu_hours:,.2f} GPU-hours{cost}"
    reached = f"{training.utilisation:.1%} of the peak ({training.utilisation_is})"
    yield f"  time           {training.steps:,} steps in {spent}, at {reached}"
    yield f"  checkpoints    {size(training.checkpoint_bytes)} each, {training.kept_checkpoints} kept"


def size(number: float) -> str:
    """Such as "1.4 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.1f} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1024
    return f"{number:.1f} TiB"


def duration(hours: float) -> str:
    """Such as "3.5 h"."""
    if hours < 1 / 60:
        return f"{hours * 3600:.1f} s"
    if hours < 1:
        return f"{hours * 60:.1f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
