"""The training loop, the same for every network, on Ray's workers or in processes of torchrun.

From a configuration to a training step there are six files to read, in this order:

    pipeline/train/config.py       what can be set
    pipeline/train/stage.py        starts `train` on every worker
    pipeline/train/loop.py         this file: what happens in a step
    pipeline/train/tasks/flow.py   a batch, and the loss of a network (tasks/autoencoder.py for the autoencoder)
    pipeline/train/build.py        the network in its engine
    pipeline/engine/zero.py        forward, backward and update with DeepSpeed ZeRO

(`setup.py` constructs what surrounds a step: checkpoints, the stream of batches, monitors.)

Samples, noise, times and dropped captions are functions of the seed and of the cursor, which is the number of samples
consumed so far. The whole state of the loop is therefore the weights, the optimizer's moments, the averages of the
weights, and one integer. A training that is stopped and resumed has the same losses to the last bit.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoint.resume import exclusive_access
from pipeline.distributed.process_group import Worker
from pipeline.run import randomness
from pipeline.run.shared_files import SHARED, RunFiles
from pipeline.train.config import TrainConfig
from pipeline.train.control import NO_FLAGS, ControlFlags
from pipeline.train.memory_advice import memory_advice
from pipeline.train.monitor.step_log import StepLog
from pipeline.train.schedule import learning_rate
from pipeline.train.setup import Training, record_event, set_up
from pipeline.train.task import TrainTask, set_progress


def train(task: TrainTask, config: TrainConfig, run_dir: Path, worker: Worker, files: RunFiles = SHARED) -> None:
    """Train until `config.steps`, or until asked to stop, from the newest complete checkpoint in `run_dir`. Collective.

    Args:
        files: of the run that `run_dir` belongs to.

    Raises:
        CacheError: the cache of shards cannot be written.
        CheckpointError: no checkpoint can be used, there is no room for more, or one cannot be written.
        LockedError: another training works in `run_dir`.
        NonFiniteError: the loss or the gradient is not finite.
        SplitError: the workers of a sequence group cannot share the network or a clip.
        UnreadableError: more training samples cannot be read than `config.max_unreadable_share` allows.
        WandbError: a W&B project is configured, and W&B cannot be used.
        WeightPrecisionError: weights in bf16 are set, and this machine does not compute in it.
        WorldSizeError: the workers cannot share the global batch evenly.
        Each is raised by every rank at the same step.
    """
    with ExitStack() as stack:
        stack.enter_context(exclusive_access(run_dir, worker.rank))
        training = set_up(task, config, run_dir, worker, files, stack)
        training.monitor.start()  # validates a new training before its first step
        step, cursor = training.start.step, training.start.cursor
        log = StepLog(training.trainer, training.unreadable, training.monitor, training.metrics, cursor)
        stop = False
        while step < config.steps and not stop:
            # 1. Fetch this rank's part of the global batch, one micro-batch per gradient accumulation step.
            with log.wait.measured():
                batches = [batch.to(worker.device) for batch in next(training.batches)]

            # 2. Compute losses and gradients, and update the weights and their averages.
            rate = learning_rate(step, config)
            losses = update(training, step, batches, rate)
            step, cursor = step + 1, training.stream.plan.cursor(step + 1)
            training.heartbeat()

            # 3. Agree with the other ranks on what follows; then log, validate and make previews where they are due.
            decision = agree(training, step, cursor)
            if decision.unreadable and (note := training.unreadable.report(step, cursor)) is not None:
                record_event(run_dir, config, worker, "unreadable", step, note)
            if decision.log or decision.save:
                training.non_finite_steps.check(task.kind)  # before a save: no checkpoint holds weights that are broken
            if decision.log:
                log.collect(step, cursor, losses, rate)
            training.monitor.after_step(step)

            # 4. Publish the checkpoint that a thread has finished writing, and begin the next one.
            if decision.commit:
                training.saver.commit()
            if decision.save:
                training.saver.begin(step, cursor)
                if training.control is not None:
                    training.control.acknowledge(decision.control)
            stop = decision.stop
        training.saver.finish()
        record_event(run_dir, config, worker, "finished" if step == config.steps else "stopped", step)


def update(training: Training, step: int, batches: list[Any], rate: float) -> dict[str, Tensor]:
    """Make update number `step` (from 0): forward and backward per micro-batch, optimizer step, averages. Collective.

    Args:
        batches: this rank's micro-batches, on its device.
        rate: the learning rate.

    Returns:
        The means of this rank's losses over its micro-batches: scalars on its device.
    """
    trainer, worker = training.trainer, training.worker
    # Random numbers of layers, which only LoRA's dropout uses: the only ones that depend on the number of workers.
    randomness.seed_layers(worker.device, training.task.seed, f"{step} {worker.rank}")
    set_progress(trainer.engine.module, step, trainer.guard.num_updates(step))
    with memory_advice(training.config, worker, training.stream.plan.batch_size(step)):
        losses = trainer.step(batches, rate)
    training.non_finite_steps.record(step, losses["total"], trainer)
    if not (trainer.guard.skipped or trainer.guard.overflowed):  # otherwise the weights are unchanged
        training.ema.update(trainer.guard.num_updates(step + 1))
    return losses


@dataclass(frozen=True)
class Decision:
    """What all ranks do after a step."""

    log: bool
    save: bool
    stop: bool
    commit: bool
    """Every rank has written its part of the checkpoint in progress."""
    unreadable: bool
    """A rank could not read a sample of the batches so far, and has not yet reported it."""
    control: ControlFlags
    """What the control files asked for; on rank 0."""


def agree(training: Training, step: int, cursor: int) -> Decision:
    """Decide what follows after `step` updates and `cursor` samples, the same on every rank. Collective.

    Control files, the clock and writing threads differ between ranks, so these decisions are made together: a rank
    that saved alone would wait for the others in a collective.
    """
    config, saver = training.config, training.saver
    control = NO_FLAGS if training.control is None else training.control.poll()
    has_new = training.unreadable.has_new(cursor)
    is_writing, asked, stop, unreadable = training.flags.any_rank(saver.busy, control.save, control.stop, has_new)
    is_last = step == config.steps
    return Decision(
        log=step % config.log_every_steps == 0 or is_last,
        save=asked or stop or step % config.checkpoint_every_steps == 0 or is_last,
        stop=stop,
        commit=saver.pending and not is_writing,
        unreadable=unreadable,
        control=control,
    )
