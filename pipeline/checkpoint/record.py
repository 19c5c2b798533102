"""Sharded checkpoints: safetensors and JSON, readable without DeepSpeed or Ray, by any number of workers.

    checkpoints/step_0001000/
        rank_00000.safetensors ...   each rank's fragments of master weights, AdamW moments and averages
        ...                          attachments, such as the autoencoder of a DiT
        checkpoint.json              step, cursor, shapes, checksums, what was trained; written last
    latest                           the name of the newest checkpoint, replaced after that
    last_save.json                   the step of the newest checkpoint: evidence that there was one, if all are lost

A fragment is a range (start, length) of a flattened parameter. Together the files of a checkpoint cover every value of
every parameter exactly once, so any number of workers can read the ranges they need. `pipeline/checkpoint/write.py`
writes them.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from data.errors import ReelflowError
from data.records import Record
from pipeline.engine.loss_scale import LossScalerState
from pipeline.run.weight_names import FIRST_AVERAGE, MASTER, WeightsName

SCHEMA_VERSION = 1
CHECKPOINT_RECORD_NAME = "checkpoint.json"
LATEST_NAME = "latest"
LAST_SAVE_NAME = "last_save.json"
FOLDER_NAME = "checkpoints"
MAX_PROBLEMS = 4  # that a message lists; the others are counted
CHECKSUM = "checksum"  # a field of checkpoint.json: SHA-256 of all its other fields
T = TypeVar("T")
FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"
_FIELDS = TypeAdapter(dict[str, Any])
is_checkpoint_name = re.compile(r"step_\d{7,}").fullmatch


class CheckpointError(ReelflowError, ValueError):
    """A checkpoint is missing or cannot be used; the message names the file and the way out."""


class LastSave(Record):
    """last_save.json."""

    step: int = Field(ge=0)


class FileRecord(Record):
    """One file of a checkpoint."""

    num_bytes: int = Field(ge=0)
    sha256: str


class Provenance(Record):
    """Where the weights come from."""

    dataset: str  # SHA-256 of the dataset's index, which holds the checksum of every sample
    code: str  # fingerprint of this program's source
    versions: dict[str, str]  # of torch and DeepSpeed
    lineage: list[str]  # fingerprints of the checkpoints that training resumed from, oldest first


class CheckpointRecord(Record):
    """checkpoint.json."""

    schema_version: int = SCHEMA_VERSION
    kind: str  # "autoencoder", "tokenizer" or "dit"
    step: int = Field(ge=0)
    cursor: int = Field(ge=0)  # samples consumed
    world_size: int = Field(ge=1)
    zero_stage: int
    parameters: dict[str, list[Annotated[int, Field(ge=0)]]]  # shapes
    averages: list[str] = Field(
        default=[FIRST_AVERAGE], min_length=1
    )  # names; older versions saved one average, of this name
    files: dict[Annotated[str, Field(pattern=FILE_NAME, max_length=255)], FileRecord]  # all in the checkpoint's folder
    num_skipped_updates: int = 0  # steps without an update, which AdamW's bias correction does not count
    num_overflows: int = 0  # steps without an update because the loss scale was too large (float16)
    loss_scaler: LossScalerState | None = None  # None: the training does not use float16
    provenance: Provenance | None = None  # None: saved by an older version
    trained: dict[str, Any]  # what was trained: model config, diffusion record, latent statistics, seed, ...

    @model_validator(mode="after")
    def _check_rank_files(self) -> Self:
        if self.world_size > len(self.files):
            raise ValueError(f"{self.world_size} workers saved it, but it lists {len(self.files)} files")
        for rank in range(self.world_size):
            if rank_file(rank) not in self.files:
                raise ValueError(f"it lists no file {rank_file(rank)}")
        return self


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    record: CheckpointRecord

    @property
    def fingerprint(self) -> str:
        """A name for its contents, which changes with them."""
        return self.record.files[rank_file(0)].sha256[:16] + f"-{self.record.step}"

    def file(self, name: str) -> FileRecord:
        """Size and checksum of one of its files.

        Raises:
            CheckpointError: it has no such file.
        """
        if name not in self.record.files:
            raise CheckpointError(
                f"{self.folder / CHECKPOINT_RECORD_NAME} is damaged: it lists no file {name}; restore the checkpoint"
            )
        return self.record.files[name]

    def trained(self, name: str, read: Callable[[Any], T]) -> T:
        """A part of what was trained, as `read` makes it from its JSON value.

        Raises:
            CheckpointError: there is no such part, or `read` finds a mistake in it.
        """
        path = self.folder / CHECKPOINT_RECORD_NAME
        if name not in self.record.trained:
            raise CheckpointError(f"{path} is damaged: it does not say what {name} was trained")
        try:
            return read(self.record.trained[name])
        except ValidationError as error:
            raise CheckpointError(f"{path} is damaged: trained.{name}: {mistakes(error)}") from error

    def kind_of(self, which: WeightsName) -> str:
        """The prefix of the names of these weights' tensors in its files.

        Raises:
            CheckpointError: it holds no average of that name; the message lists those it holds.
        """
        averages = self.record.averages
        if which == FIRST_AVERAGE:
            return averages[0]
        if which not in (MASTER, *averages):
            raise CheckpointError(
                f"{self.folder} holds no weights named {which!r}: there are {', '.join((MASTER, *averages))} "
                f"({FIRST_AVERAGE} means {averages[0]})"
            )
        return which


def mistakes(error: ValidationError) -> str:
    """The mistakes of a record, each with its place, short enough for a message."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return listed([f"{'.'.join(map(str, mistake['loc']))[:80]}: {mistake['msg'][:120]}" for mistake in found])


