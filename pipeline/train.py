"""The training loop, the same for the autoencoder and the DiT, on Ray or as a plain process.

Which samples, which noise, which times: everything is addressed by the cursor (how many samples the run
has consumed), so the loop's whole state is the weights, the moments, the EMA and one integer.
"""

import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import nn

from data.buckets import Bucket, batch_sizes
from data.cache import CacheConfig, CacheError
from data.loader import Sample, Stream, Subset
from models.layers import BlockStack
from pipeline import seeds
from pipeline.agree import Flags, from_every_rank
from pipeline.bad_steps import BadSteps
from pipeline.checkpoint import CheckpointError, load_training_state, step_folders
from pipeline.ema import FIRST, ShardedEma
from pipeline.ema_profile import EmaProfiles, FixedDecay, profile_names
from pipeline.journal import Event, EventKind, append_event
from pipeline.loss_scale import LossScaling
from pipeline.metrics import MetricsWriter
from pipeline.provenance import provenance
from pipeline.requests import NOTHING, Requests
from pipeline.resume import agree_on_resumption, alone_in
from pipeline.saving import CheckpointSaver, Contents, Retention, check_space
from pipeline.sequence import check_tokens, split_tokens
from pipeline.step_log import StepLog
from pipeline.validation import RAW
from pipeline.wandb_run import start_wandb
from pipeline.watch import Watch, WatchConfig, WatchedTask
from pipeline.watchdog import stall_watch
from pipeline.workers import Worker, WorldSizeError
from pipeline.zero import Offload, ZeroStage, ZeroTrainer

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainConfig(WatchConfig):
    """How a network is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(default=1000, ge=1)
    global_batch: int = Field(default=32, ge=1)  # samples per step over all workers, of the largest bucket
    batch_multiple: int = Field(
        default=4, ge=1
    )  # batches of smaller buckets are multiples of it: workers must divide it
    accumulate: int = Field(default=1, ge=1)  # each worker computes its part of a batch in so many pieces
    sequence_parallel: int = Field(
        default=1, ge=1
    )  # workers that share each sample of the DiT: a part of its tokens each
    readers: int = Field(default=1, ge=0)  # threads that read ahead, of each worker
    cache: CacheConfig | None = None  # copies of shards on a fast disk of each machine
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    warmup_steps: int = Field(default=50, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip_norm: float = Field(default=1.0, gt=0)
    bad_steps: Literal["stop", "skip"] = "stop"  # whose loss or gradient is not finite, or beyond `max_norm`
    max_norm: float | None = Field(default=None, gt=0)  # of a gradient before clipping, over all workers
    ema: EmaProfiles = (FixedDecay(decay=0.995),)  # averages of the weights; a number is a fixed decay
    precision: Precision = "auto"
    loss_scaling: LossScaling = LossScaling()  # of fp16
    activation_checkpointing: bool = False  # the DiT's blocks are computed again in backward, for their memory
    compile: bool = False  # by torch.compile, once for each bucket; needs a compiler on every worker
    zero_stage: ZeroStage = 2
    offload: Offload = "none"  # what lies in host memory; at ZeRO 2 and 3, the parameters at 3
    checkpoint_every_steps: int = Field(default=250, ge=1)
    checkpoint_every_minutes: float | None = Field(default=None, gt=0)  # also, where steps are slow
    keep_checkpoints: int = Field(default=2, ge=2)  # the newest
    keep_every_steps: int | None = Field(default=None, ge=1)  # and for good those at multiples of this
    log_every_steps: int = Field(default=10, ge=1)
    # Without a step: every rank writes its stacks to stalls/; before the collectives' timeout ends a rank that waits.
    stall_minutes: float | None = Field(default=4, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _take_old_name(cls, fields: Any) -> Any:  # noqa: ANN401 - what a configuration may hold
        if isinstance(fields, dict) and "ema_decay" in fields:
            old = fields["ema_decay"]
            return {name: value for name, value in fields.items() if name != "ema_decay"} | {"ema": old}
        return fields

    @model_validator(mode="after")
    def _check_offload(self) -> Self:
        least = {"none": 0, "optimizer": 2, "optimizer_and_parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"offload is {self.offload!r}, which takes ZeRO {least}{' or 3' if least < 3 else ''}, but zero_stage "
                f"is {self.zero_stage}: set zero_stage to {least}, or offload to none"
            )
        return self

    @model_validator(mode="after")
    def _check_averages(self) -> Self:
        names = [FIRST, *profile_names(self.ema)]
        for field, known in (("validate_weights", [RAW, *names]), ("sample_weights", names)):
            chosen = getattr(self, field)
            for name in (chosen,) if isinstance(chosen, str) else chosen:
                if name not in known:
                    raise ValueError(f"{field} names {name!r}, but ema gives {', '.join(known)}")
        return self

    @classmethod
    def pacing(cls) -> set[str]:
        """Fields that may differ from one start to the next: what is learnt is the same, but for the order of sums.

        Of `steps` that holds with a constant rate; a cosine is drawn anew over the whole length, so a training that was
        finished goes on at a higher rate than it ended with.
        """
        prefixes = ("checkpoint_", "keep_", "log_", "stall_")
        pacing = {
            "steps",
            "zero_stage",
            "offload",
            "accumulate",
            "activation_checkpointing",
            "compile",
            "readers",
            "cache",
            "sequence_parallel",
        }
        pacing |= {"bad_steps", "max_norm"}  # steps that went well stay as they were
        return pacing | {*WatchConfig.model_fields} | {name for name in cls.model_fields if name.startswith(prefixes)}


class TrainTask(WatchedTask, Protocol):
    """What the loop needs to know of a network; frozen records, pickled to the workers."""

    @property
    def kind(self) -> str:
        """Either "autoencoder" or "dit"."""
        ...

    @property
    def seed(self) -> int:
        """What all randomness of the run starts from."""
        ...

    def build(self) -> nn.Module:
        """The network inside its loss: forward(batch) gives {"total": scalar, ...}."""
        ...

    @property
    def dataset_dir(self) -> Path:
        """Where the shards are."""
        ...

    def subsets(self) -> list[Subset]:
        """What to train on, by shape and dataset."""
        ...

    def prepare(self, samples: list[Sample]) -> Any:  # noqa: ANN401 - the task's own batch type, with .to(device)
        """A batch of tensors, made in the loader's thread."""
        ...

    def trained(self) -> dict[str, Any]:
        """What a reader of the checkpoint has to know."""
        ...

    def attachments(self) -> list[Path]:
        """Files that go into every checkpoint."""
        ...


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate for update number `step` (from 0): a linear warm-up, then constant or half a cosine to a tenth."""
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The type to compute in, or None for float32. "auto" takes bfloat16 where the hardware multiplies in it."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bf16()
        return torch.bfloat16 if fast else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 products (AVX512-BF16 or AMX)."""
    cpu_flags = Path("/proc/cpuinfo")
    flags = cpu_flags.read_text(encoding="utf-8", errors="replace") if cpu_flags.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute in the type `autocast_dtype` names."""
    dtype = autocast_dtype(precision, device)
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def build(task: TrainTask, config: TrainConfig, worker: Worker) -> tuple[ZeroTrainer, ShardedEma]:
    """The network in its engine and its average, as they are before the first step.

    Raises:
        SplitError: the workers of a sequence group cannot share the network.
        WorldSizeError: the workers cannot share the global batch evenly.
    """
    num_shares, remainder = divmod(worker.world_size, config.sequence_parallel)
    if remainder:
        sizes = [size for size in range(1, worker.world_size + 1) if worker.world_size % size == 0]
        nearest = min(sizes, key=lambda size: abs(size - config.sequence_parallel))
        raise WorldSizeError(
            f"train.sequence_parallel is {config.sequence_parallel}, but {worker.world_size} workers do not form "
            f"groups of that many: use {nearest}"
        )
    num_pieces = num_shares * config.accumulate
    micro_batch, remainder = divmod(config.global_batch, num_pieces)
    if remainder:
        nearest = max(1, round(config.global_batch / num_pieces)) * num_pieces
        pieces = f", in {config.accumulate} pieces each (train.accumulate)" if config.accumulate > 1 else ""
        groups = " groups of" if config.sequence_parallel > 1 else ""
        raise WorldSizeError(
            f"train.global_batch is {config.global_batch}, but {num_shares}{groups} workers must divide it{pieces}: "
            f"use {nearest}"
        )
    torch.manual_seed(task.seed)  # initial weights; everything later is addressed
    module = task.build().to(worker.device)
    for stack in (part for part in module.modules() if isinstance(part, BlockStack)):
        stack.recompute = config.activation_checkpointing
    if config.sequence_parallel > 1:
        split_tokens(module, worker.rank, worker.world_size, config.sequence_parallel)
    if config.compile:
        compile_network(module)
    trainer = ZeroTrainer(
        module,
        device=worker.device,
        dtype=autocast_dtype(config.precision, worker.device),
        stage=config.zero_stage,
        offload=config.offload,
        micro_batch=micro_batch,
        accumulate=config.accumulate,
        sequence_parallel=config.sequence_parallel,
        max_norm=(config.max_norm or math.inf) if config.bad_steps == "skip" else None,
        loss_scaling=config.loss_scaling if config.precision == "fp16" else None,
        weight_decay=config.weight_decay,
        betas=config.betas,
        clip=config.clip_norm,
    )
    return trainer, ShardedEma(trainer.fragments, config.ema)


def compile_network(module: nn.Module) -> None:
    """Compile the blocks of a stack, which are alike and compiled once for all; a module without stacks as a whole.

    What lies around the blocks is little work, and looks at values, which a compiled graph cannot.
    """
    stacks = [part for part in module.modules() if isinstance(part, BlockStack)]
    for part in chain.from_iterable(stacks) if stacks else [module]:
        part.compile()


def train(task: TrainTask, config: TrainConfig, run_dir: Path, worker: Worker) -> None:
    """Train to `config.steps`, or until asked to stop, from the newest whole checkpoint in `run_dir`.

    Raises:
        CacheError: the cache of shards cannot be written.
        CheckpointError: none can be used, there is no room for more, or one cannot be written.
        FloatingPointError: the loss or the gradient is not finite.
        LockedError: another training works in `run_dir`.
        SplitError: the workers of a sequence group cannot share the network or a clip.
        WandbError: a W&B project is named, and W&B cannot be used.
        WorldSizeError: the workers cannot share the global batch evenly.
        Each is raised by every rank at the same step, so a restart would meet it again.
    """
    with ExitStack() as stack:
        stack.enter_context(alone_in(run_dir, worker.rank))
        trainer, ema = build(task, config, worker)
        resumption = agree_on_resumption(run_dir, worker.rank, worker.world_size)
        contents = Contents(
            task.kind, task.trained(), provenance(task.dataset_dir, resumption.checkpoint), task.attachments()
        )
        retention = Retention(config.keep_checkpoints, config.keep_every_steps)
        step, cursor, note = 0, 0, ""
        if (checkpoint := resumption.checkpoint) is not None:
            begun = [f"the average {name} begins here" for name in load_training_state(checkpoint, trainer, ema)]
            step, cursor = checkpoint.record.step, checkpoint.record.cursor
            beyond = [folder.name for other, folder in step_folders(run_dir).items() if other > step]
            begun += [f"{', '.join(beyond)} will be set aside by the first save"] if beyond else []
            note = "; ".join([*resumption.problems, *begun, f"resuming from step {step}"])
        check_space(run_dir, trainer, ema, retention, step)
        saver = stack.enter_context(closing(CheckpointSaver(run_dir, trainer, ema, contents, retention, step)))
        stream = open_stream(task, config, trainer)
        check_cursor(stream, step, cursor, run_dir)
        prepare = partial(in_pieces, task.prepare, config.accumulate)
        batches = stack.enter_context(closing(stream.batches(cursor, prepare, config.readers)))
        wandb_run = start_wandb(config.wandb_project, run_dir, worker.rank)
        metrics = stack.enter_context(closing(MetricsWriter(run_dir, step, wandb_run))) if worker.rank == 0 else None
        watch = Watch(task, config, trainer, ema, run_dir, metrics, stream, first_step=step, last_step=config.steps)
        requests = Requests(run_dir, config.checkpoint_every_minutes) if worker.rank == 0 else None
        flags = Flags()

        def happened(event: EventKind, note: str = "") -> None:
            if worker.rank == 0:
                append_event(run_dir, Event.now(event, step, worker.world_size, config.zero_stage, note))

        happened("started", note)
        limit = None if config.stall_minutes is None else 60 * config.stall_minutes
        moved = stack.enter_context(stall_watch(run_dir, worker.rank, limit))
        bad = BadSteps(run_dir, stream, config, worker.rank)
        watch.begin()
        step_log, stop = StepLog(trainer, stream, watch, metrics, cursor), False
        while step < config.steps and not stop:
            rate = learning_rate(step, config)
            with step_log.wait.measured():
                pieces = [piece.to(worker.device) for piece in next(batches)]
            # What layers draw: dropout, of LoRA alone. The one thing that depends on how many workers there are.
            torch.manual_seed(seeds.number(task.seed, "layers", f"{step} {worker.rank}"))
            with memory_advice(config, worker, stream.plan.batch_size(step)):
                losses = trainer.step(pieces, rate)
            bad.note(step, losses["total"], trainer)
            step, cursor = step + 1, stream.plan.cursor(step + 1)
            if not (trainer.skipped or trainer.overflowed):
                ema.update(trainer.num_updates(step))
            moved()

            wish = requests.look() if requests is not None else NOTHING
            writing, asked, stop = flags.any_rank(saver.busy, wish.save, wish.stop)
            save = asked or stop or step % config.checkpoint_every_steps == 0 or step == config.steps
            log = step % config.log_every_steps == 0 or step == config.steps
            if log or save:
                bad.check(task.kind)
                step_log.look(step, cursor, losses, rate, write=log)
            watch.after(step)
            if saver.pending and not writing:
                saver.commit()
            if save:
                saver.begin(step, cursor)
                if requests is not None:
                    requests.done(wish)
        saver.finish()
        happened("finished" if step == config.steps else "stopped")


def open_stream(task: TrainTask, config: TrainConfig, trainer: ZeroTrainer) -> Stream:
    """This rank's part of every batch; called by all.

    Raises:
        CacheError: a worker's machine cannot keep its cache of shards.
        SplitError: the workers of a sequence group cannot share a clip.
        WorldSizeError: the workers cannot share the batches of every bucket.
    """
    subsets = task.subsets()
    buckets = [subset.bucket for subset in subsets]
    sizes = batch_sizes(buckets, config.global_batch, config.batch_multiple)
    share, num_shares = trainer.data_rank, trainer.data_world_size
    check_world(sizes, num_shares * config.accumulate, config.batch_multiple)
    for bucket in buckets:
        check_tokens(bucket.name, task.num_tokens(bucket) // bucket.num_latent_frames, config.sequence_parallel)
    stream, problem = None, None
    try:
        stream = Stream(subsets, sizes, seed=task.seed, rank=share, world_size=num_shares, cache=config.cache)
    except CacheError as error:  # of one machine's disk, and nobody may go on without the others
        problem = f"{error} (on {socket.gethostname()})"
    if problems := from_every_rank(problem):
        raise CacheError(problems[0])
    assert stream is not None
    return stream


def fitting_worlds(config: TrainConfig, buckets: Iterable[Bucket], most: int) -> list[int]:
    """The numbers of workers up to `most` that share the batches of every bucket evenly."""
    sizes = [config.global_batch, *batch_sizes(buckets, config.global_batch, config.batch_multiple).values()]
    together, pieces = config.sequence_parallel, config.accumulate
    return [
        number
        for number in range(together, most + 1, together)
        if all(size % (number // together * pieces) == 0 for size in sizes)
    ]


def in_pieces(prepare: Callable[[list[Sample]], Any], num_pieces: int, samples: list[Sample]) -> list[Any]:
    """A rank's part of a batch, prepared in equal pieces."""
    size = len(samples) // num_pieces
    return [prepare(samples[at : at + size]) for at in range(0, len(samples), size)]


