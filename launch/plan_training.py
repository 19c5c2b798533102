"""What a training needs on given GPUs: memory by part, operations, time, checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from data.dataset.manifest import LatentStats, TextEncoderRecord
from launch.config import RunConfig, TokenizerSection
from launch.plan_hardware import DEFAULT_UTILISATION, Hardware
from models.text.pretrained import read_embedding_width
from pipeline.distributed.config import WorldSizeError
from pipeline.engine.config import half_weights_problem
from pipeline.train.batches import turn_sizes
from pipeline.train.build import micro_batch_size
from pipeline.train.config import TrainConfig
from pipeline.train.memory_plan import MemorySettings, WorkerMemory, worker_memory
from pipeline.train.memory_trace import StepTrace, TraceOptions, trace_step
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.throughput import flops_per_clip
from pipeline.train.tasks.autoencoder import AutoencoderTask
from pipeline.train.tasks.autoencoder_loss import Clips, PixelBatch
from pipeline.train.tasks.flow import FlowBatch, FlowTask
from pipeline.train.tasks.tokenizer import LatentBatch, TokenizerTask
from pipeline.train.tasks.tokens import TokenBatch, TokenTask

NOWHERE = Path("not-read")


@dataclass(frozen=True)
class Trained:
    """A training, as a plan sees it: the task, its settings, and a batch without values."""

    name: str
    task: AutoencoderTask | TokenizerTask | FlowTask | TokenTask
    train: TrainConfig
    buckets: tuple[Bucket, ...]
    build: Callable[[], nn.Module]
    batch: Callable[[Bucket, int], Any]
    """Of clips of a bucket; called where tensors have no values."""

    @cached_property
    def largest(self) -> Bucket:
        """The bucket with the most tokens."""
        return max(self.buckets, key=lambda bucket: bucket.num_latent_positions)

    @cached_property
    def parameter_sizes(self) -> tuple[int, ...]:
        """Values of each parameter that is trained."""
        with FakeTensorMode():
            return tuple(p.numel() for p in self.build().parameters() if p.requires_grad)


@dataclass(frozen=True)
class TrainingPlan:
    """The figures of one training."""

    stage: str
    parameters: int
    """That are trained."""
    frozen_parameters: int
    memory: WorkerMemory
    micro_batch: int
    """Clips that a worker computes at a time, of the largest bucket."""
    clips_per_step: dict[str, int]
    """By bucket."""
    tokens_per_step: int
    flops_per_step: float
    """Of all workers, forward and backward, without what checkpointing computes again."""
    steps: int
    utilisation: float
    utilisation_is: str
    """Where it is from: given, measured, or the default."""
    hours: float
    gpu_hours: float
    cost: float | None
    checkpoint_bytes: int
    kept_checkpoints: int
    fits: bool
    ways_out: tuple[str, ...] = ()
    """Settings with which it fits, nearest first in time; empty where it fits, or nothing was found."""


def autoencoder_training(config: RunConfig, buckets: tuple[Bucket, ...]) -> Trained:
    """Stage train autoencoder."""
    section = config.autoencoder
    loss = section.loss.resolved()
    task = AutoencoderTask(section.model, NOWHERE, config.seed, loss=loss, image_share=section.train.image_share)

    def batch(bucket: Bucket, clips: int) -> PixelBatch:
        size = (bucket.num_frames, bucket.height, bucket.width)
        noise = torch.empty(clips, *section.model.latent_shape(*size))
        return PixelBatch((Clips(torch.empty(clips, 3, *size), noise),))

    return Trained("train autoencoder", task, section.train, buckets, task.build, batch)


def flow_training(config: RunConfig, buckets: tuple[Bucket, ...], channels: int, compression: Compression) -> Trained:
    """Stage train dit.

    Args:
        channels: of the latents.
        compression: of the autoencoder.
    """
    section, text = config.dit, config.encode.text
    encoder = None
    if text is not None:
        width = read_embedding_width(text.folder)
        encoder = TextEncoderRecord.model_construct(width=width, max_tokens=text.max_tokens)
    task = FlowTask(
        model=section.model,
        flow=section.flow,
        buckets=buckets,
        latent_stats=LatentStats(mean=[0.0] * channels, std=[1.0] * channels),
        dataset_dir=NOWHERE,
        autoencoder_path=NOWHERE,
        seed=config.seed,
        text_encoder=encoder,
        lora=section.train.lora,
        compression=compression,
    )
    if config.tokenizer is not None:
        return _token_training(config, TokenTask.of(task, config.tokenizer.model, NOWHERE), buckets)

    def batch(bucket: Bucket, clips: int) -> FlowBatch:
        shape = (clips, channels, *bucket.latent_grid(compression))
        has_times = section.flow.times_per == "frame" or section.flow.given_share > 0
        is_given = section.flow.given_share > 0 and shape[2] > 1
        return FlowBatch(
            torch.empty(shape),
            torch.empty(shape),
            torch.empty((clips, 1, shape[2]) if has_times else clips),
            task.probe_caption(clips),
            torch.ones(clips),
            torch.ones(clips, 1, shape[2], dtype=torch.bool) if is_given else None,
        )

    return Trained("train dit", task, section.train, buckets, task.build, batch)


def _token_training(config: RunConfig, task: TokenTask, buckets: tuple[Bucket, ...]) -> Trained:
    def batch(bucket: Bucket, clips: int) -> TokenBatch:
        tokens = torch.empty((clips, task.tokens.codes, *bucket.latent_grid(task.compression)), dtype=torch.long)
        return TokenBatch(tokens, tokens, torch.empty(clips), task.probe_caption(clips), torch.ones(clips))

    return Trained("train dit", task, config.dit.train, buckets, task.build, batch)


def tokenizer_training(
    section: TokenizerSection, buckets: tuple[Bucket, ...], channels: int, compression: Compression
) -> Trained:
    """Stage train tokenizer; arguments as of `flow_training`."""
    stats = LatentStats(mean=[0.0] * channels, std=[1.0] * channels)
    task = TokenizerTask(section.model, stats, NOWHERE, 0, compression=compression)

    def batch(bucket: Bucket, clips: int) -> LatentBatch:
        return LatentBatch(torch.empty((clips, channels, *bucket.latent_grid(compression))))

    return Trained("train tokenizer", task, section.train, buckets, task.build, batch)


def weight_bytes(train: TrainConfig) -> int:
    """Of a value of the weights that a GPU computes with."""
    if train.weight_precision != "auto":
        return 2 if train.weight_precision == "bf16" else 4
    problem = half_weights_problem(train.precision, train.zero_stage, train.gradient_accumulation_steps)
    return 4 if problem else 2


def memory_settings(train: TrainConfig, num_gpus: int) -> MemorySettings:
    """What the state of a training takes on GPUs depends on."""
    return MemorySettings(
        zero_stage=train.zero_stage,
        world_size=num_gpus,
        weight_bytes=weight_bytes(train),
        num_averages=len(train.ema),
        accumulation_steps=train.gradient_accumulation_steps,
        offload=train.offload,
    )


def trace(trained: Trained, train: TrainConfig, clips: int) -> StepTrace:
    """A step of `clips` clips of the largest bucket on a GPU, whose kernels keep no scores of attention."""
    dtype = {"auto": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[train.precision]
    options = TraceOptions(
        dtype=dtype,
        half_weights=weight_bytes(train) == 2,
        recompute=train.activation_checkpointing,
        attention="sdpa",
        sequence_parallel=train.sequence_parallel,
    )
    return trace_step(trained.build, lambda: trained.batch(trained.largest, clips), options)


def plan_training(trained: Trained, hardware: Hardware, stage_dir: Path) -> TrainingPlan:
    """The figures of a training.

    Args:
        stage_dir: of the training; if it has run, its metrics have the utilisation that it reached.

    Raises:
        WorldSizeError: the GPUs cannot share the global batch evenly; names what would fit.
    """
    train, world = trained.train, hardware.num_gpus
    try:
        clips = micro_batch_size(train, world)
    except WorldSizeError as error:
        raise WorldSizeError(f"{trained.name}: {error}") from error
    traced = trace(trained, train, clips)
    memory = worker_memory(traced, memory_settings(train, world))
    sizes = turn_sizes(train, trained.buckets)
    if train.mixed_buckets:
        sizes = {trained.largest.name: train.global_batch}
    tokens = train.global_batch * trained.task.num_tokens(trained.largest)
    flops = float(train.global_batch * flops_per_clip(trained.task, trained.largest))
    utilisation, source = _utilisation(hardware, stage_dir)
    hours = train.steps * flops / (world * hardware.peak_flops * utilisation) / 3600
    state = (3 + len(train.ema)) * 4 * traced.num_trained
    return TrainingPlan(
        stage=trained.name,
        parameters=traced.num_trained,
        frozen_parameters=traced.num_frozen,
        memory=memory,
        micro_batch=clips,
        clips_per_step=sizes,
        tokens_per_step=tokens,
        flops_per_step=flops,
        steps=train.steps,
        utilisation=utilisation,
        utilisation_is=source,
        hours=hours,
        gpu_hours=hours * world,
        cost=None if hardware.price is None else hours * world * hardware.price,
        checkpoint_bytes=state,
        kept_checkpoints=train.keep_checkpoints,
        fits=memory.total <= hardware.usable_bytes,
    )


def _utilisation(hardware: Hardware, stage_dir: Path) -> tuple[float, str]:
    if hardware.utilisation is not None:
        return hardware.utilisation, "given"
    measured = [line["mfu"] for line in read_metrics(stage_dir) if line.get("mfu")]
    if measured:
        return measured[-1], f"measured in {stage_dir}"
    return DEFAULT_UTILISATION, "assumed; give --utilisation, or measure it in a short run"