def listed(problems: Sequence[str]) -> str:
    """Problems in one line: the first `MAX_PROBLEMS`, and the number of the others."""
    num_more = len(problems) - MAX_PROBLEMS
    more = f"; and {num_more} more" if num_more > 0 else ""
    return "; ".join(problems[:MAX_PROBLEMS]) + more


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"step_{step:07d}"


def rank_file(rank: int) -> str:
    """Name of the file with the fragments of `rank`."""
    return f"rank_{rank:05d}.safetensors"


def step_folders(run_dir: Path) -> dict[int, Path]:
    """The folders of a run's checkpoints by step, oldest first, whether complete or not."""
    found = {
        int(folder.name[5:]): folder
        for folder in (run_dir / FOLDER_NAME).glob("step_*")
        if is_checkpoint_name(folder.name)
    }
    return dict(sorted(found.items()))


def read_checkpoint_record(folder: Path) -> CheckpointRecord:
    """Read checkpoint.json of a checkpoint's folder.

    Raises:
        CheckpointError: it is missing, because the checkpoint was never finished, or it is damaged.
    """
    path = folder / CHECKPOINT_RECORD_NAME
    try:
        fields = _FIELDS.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: the checkpoint was never finished") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {mistakes(error)}") from error
    if fields.pop(CHECKSUM, None) not in (None, _checksum(fields)):  # None: saved by an older version
        raise CheckpointError(f"{path} is damaged (its checksum differs)")
    schema = fields.get("schema_version", SCHEMA_VERSION)
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} is of schema {schema}, newer than this program's {SCHEMA_VERSION}: use a newer reelflow"
        )
    try:
        return CheckpointRecord.model_validate(fields)
    except ValidationError as error:
        raise CheckpointError(f"{path} is damaged: {mistakes(error)}") from error


def sealed(record: CheckpointRecord) -> str:
    """The text of checkpoint.json: the record and a checksum of its fields."""
    fields = _FIELDS.validate_json(record.model_dump_json())
    return json.dumps(fields | {CHECKSUM: _checksum(fields)}, indent=1)


def _checksum(fields: dict[str, Any]) -> str:
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