def check_world(sizes: Mapping[str, int], num_pieces: int, multiple: int) -> None:
    """Refuse a world that cannot share the batches of every bucket.

    Raises:
        WorldSizeError: names the bucket and the way out.
    """
    for bucket, size in sizes.items():
        if size % num_pieces:
            raise WorldSizeError(
                f"batches of bucket {bucket} hold {size} clips, which do not divide over {num_pieces} workers (or "
                f"pieces, with train.accumulate): set train.batch_multiple (it is {multiple}) to "
                f"{math.lcm(multiple, num_pieces)}"
            )


def check_cursor(stream: Stream, step: int, cursor: int, run_dir: Path) -> None:
    """Refuse to go on with other batches than those that were counted.

    Raises:
        CheckpointError: says what to restore.
    """
    if (expected := stream.plan.cursor(step)) != cursor:
        raise CheckpointError(
            f"{run_dir} was saved after {step} steps and {cursor} samples, but batches as they are now would have "
            f"taken {expected}: restore train.global_batch, train.batch_multiple, data.mix and the data, or train in a "
            "new run"
        )


@contextmanager
def memory_advice(config: TrainConfig, worker: Worker, batch_size: int) -> Iterator[None]:
    """Say which knob to turn where a GPU has too little memory.

    Raises:
        OutOfMemoryError: with the numbers.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        each = batch_size * config.sequence_parallel // worker.world_size // config.accumulate
        knobs = [f"train.accumulate={2 * config.accumulate}"] if each > 1 else []
        knobs += ["train.activation_checkpointing=true"] if not config.activation_checkpointing else []
        knobs += [f"train.zero_stage={config.zero_stage + 1}"] if config.zero_stage < 3 else []
        knobs += ["train.offload=optimizer"] if config.zero_stage >= 2 and config.offload == "none" else []
        knobs += ["a smaller bucket or model"] if not knobs else []
        raise torch.OutOfMemoryError(
            f"rank {worker.rank} has too little memory for {each} clips at a time at ZeRO stage {config.zero_stage}; "
            f"set {' or '.join(knobs)} ({str(error).splitlines()[0]})"
        ) from error
