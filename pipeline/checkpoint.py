"""Sharded checkpoints: safetensors and JSON, published atomically, readable without DeepSpeed or Ray.

    checkpoints/step_0001000/
        rank_00000.safetensors ...   each rank's fragments of master weights, AdamW moments and EMA
        checkpoint.json              step, cursor, shapes, checksums, and the record of what was trained
        ...                          attachments (the autoencoder beside a DiT)
    latest                           the name of the newest one, written last

A fragment is a stretch (start, length) of a flattened parameter. Together the files of a checkpoint
tile every parameter exactly once, so any number of workers can read what it needs of it.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data.publish import TEMPORARY_PREFIX, fsync, publish_text
from data.shards import file_sha256
from pipeline.ema import ShardedEma
from pipeline.zero import ZeroTrainer

SCHEMA_VERSION = 1
RECORD_NAME = "checkpoint.json"
LATEST_NAME = "latest"
FOLDER_NAME = "checkpoints"

Weights = Literal["master", "ema"]


class CheckpointError(ValueError):
    """A checkpoint that is missing or cannot be used; the message says which file and what to do."""


class FileRecord(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_bytes: int
    sha256: str


class CheckpointRecord(BaseModel):
    """checkpoint.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    kind: str  # "autoencoder" or "dit"
    step: int
    cursor: int  # samples consumed
    world_size: int
    zero_stage: int
    parameters: dict[str, list[int]]  # shapes
    files: dict[str, FileRecord]
    trained: dict[str, Any]  # what was trained: model config, diffusion record, latent statistics, seed, ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    record: CheckpointRecord

    @property
    def fingerprint(self) -> str:
        """One name for its contents."""
        return self.record.files["rank_00000.safetensors"].sha256[:16] + f"-{self.record.step}"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"step_{step:07d}"


def save_checkpoint(
    run_dir: Path,
    trainer: ZeroTrainer,
    ema: ShardedEma,
    *,
    kind: str,
    step: int,
    cursor: int,
    zero_stage: int,
    trained: dict[str, Any],
    attachments: list[Path],
    keep_last: int,
) -> None:
    """Write and publish a checkpoint; called by every rank at the same step.

    Each rank writes its own file. Only when all are on the disk does rank 0 rename the folder, then move
    `latest`, then delete what is older than the `keep_last` newest.
    """
    rank = dist.get_rank()
    attempt = _broadcast(uuid.uuid4().hex[:8])
    parent = run_dir / FOLDER_NAME
    temporary = parent / f"{TEMPORARY_PREFIX}{checkpoint_name(step)}-{attempt}"
    temporary.mkdir(parents=True, exist_ok=True)

    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    for fragment in trainer.fragments:
        starts[fragment.name] = fragment.start
        tensors |= {f"{kind}/{fragment.name}": tensor for kind, tensor in fragment.tensors().items()}
        tensors[f"ema/{fragment.name}"] = ema.values[fragment.name]
    path = temporary / f"rank_{rank:05d}.safetensors"
    contiguous = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"starts": json.dumps(starts)})
    fsync(path)
    own = FileRecord(num_bytes=path.stat().st_size, sha256=file_sha256(path))
    everyone: list[FileRecord | None] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)  # also the barrier: every file is on the disk from here on

    if rank == 0:
        files = {f"rank_{r:05d}.safetensors": record for r, record in enumerate(everyone) if record is not None}
        for attachment in attachments:
            os.link(attachment, temporary / attachment.name)  # the same bytes, not a second copy
            files[attachment.name] = FileRecord(num_bytes=attachment.stat().st_size, sha256=file_sha256(attachment))
        record = CheckpointRecord(
            kind=kind,
            step=step,
            cursor=cursor,
            world_size=dist.get_world_size(),
            zero_stage=zero_stage,
            parameters=trainer.shapes,
            files=files,
            trained=trained,
        )
        publish_text(temporary / RECORD_NAME, record.model_dump_json(indent=1))
        final = parent / checkpoint_name(step)
        if final.exists():  # left by an earlier attempt that `latest` never named
            shutil.rmtree(final)
        temporary.rename(final)
        fsync(parent)
        publish_text(run_dir / LATEST_NAME, final.name + "\n")
        for old in sorted(parent.glob("step_*"))[:-keep_last]:
            shutil.rmtree(old)
    dist.barrier()


