"""Which checkpoints are kept, and whether the disk has room for them."""

import shutil
import socket
import uuid
from dataclasses import dataclass
from math import prod
from pathlib import Path

from data.files.publish import TEMPORARY_PREFIX
from pipeline.checkpoint.read import is_complete
from pipeline.checkpoint.record import FOLDER_NAME, CheckpointError, step_folders
from pipeline.checkpoint.tensor_files import BYTES_PER_VALUE
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.engine.ema import ShardedEma
from pipeline.engine.zero import ZeroTrainer
from pipeline.run.shared_files import SHARED, RunFiles


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the `keep_last` newest, and those at multiples of `keep_every_steps`."""

    keep_last: int
    keep_every_steps: int | None = None

    def superseded(self, complete: dict[int, Path]) -> list[Path]:
        """Those to delete of complete checkpoints by step, oldest first. The newest is always kept."""
        old = list(complete.items())[: -max(1, self.keep_last)]
        return [folder for step, folder in old if not self.keeps_forever(step)]

    def keeps_forever(self, step: int) -> bool:
        """Whether the checkpoint of a step is never deleted."""
        return self.keep_every_steps is not None and step % self.keep_every_steps == 0


def remove_folder(folder: Path) -> None:
    """Delete a checkpoint: rename its folder first, so that no reader finds an incomplete checkpoint."""
    doomed = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_superseded(run_dir: Path, newest_step: int, retention: Retention) -> None:
    """Delete the checkpoints that `retention` does not keep, among the complete ones up to `newest_step`."""
    complete = {
        step: folder for step, folder in step_folders(run_dir).items() if step <= newest_step and is_complete(folder)
    }
    for folder in retention.superseded(complete):
        remove_folder(folder)


def check_writable(run_dir: Path, rank: int) -> None:
    """Refuse, before its first step, a training whose checkpoints cannot be written; called by all ranks.

    Every rank tries, because each writes its own file, and the folder may be mounted differently on its machine.

    Raises:
        CheckpointError: on every rank; names the folder, the reason and the machine.
    """
    folder, problem = run_dir / FOLDER_NAME, None
    probe = folder / f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir(parents=True)
        probe.rmdir()
    except OSError as error:
        is_broken_link = folder.is_symlink() and not folder.exists()
        reason = f"it is a link to {folder.readlink()}, which is missing" if is_broken_link else error.strerror
        problem = (
            f"checkpoints cannot be written to {folder} by rank {rank} on {socket.gethostname()} ({reason}); mount the "
            "disk, make the folder writable, or set runs_dir to another disk"
        )
    if problems := from_every_rank(problem):
        raise CheckpointError(problems[0])


def check_space(
    run_dir: Path,
    trainer: ZeroTrainer,
    ema: ShardedEma,
    retention: Retention,
    resumed_step: int = 0,
    files: RunFiles = SHARED,
) -> None:
    """Refuse, before its first step, a training whose checkpoints will not fit on the disk; called by all ranks.

    Args:
        resumed_step: the step that training resumes from; checkpoints of later steps are not deleted.
        files: of the run; the disk that counts is that of the whole run.

    Raises:
        CheckpointError: the disk has no room for the checkpoints that are kept and the one being written.
    """
    kinds = 3 + len(ema.averages)  # master weight, two moments, averages
    each = sum(prod(shape) for shape in trainer.shapes.values()) * kinds * BYTES_PER_VALUE  # attachments are links
    problem = None
    if trainer.rank == 0:
        problem = files.where_whole(_lack_of_space, run_dir, each, retention, resumed_step)
    if (problem := from_rank_zero(problem)) is not None:
        raise CheckpointError(problem)


def _lack_of_space(run_dir: Path, checkpoint_bytes: int, retention: Retention, resumed_step: int) -> str | None:
    folders = step_folders(run_dir).items()
    deleted = [folder for step, folder in folders if step <= resumed_step and not retention.keeps_forever(step)]
    room = sum(file.stat().st_size for folder in deleted for file in folder.glob("rank_*.safetensors"))
    keep_last, free = retention.keep_last, shutil.disk_usage(run_dir).free
    needed = max(
        checkpoint_bytes, checkpoint_bytes * (keep_last + 1) - room
    )  # the next one is written before one is deleted
    if needed <= free:
        return None
    return (
        f"{run_dir} has {free / 1e9:.3g} GB free, but its checkpoints need {needed / 1e9:.3g} GB more: "
        f"{keep_last} are kept while one is written, {checkpoint_bytes / 1e9:.3g} GB each. Free some space, "
        "lower train.keep_checkpoints where it is above 2, or set runs_dir to a larger disk"
    )
