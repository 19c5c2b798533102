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
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data.errors import ReelflowError
from data.records import Record
from pipeline.engine.loss_scale import LossScalerState
from pipeline.run.weight_names import FIRST, MASTER, Weights

SCHEMA_VERSION = 1
RECORD_NAME = "checkpoint.json"
LATEST_NAME = "latest"
FOLDER_NAME = "checkpoints"
CHECKSUM = "checksum"  # in checkpoint.json, of everything else in it
_FIELDS = TypeAdapter(dict[str, Any])
_STEP = re.compile(r"step_\d{7,}").fullmatch


class CheckpointError(ReelflowError, ValueError):
    """A checkpoint that is missing or cannot be used; the message says which file and what to do."""


class FileRecord(Record):
    """One file of a checkpoint."""

    num_bytes: int
    sha256: str


class Provenance(Record):
    """Where the weights come from."""

    dataset: str  # SHA-256 of the dataset's index, which holds the checksum of every sample
    code: str  # fingerprint of this program's source
    versions: dict[str, str]  # of what it computes with
    lineage: list[str]  # fingerprints of the checkpoints that trainings went on from, the first one first


class CheckpointRecord(Record):
    """checkpoint.json."""

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