def _broadcast(value: str) -> str:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def find_latest(run_dir: Path) -> Checkpoint | None:
    """The newest published checkpoint of a run, or None where there is none yet.

    Raises:
        CheckpointError: `latest` names a checkpoint that is not there or is damaged.
    """
    pointer = run_dir / LATEST_NAME
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8").strip()
    if not name.startswith("step_") or "/" in name:
        raise CheckpointError(f"{pointer} holds {name[:40]!r} instead of a checkpoint's name; write one into it")
    return open_checkpoint(run_dir / FOLDER_NAME / name)


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint from its own folder, or the latest of a run's folder, its checksums verified.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names the file.
    """
    if not (path / RECORD_NAME).is_file():
        if (path / LATEST_NAME).is_file():
            checkpoint = find_latest(path)
            assert checkpoint is not None
            return checkpoint
        raise CheckpointError(
            f"{path} is not a checkpoint: it holds no {RECORD_NAME} (nor {LATEST_NAME}, as a run's folder does); "
            f"train first, or name a folder like runs/NAME/dit"
        )
    try:
        record = CheckpointRecord.model_validate_json((path / RECORD_NAME).read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path / RECORD_NAME} is damaged: {error}") from error
    for name, file in record.files.items():
        if not (path / name).is_file():
            raise CheckpointError(
                f"{path / name} is missing; restore it, or point {LATEST_NAME} to an older checkpoint"
            )
        if (path / name).stat().st_size != file.num_bytes or file_sha256(path / name) != file.sha256:
            raise CheckpointError(
                f"{path / name} is damaged (its checksum differs); restore it, or point {LATEST_NAME} to an older one"
            )
    return Checkpoint(path, record)


def _rank_files(checkpoint: Checkpoint) -> Iterator[tuple[Any, dict[str, int]]]:
    """Every rank's file, opened, with the starts of its fragments. Nothing is read yet."""
    for rank in range(checkpoint.record.world_size):
        path = checkpoint.folder / f"rank_{rank:05d}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                yield file, json.loads(file.metadata()["starts"])
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error


def load_weights(checkpoint: Checkpoint, which: Weights = "ema") -> dict[str, Tensor]:
    """Whole weights by parameter name, put together from every rank's fragments."""
    shapes = checkpoint.record.parameters
    flat = {name: torch.full((prod(shape),), float("nan")) for name, shape in shapes.items()}
    for file, starts in _rank_files(checkpoint):
        for name, start in starts.items():
            part = file.get_tensor(f"{which}/{name}")
            flat[name][start : start + part.numel()] = part
    return {name: flat[name].reshape(shape) for name, shape in shapes.items()}


def load_training_state(checkpoint: Checkpoint, trainer: ZeroTrainer, ema: ShardedEma) -> None:
    """Fill this rank's fragments, reading only the stretches it needs from whichever files hold them.

    The number of workers and the ZeRO stage may differ from those that saved.

    Raises:
        CheckpointError: the checkpoint is of another architecture; names the first difference.
    """
    _check_architecture(checkpoint, trainer.shapes)
    for file, starts in _rank_files(checkpoint):
        for held in trainer.holdings:
            if held.name in starts:
                for kind, target in held.tensors().items():
                    _fill(target, held.start, file.get_slice(f"{kind}/{held.name}"), starts[held.name])
        for fragment in trainer.fragments:
            if fragment.name in starts:
                target = ema.values[fragment.name]
                _fill(target, fragment.start, file.get_slice(f"ema/{fragment.name}"), starts[fragment.name])
    trainer.restore_step_count(checkpoint.record.step)
    trainer.publish_master()


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
