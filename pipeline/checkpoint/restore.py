"""Restoring a training's state from a checkpoint of any layout."""

import json
from typing import Any

from torch import Tensor

from pipeline.checkpoint.read import _rank_file
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.weight_names import FIRST


def load_training_state(checkpoint: Checkpoint, trainer: ZeroTrainer, ema: ShardedEma) -> list[str]:
    """Fill this rank's fragments, reading only the stretches it needs from whichever files hold them.

    The number of workers and the ZeRO stage may differ from those that saved.

    Returns:
        Names of the averages that the checkpoint does not hold: they begin with its weights.

    Raises:
        CheckpointError: the checkpoint is of another architecture; names the first difference.
    """
    _check_architecture(checkpoint, trainer.shapes)
    saved = checkpoint.record.averages
    averages = {name: ema.averages[name] for name in ema.averages if name in saved}
    if saved == [FIRST]:
        averages = {FIRST: ema.of(FIRST)}
    for rank in range(checkpoint.record.world_size):
        with _rank_file(checkpoint, rank) as file:
            _load_file(file, json.loads(file.metadata()["starts"]), trainer, averages)
    record = checkpoint.record
    trainer.num_skipped, trainer.num_overflows = record.num_skipped_updates, record.num_overflows
    trainer.restore_step_count(trainer.num_updates(record.step))
    if trainer.loss_scaler is not None and record.loss_scaler is not None:
        trainer.loss_scaler.state = record.loss_scaler
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
    for held in trainer.holdings:
        if held.name in starts:
            for kind, target in held.tensors().items():
                _fill(target, held.start, file.get_slice(f"{kind}/{held.name}"), starts[held.name])
    for fragment in trainer.fragments:
        if fragment.name in starts:
            for kind, average in averages.items():
                saved = file.get_slice(f"{kind}/{fragment.name}")
                _fill(average[fragment.name], fragment.start, saved, starts[fragment.name])


def _fill(target: Tensor, start: int, saved: Any, saved_start: int) -> None:  # noqa: ANN401 - a slice of safetensors
    """Copy the stretch that a saved fragment and `target` have in common; `start` is that of `target`."""
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
