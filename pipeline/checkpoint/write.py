"""Writing checkpoints while training continues.

A save copies this rank's fragments to host memory and returns; a thread writes them. Once the files of all ranks are on
the disk, rank 0 commits: it writes checkpoint.json with every checksum, renames the folder, and replaces `latest`. A
process that is killed at any instruction leaves the previous checkpoint as it was.
"""

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files.checksums import file_sha256
from data.files.publish import TEMPORARY_PREFIX, fsync, publish_text
from pipeline.checkpoint.read import newest_complete_step
from pipeline.checkpoint.record import (
    CHECKPOINT_RECORD_NAME,
    FOLDER_NAME,
    LAST_SAVE_NAME,
    LATEST_NAME,
    CheckpointError,
    CheckpointRecord,
    FileRecord,
    LastSave,
    Provenance,
    checkpoint_name,
    listed,
    rank_file,
    sealed,
    step_folders,
)
from pipeline.checkpoint.retention import Retention, remove_folder, remove_superseded
from pipeline.checkpoint.tensor_files import write_tensors
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.engine.ema import ShardedEma
from pipeline.engine.loss_scale import LossScalerState
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.objects import StoredRunError
from pipeline.run.shared_files import SHARED, RunFiles, SupersededError
from pipeline.run.stage_record import archive


