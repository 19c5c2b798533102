"""Restoring the state of a training from a checkpoint of any number of workers and any ZeRO stage."""

from typing import Any

from torch import Tensor

from pipeline.checkpoint.fragments import open_rank_file, read_starts
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.weight_names import FIRST_AVERAGE


def load_training_state(checkpoint: Checkpoint, trainer: ZeroTrainer, ema: ShardedEma) -> list[str]:
    """Fill this rank's fragments, reading from each file only the ranges that it needs.

    The number of workers and the ZeRO stage may differ from those of the training that saved.

    Returns:
        Names of the averages that the checkpoint does not hold; they start from the restored weights.

    Raises:
        CheckpointError: the checkpoint is of another architecture; the message names the first difference.
    """
    _check_architecture(checkpoint, trainer.shapes)
    saved = checkpoint.record.averages
    averages = {name: ema.averages[name] for name in ema.averages if name in saved}
    if saved == [FIRST_AVERAGE]:
        averages = {FIRST_AVERAGE: ema.of(FIRST_AVERAGE)}
    for rank in range(checkpoint.record.world_size):
        with open_rank_file(checkpoint, rank) as file:
            _load_file(file, read_starts(file, checkpoint, rank), trainer, averages)
    record = checkpoint.record
    trainer.guard.num_skipped, trainer.guard.num_overflows = record.num_skipped_updates, record.num_overflows
    trainer.restore_step_count(trainer.guard.num_updates(record.step))
    if trainer.guard.loss_scaler is not None and record.loss_scaler is not None:
        trainer.guard.loss_scaler.state = record.loss_scaler
    trainer.publish_master()
    loaded = {id(average) for average in averages.values()}
    new = [name for name, average in ema.averages.items() if id(average) not in loaded]
    for name in new:
        ema.begin(name)
    return new


def _load_file(
    file: Any,  # noqa: ANN401 - safetensors is untyped
    starts: dict[str, int],
    trainer: ZeroTrainer,
    averages: dict[str, dict[str, Tensor]],
) -> None:
    for held in trainer.local_fragments:
        if held.name in starts:
            for kind, target in held.tensors().items():
                _fill(target, held.start, file.get_slice(f"{kind}/{held.name}"), starts[held.name])
    for fragment in trainer.fragments:
        if fragment.name in starts:
            for kind, average in averages.items():
                saved = file.get_slice(f"{kind}/{fragment.name}")
                _fill(average[fragment.name], fragment.start, saved, starts[fragment.name])


def _fill(target: Tensor, start: int, saved: Any, saved_start: int) -> None:  # noqa: ANN401 - a slice of safetensors
    """Copy the values that a saved fragment and `target` have in common; `start` is that of `target`."""
    low, high = max(start, saved_start), min(start + target.numel(), saved_start + saved.get_shape()[0])
    if low < high:
        target[low - start : high - start] = saved[low - saved_start : high - saved_start].to(target.device)


def _check_architecture(checkpoint: Checkpoint, shapes: dict[str, list[int]]) -> None:
    saved = checkpoint.record.parameters
    for name in sorted(saved.keys() | shapes.keys()):
        if saved.get(name) != shapes.get(name):
            raise CheckpointError(
                f"{checkpoint.folder} holds another architecture: {name} is {saved.get(name, 'absent')} there and "
                f"{shapes.get(name, 'absent')} in the configured model; train it in a new run or restore the old config"
            )
