"""Sharded checkpoints: safetensors and JSON, readable without DeepSpeed or Ray, by any number of workers.

    checkpoints/step_0001000/
        rank_00000.safetensors ...   each rank's fragments of master weights, AdamW moments and averages
        ...                          attachments (the autoencoder beside a DiT)
        checkpoint.json              step, cursor, shapes, checksums, what was trained; written last
    latest                           the name of the newest one, moved after that

A fragment is a stretch (start, length) of a flattened parameter. Together the files of a checkpoint
tile every parameter exactly once, so any number of workers can read what it needs of it.
`pipeline/saving.py` writes them.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.shards import file_sha256
from pipeline.ema import FIRST, ShardedEma
from pipeline.loss_scale import LossScalerState
from pipeline.zero import ZeroTrainer

SCHEMA_VERSION = 1
RECORD_NAME = "checkpoint.json"
LATEST_NAME = "latest"
FOLDER_NAME = "checkpoints"
CHECKSUM = "checksum"  # in checkpoint.json, of everything else in it
MASTER = "master"  # the weights as trained

Weights = str  # "master", "ema" (the first average) or the name of an average

_FIELDS = TypeAdapter(dict[str, Any])
_STEP = re.compile(r"step_\d{7,}").fullmatch


class CheckpointError(ValueError):
    """A checkpoint that is missing or cannot be used; the message says which file and what to do."""


class FileRecord(BaseModel):
    """One file of a checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_bytes: int
    sha256: str


class Provenance(BaseModel):
    """Where the weights come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str  # SHA-256 of the dataset's index, which holds the checksum of every sample
    code: str  # fingerprint of this program's source
    versions: dict[str, str]  # of what it computes with
    lineage: list[str]  # fingerprints of the checkpoints that trainings went on from, the first one first


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
    averages: list[str] = [FIRST]  # their names, the first one first; an older program had one, of this name
    files: dict[str, FileRecord]
    num_skipped_updates: int = 0  # steps that changed nothing, which AdamW's bias correction does not count
    num_overflows: int = 0  # of float16, which changed nothing either
    loss_scaler: LossScalerState | None = None  # None: it was not float16
    provenance: Provenance | None = None  # None: saved by an older program
    trained: dict[str, Any]  # what was trained: model config, diffusion record, latent statistics, seed, ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    record: CheckpointRecord

    @property
    def fingerprint(self) -> str:
        """One name for its contents."""
        return self.record.files[rank_file(0)].sha256[:16] + f"-{self.record.step}"

    def kind_of(self, which: Weights) -> str:
        """What the tensors of these weights are filed under.

        Raises:
            CheckpointError: there is no average of that name; says which there are.
        """
        averages = self.record.averages
        if which == FIRST:
            return averages[0]
        if which not in (MASTER, *averages):
            raise CheckpointError(
                f"{self.folder} holds no weights named {which!r}: there are {', '.join((MASTER, *averages))} "
                f"({FIRST} means {averages[0]})"
            )
        return which


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"step_{step:07d}"


def rank_file(rank: int) -> str:
    """Name of the file with the fragments of `rank`."""
    return f"rank_{rank:05d}.safetensors"


def step_folders(run_dir: Path) -> dict[int, Path]:
    """The folders of a run's checkpoints by step, oldest first, whatever state they are in."""
    found = {int(folder.name[5:]): folder for folder in (run_dir / FOLDER_NAME).glob("step_*") if _STEP(folder.name)}
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Resumption:
    """Where a training goes on: its newest checkpoint that is whole, and what is wrong with those passed over."""

    checkpoint: Checkpoint | None  # None: there is none yet
    problems: list[str]


def find_resumption(run_dir: Path, find_damage: Callable[[Path], list[str]]) -> Resumption:
    """The checkpoint that `latest` names, or where `find_damage` finds it damaged the one before, and so on.

    Raises:
        CheckpointError: there are checkpoints, and none can be used: a training never silently starts again.
    """
    folders, problems = step_folders(run_dir), []
    pointer = run_dir / LATEST_NAME
    if folders or pointer.is_file():
        name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else "nothing"
        if _STEP(name):
            folders = {step: folder for step, folder in folders.items() if step <= int(name[5:])}
            if run_dir / FOLDER_NAME / name not in folders.values():
                problems.append(f"{run_dir / FOLDER_NAME / name} is missing, but {pointer} names it")
        else:
            problems.append(f"{pointer} names {name[:40]!r}, not a checkpoint: the newest whole one is taken")
    for folder in reversed(folders.values()):
        damage = find_damage(folder)
        if not damage:
            return Resumption(Checkpoint(folder, read_record(folder)), problems)
        problems += damage
    if problems:
        raise CheckpointError(
            f"{run_dir} has no checkpoint to go on from: {'; '.join(problems)}. Restore one, or to start from the "
            f"beginning move {run_dir / FOLDER_NAME} and {pointer} away"
        )
    return Resumption(None, [])