class SaveError(CheckpointError):
    """A checkpoint could not be written; raised by every rank. Earlier checkpoints are intact."""


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds besides the tensors of the training."""

    kind: str
    trained: dict[str, Any]
    provenance: Provenance
    attachments: list[Path]


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    step: int
    cursor: int
    num_skipped: int
    num_overflows: int
    loss_scaler: LossScalerState | None
    folder: Path
    written: "Future[FileRecord]"


class CheckpointSaver:
    """Saves checkpoints in a thread, one at a time. All ranks call `begin`, `commit` and `finish` at the same step."""

    def __init__(
        self,
        run_dir: Path,
        trainer: ZeroTrainer,
        ema: ShardedEma,
        contents: Contents,
        retention: Retention,
        resumed_step: int = 0,
        files: RunFiles = SHARED,
    ) -> None:
        self._run_dir = run_dir
        self._trainer = trainer
        self._ema = ema
        self._contents = contents
        self._retention = retention
        self._files = files
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="reelflow-save")
        self._pending: _Pending | None = None
        # Computed once, in the thread: attachments may be larger than the trained network. `find_damage` checks later.
        self._attached = self._executor.submit(_attached, contents.attachments if trainer.rank == 0 else [])
        self._newer_folders = [folder for step, folder in step_folders(run_dir).items() if step > resumed_step]
        # Kept between saves: freeing it would not help the next save, and allocating new pages triples the pause.
        self._snapshot: dict[str, Tensor] = {}

    @property
    def pending(self) -> bool:
        """Whether a checkpoint was begun and is not yet committed; the same on every rank."""
        return self._pending is not None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing its part of a checkpoint."""
        return self._pending is not None and not self._pending.written.done()

    def begin(self, step: int, cursor: int) -> None:
        """Copy this rank's part to host memory and start writing it; waits for the previous save.

        Raises:
            SaveError: the previous save could not be written.
        """
        self.finish()
        attempt = from_rank_zero(uuid.uuid4().hex[:8])  # files of an interrupted save have another name
        folder = self._run_dir / FOLDER_NAME / f"{TEMPORARY_PREFIX}{checkpoint_name(step)}-{attempt}"
        tensors, starts = self._take_snapshot()
        path = folder / rank_file(self._trainer.rank)
        written = self._executor.submit(self._write, path, tensors, {"starts": json.dumps(starts)})
        trainer, scaler = self._trainer, self._trainer.guard.loss_scaler
        state = None if scaler is None else scaler.state
        self._pending = _Pending(
            step, cursor, trainer.guard.num_skipped, trainer.guard.num_overflows, state, folder, written
        )

    def commit(self) -> None:
        """Publish the checkpoint once every rank has written its part.

        Raises:
            SaveError: a rank could not write its part; the message names the rank and the file.
        """
        pending, self._pending = self._pending, None
        assert pending is not None
        own = _outcome(pending.written.result, f"rank {self._trainer.rank} cannot write {pending.folder}")
        everyone = from_every_rank(own)
        problems = [outcome for outcome in everyone if isinstance(outcome, _Failure)]
        if self._trainer.rank == 0 and not problems:
            files = {rank_file(r): file for r, file in enumerate(everyone) if isinstance(file, FileRecord)}
            outcome = _outcome(partial(self._publish, pending, files), f"rank 0 cannot publish {pending.folder}")
            problems = [outcome] if isinstance(outcome, _Failure) else []
        problems = from_rank_zero(problems)
        if problems:
            shutil.rmtree(pending.folder, ignore_errors=True)  # frees its space on a full disk
            kept = self._files.where_whole(newest_complete_step, self._run_dir)
            before = f"The checkpoint of step {kept} is intact" if kept else "No checkpoint had been saved before it"
            raise SaveError(
                f"the checkpoint of step {pending.step} was not saved: {listed([failure.text for failure in problems])}"
                f". {before}: {problems[0].way_out} and start again"
            )
        self._files.discard(pending.folder)
        if self._trainer.rank == 0:
            whole = self._files.where_whole
            self._executor.submit(whole, remove_superseded, self._run_dir, pending.step, self._retention)

    def finish(self) -> None:
        """Wait for the save in progress, if there is one, and commit it."""
        if self.pending:
            self.commit()

    def close(self) -> None:
        """Wait for this rank's thread. A save that was not committed is removed by the next start."""
        self._executor.shutdown(wait=True)

    def _take_snapshot(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Copies in host memory of this rank's fragments, by name, and the start of each in its flattened parameter."""
        fragments, averages = self._trainer.fragments, self._ema.averages
        for fragment in fragments:
            views = fragment.tensors() | {name: average[fragment.name] for name, average in averages.items()}
            for kind, view in views.items():
                name = f"{kind}/{fragment.name}"
                if name not in self._snapshot:
                    self._snapshot[name] = torch.empty_like(view, device="cpu")
                self._snapshot[name].copy_(view)
        return self._snapshot, {fragment.name: fragment.start for fragment in fragments}

    def _write(self, path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> FileRecord:
        written = write_tensors(path, tensors, metadata)
        self._files.publish(path)
        return written

    def _publish(self, pending: _Pending, files: dict[str, FileRecord]) -> FileRecord:
        for attachment, file in self._attached.result().items():
            os.link(attachment, pending.folder / attachment.name)  # a hard link: no second copy
            files[attachment.name] = file
        record = CheckpointRecord(
            kind=self._contents.kind,
            step=pending.step,
            cursor=pending.cursor,
            world_size=self._trainer.world_size,
            zero_stage=self._trainer.stage,
            parameters=self._trainer.shapes,
            averages=list(self._ema.averages),
            files=files,
            num_skipped_updates=pending.num_skipped,
            num_overflows=pending.num_overflows,
            loss_scaler=pending.loss_scaler,
            provenance=self._contents.provenance,
            trained=self._contents.trained,
        )
        publish_text(pending.folder / CHECKPOINT_RECORD_NAME, sealed(record))
        attached = [pending.folder / path.name for path in self._attached.result()]
        self._files.publish(*attached, record=pending.folder / CHECKPOINT_RECORD_NAME)
        self._files.where_whole(publish_folder, self._run_dir, pending.folder, pending.step, self._newer_folders)
        self._newer_folders.clear()
        return files[rank_file(0)]


def publish_folder(run_dir: Path, folder: Path, step: int, newer_folders: Sequence[Path]) -> None:
    """Make a folder with all files of a checkpoint the newest checkpoint of a training.

    Args:
        newer_folders: damaged ones, which a restart must not find newer than this one.
    """
    final = run_dir / FOLDER_NAME / checkpoint_name(step)
    if final.exists():  # damaged, or never named by `latest`: otherwise training had resumed from it
        remove_folder(final)
    folder.rename(final)
    fsync(final.parent)
    publish_text(run_dir / LATEST_NAME, final.name + "\n")
    publish_text(run_dir / LAST_SAVE_NAME, LastSave(step=step).model_dump_json() + "\n")
    for newer in newer_folders:
        if newer != final and newer.exists():
            archive(newer)


def _attached(paths: list[Path]) -> dict[Path, FileRecord]:
    return {path: FileRecord(num_bytes=path.stat().st_size, sha256=file_sha256(path)) for path in paths}


@dataclass(frozen=True)
class _Failure:
    """Why a file could not be written, and what to do before the next start."""

    text: str
    way_out: str


def _outcome(write: Callable[[], FileRecord], doing: str) -> FileRecord | _Failure:
    """What `write` returned, or why it failed."""
    try:
        return write()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "free some space"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            way_out = "make the folder writable"
        else:
            way_out = "repair the disk, or set runs_dir to another one,"
        return _Failure(f"{doing}: {error.strerror or error}", way_out)
    except (StoredRunError, SupersededError) as error:
        return _Failure(f"{doing}: {error}", "make the store reachable")
