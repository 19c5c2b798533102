"""The training loop, the same for the autoencoder and the DiT, on Ray or as a plain process.

Which samples, which noise, which times: everything is addressed by the cursor (how many samples the run
has consumed), so the loop's whole state is the weights, the moments, the EMA and one integer.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import torch

from pipeline.checkpoint.provenance import provenance
from pipeline.checkpoint.record import step_folders
from pipeline.checkpoint.restore import load_training_state
from pipeline.checkpoint.resume import agree_on_resumption, alone_in
from pipeline.checkpoint.retention import Retention, check_space
from pipeline.checkpoint.write import CheckpointSaver, Contents
from pipeline.distributed.collectives import Flags
from pipeline.distributed.process_group import Worker
from pipeline.run import randomness
from pipeline.train.build import build
from pipeline.train.config import TrainConfig
from pipeline.train.control import NOTHING, Requests
from pipeline.train.monitor.events import Event, EventKind, append_event
from pipeline.train.monitor.metrics import MetricsWriter
from pipeline.train.monitor.monitor import Watch
from pipeline.train.monitor.step_log import StepLog
from pipeline.train.monitor.wandb_run import start_wandb
from pipeline.train.monitor.watchdog import stall_watch
from pipeline.train.non_finite_steps import BadSteps
from pipeline.train.schedule import learning_rate
from pipeline.train.stream import check_cursor, in_pieces, open_stream
from pipeline.train.task import TrainTask


def train(task: TrainTask, config: TrainConfig, run_dir: Path, worker: Worker) -> None:
    """Train to `config.steps`, or until asked to stop, from the newest whole checkpoint in `run_dir`.

    Raises:
        CacheError: the cache of shards cannot be written.
        CheckpointError: none can be used, there is no room for more, or one cannot be written.
        NonFiniteError: the loss or the gradient is not finite.
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
            torch.manual_seed(randomness.number(task.seed, "layers", f"{step} {worker.rank}"))
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