def insist_on_checkpoint(run_dir: Path) -> None:
    """For those who asked to resume: look whether there is anything to resume from.

    Raises:
        CheckpointError: there is not.
    """
    if not any(whole(folder) for folder in step_folders(run_dir).values()):
        raise CheckpointError(f"{run_dir} holds no checkpoint to resume from; without --resume training starts anew")


def read_record(folder: Path) -> CheckpointRecord:
    """checkpoint.json.

    Raises:
        CheckpointError: it is missing, so the checkpoint was never finished, or it is damaged.
    """
    path = folder / RECORD_NAME
    try:
        fields = _FIELDS.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the checkpoint was never finished") from error
    except (ValidationError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if fields.pop(CHECKSUM, None) not in (None, _checksum(fields)):  # None: saved by an older program
        raise CheckpointError(f"{path} is damaged (its checksum differs)")
    schema = fields.get("schema_version", SCHEMA_VERSION)
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} is of schema {schema}, newer than this program's {SCHEMA_VERSION}: use a newer reelflow"
        )
    try:
        return CheckpointRecord.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def sealed(record: CheckpointRecord) -> str:
    """The text of checkpoint.json, with a checksum of all the rest of it."""
    fields = _FIELDS.validate_json(record.model_dump_json())
    return json.dumps(fields | {CHECKSUM: _checksum(fields)}, indent=1)


def _checksum(fields: dict[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def find_damage(folder: Path, part: int = 0, num_parts: int = 1) -> list[str]:
    """What is wrong with a checkpoint, a line per file; files are read in full to compare checksums.

    Args:
        part, num_parts: look only at every `num_parts`-th file, so that ranks can share the reading.
    """
    try:
        files = read_record(folder).files
    except CheckpointError as error:
        return [str(error)]
    problems = (_file_damage(folder / name, files[name], whole=True) for name in sorted(files)[part::num_parts])
    return [problem for problem in problems if problem]


def whole(folder: Path) -> bool:
    """Whether every file of a checkpoint is there in its full size; nothing but checkpoint.json is read."""
    try:
        files = read_record(folder).files
    except CheckpointError:
        return False
    return not any(_file_damage(folder / name, file, whole=False) for name, file in files.items())


def _file_damage(path: Path, file: FileRecord, *, whole: bool) -> str | None:
    """What is wrong with a file; its content counts only where the `whole` of it is asked for."""
    try:
        if not path.is_file():
            return f"{path} is missing"
        if (size := path.stat().st_size) != file.num_bytes:
            return f"{path} is damaged (it has {size} of {file.num_bytes} bytes)"
        if whole and file_sha256(path) != file.sha256:
            return f"{path} is damaged (its checksum differs)"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def open_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint from its own folder, or the latest of a run's folder, its checksums verified.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names the file.
    """
    pointer = path / LATEST_NAME
    if not (path / RECORD_NAME).is_file() and pointer.is_file():
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        if not _STEP(name):
            raise CheckpointError(f"{pointer} holds {name[:40]!r} instead of a checkpoint's name; write one into it")
        path = path / FOLDER_NAME / name
    elif not (path / RECORD_NAME).is_file():
        raise CheckpointError(
            f"{path} is not a checkpoint: it holds no {RECORD_NAME} (nor {LATEST_NAME}, as a run's folder does); "
            f"train first, or name a folder like runs/NAME/dit"
        )
    if damage := find_damage(path):
        raise CheckpointError(f"{'; '.join(damage)}; restore it, or point {LATEST_NAME} to an older checkpoint")
    return Checkpoint(path, read_record(path))


def _rank_file(checkpoint: Checkpoint, rank: int) -> Any:  # noqa: ANN401 - safetensors is untyped
    """A rank's file, opened. Nothing but its header is read yet."""
    path = checkpoint.folder / rank_file(rank)
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def stream_weights(checkpoint: Checkpoint, which: Weights = FIRST) -> Iterator[tuple[str, Tensor]]:
    """Whole weights by parameter name, put together from every rank's fragments, one in memory at a time.

    Raises:
        CheckpointError: there are no such weights; names those there are.
    """
    kind = checkpoint.kind_of(which)
    with ExitStack() as opened:
        files = [opened.enter_context(_rank_file(checkpoint, rank)) for rank in range(checkpoint.record.world_size)]
        starts = [json.loads(file.metadata()["starts"]) for file in files]
        for name, shape in checkpoint.record.parameters.items():
            flat = torch.full((prod(shape),), float("nan"))
            for file, here in zip(files, starts, strict=True):
                if name in here:
                    part = file.get_tensor(f"{kind}/{name}")
                    flat[here[name] : here[name] + part.numel()] = part
            yield name, flat.reshape(shape)


def load_weights(checkpoint: Checkpoint, which: Weights = FIRST) -> dict[str, Tensor]:
    """All of them."""
    return dict(stream_weights(checkpoint, which))


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
