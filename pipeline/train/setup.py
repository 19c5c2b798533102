"""What a training needs before its first step: the network in its engine, the state to resume from, batches, monitors.

The order is fixed: all ranks take part in most of these calls and have to make them in the same order.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.stream.loader import Stream
from pipeline.checkpoint.provenance import provenance
from pipeline.checkpoint.read import newest_complete_step
from pipeline.checkpoint.record import step_folders
from pipeline.checkpoint.restore import load_training_state
from pipeline.checkpoint.resume import Resumption, find_common_resumption
from pipeline.checkpoint.retention import Retention, check_space, check_writable
from pipeline.checkpoint.write import CheckpointSaver, Contents
from pipeline.distributed.collectives import Flags
from pipeline.distributed.process_group import Worker
from pipeline.engine.compilation import compiled_code_in
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.precision import slow_precision
from pipeline.run.shared_files import RunFiles
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.control import ControlFiles
from pipeline.train.monitor.events import Event, EventKind, append_event, last_saved_step, read_events
from pipeline.train.monitor.metrics import Metrics
from pipeline.train.monitor.monitor import Monitor
from pipeline.train.monitor.wandb_sink import start_wandb
from pipeline.train.monitor.watchdog import stall_watch
from pipeline.train.non_finite_steps import NonFiniteSteps
from pipeline.train.stream import check_cursor, micro_batches, open_stream
from pipeline.train.task import TrainTask
from pipeline.train.unreadable import UnreadableSamples

COMPILED_NAME = "compiled"
"""Folder of a training that keeps compiled code; it may be deleted between starts."""


@dataclass(frozen=True)
class Start:
    """Where this start of a training begins."""

    step: int
    """Number of finished steps."""
    cursor: int
    """Number of samples that these steps consumed."""
    note: str
    """For the user; empty where a training starts for the first time."""


@dataclass(frozen=True)
class Training:
    """What the training loop works with, on one rank."""

    task: TrainTask
    config: TrainConfig
    run_dir: Path
    worker: Worker
    start: Start
    trainer: ZeroTrainer
    ema: ShardedEma
    stream: Stream
    batches: Iterator[list[Any]]
    """This rank's part of each global batch from `start.cursor` on: one micro-batch per gradient accumulation step."""
    saver: CheckpointSaver
    monitor: Monitor
    non_finite_steps: NonFiniteSteps
    unreadable: UnreadableSamples
    heartbeat: Callable[[], None]
    """Tells the stall detection that a step is done."""
    flags: Flags
    metrics: Metrics | None
    """On rank 0; None on the other ranks."""
    control: ControlFiles | None
    """On rank 0; None on the other ranks."""


def set_up(
    task: TrainTask, config: TrainConfig, run_dir: Path, worker: Worker, files: RunFiles, stack: ExitStack
) -> Training:
    """Build everything and restore the newest complete checkpoint. Collective; errors as `pipeline.train.loop.train`.

    Args:
        stack: closes what has to be closed.
    """
    is_first = worker.rank == 0
    if config.compile:  # before `build`, where the ranks wait for each other: none of them has compiled anything yet
        stack.enter_context(compiled_code_in(run_dir / COMPILED_NAME))
    trainer, ema = build(task, config, worker)
    resumption = find_common_resumption(run_dir, worker.rank, worker.world_size, last_saved_step(run_dir))
    origin = provenance(task.dataset_dir, resumption.checkpoint)
    contents = Contents(task.kind, task.metadata(), origin, task.attachments())
    start = restore(resumption, run_dir, trainer, ema)

    retention = Retention(config.keep_checkpoints, config.keep_every_steps)
    check_writable(run_dir, worker.rank)
    check_space(run_dir, trainer, ema, retention, start.step, files)
    saver = CheckpointSaver(run_dir, trainer, ema, contents, retention, start.step, files)
    stack.enter_context(closing(saver))
    saved_step = partial(files.where_whole, newest_complete_step, run_dir)

    stream = open_stream(task, config, trainer)
    check_cursor(stream, start.step, start.cursor, run_dir)
    unreadable = UnreadableSamples(run_dir, stream, trainer, start.cursor, config.max_unreadable_share, saved_step)
    collate = partial(micro_batches, task, config.gradient_accumulation_steps)
    batches = stack.enter_context(closing(stream.batches(start.cursor, collate, config.readers)))

    wandb = start_wandb(config.wandb_project, run_dir, worker.rank)
    sinks = [] if wandb is None else [wandb]
    metrics = stack.enter_context(closing(Metrics(run_dir, start.step, sinks))) if is_first else None
    monitor = Monitor(
        task, config, trainer, ema, run_dir, metrics, stream, first_step=start.step, last_step=config.steps
    )
    control = ControlFiles(run_dir, config.checkpoint_every_minutes) if is_first else None
    flags = Flags()

    slow = slow_precision(config.precision, worker.device) if is_first else ""
    note = "; ".join(text for text in (start.note, monitor.note, slow) if text)
    record_event(run_dir, config, worker, "started", start.step, note)
    limit_seconds = None if config.stall_minutes is None else 60 * config.stall_minutes
    heartbeat = stack.enter_context(stall_watch(run_dir, worker.rank, limit_seconds))
    return Training(
        task=task,
        config=config,
        run_dir=run_dir,
        worker=worker,
        start=start,
        trainer=trainer,
        ema=ema,
        stream=stream,
        batches=batches,
        saver=saver,
        monitor=monitor,
        non_finite_steps=NonFiniteSteps(run_dir, stream, config, worker.rank, saved_step),
        unreadable=unreadable,
        heartbeat=heartbeat,
        flags=flags,
        metrics=metrics,
        control=control,
    )


def restore(resumption: Resumption, run_dir: Path, trainer: ZeroTrainer, ema: ShardedEma) -> Start:
    """Load the checkpoint to resume from, if there is one.

    Raises:
        CheckpointError: the checkpoint is of another architecture.
    """
    checkpoint = resumption.checkpoint
    if checkpoint is None:
        again = "no checkpoint had been saved: training begins with step 0 again"
        return Start(step=0, cursor=0, note=again if read_events(run_dir) else "")
    step = checkpoint.record.step
    notes = [f"the average {name} begins here" for name in load_training_state(checkpoint, trainer, ema)]
    later = [folder.name for other, folder in step_folders(run_dir).items() if other > step]
    notes += [f"{', '.join(later)} will be archived by the first save"] if later else []
    note = "; ".join([*resumption.problems, *notes, f"resuming from step {step}"])
    return Start(step, checkpoint.record.cursor, note)


def record_event(
    run_dir: Path, config: TrainConfig, worker: Worker, event: EventKind, step: int, note: str = ""
) -> None:
    """Append a line to events.jsonl, on rank 0."""
    if worker.rank == 0:
        append_event(run_dir, Event.now(event, step, worker.world_size, config.zero_stage, note))
