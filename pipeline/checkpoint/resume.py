"""Before the first step: exclusive use of the folder, and the checkpoint to resume from.

Rank 0 decides and sends its decision to all ranks. A damaged file, which only one rank reads, is therefore an error of
every rank, and no rank waits for another that has failed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data.files.publish import remove_unpublished
from pipeline.checkpoint.read import find_damage, lost_checkpoints, way_out
from pipeline.checkpoint.record import (
    FOLDER_NAME,
    LATEST_NAME,
    Checkpoint,
    CheckpointError,
    is_checkpoint_name,
    listed,
    read_checkpoint_record,
    step_folders,
)
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.run import lock
from pipeline.run.lock import LockedError, locked, record_witnesses, witness

LOCK_NAME = "training.lock"
ORPHANS_LIVE_SECONDS = 30.0  # workers of a killed driver end within this time


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that training resumes from, and what is wrong with newer ones."""

    checkpoint: Checkpoint | None  # the newest undamaged one; None: there is none yet
    problems: list[str]


def find_resumption(run_dir: Path, find_damage: Callable[[Path], list[str]], saved_step: int) -> Resumption:
    """The checkpoint that `latest` names or, if `find_damage` reports damage, the newest undamaged one before it.

    Args:
        saved_step: the last step that is known to have been saved; 0: none is.

    Raises:
        CheckpointError: checkpoints were saved, but all are damaged or gone. Training never silently starts anew.
    """
    folders, problems = step_folders(run_dir), []
    pointer = run_dir / LATEST_NAME
    if folders or pointer.is_file():
        name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else "nothing"
        if is_checkpoint_name(name):
            folders = {step: folder for step, folder in folders.items() if step <= int(name[5:])}
            if run_dir / FOLDER_NAME / name not in folders.values():
                problems.append(f"{run_dir / FOLDER_NAME / name} is missing, but {pointer} names it")
        else:
            problems.append(f"{pointer} names {name[:40]!r}, not a checkpoint: the newest undamaged one is used")
    for folder in reversed(folders.values()):
        damage = find_damage(folder)
        if not damage:
            return Resumption(Checkpoint(folder, read_checkpoint_record(folder)), problems)
        problems += damage
    if problems:
        raise CheckpointError(f"{run_dir} has no checkpoint to resume from: {listed(problems)}. {way_out(run_dir)}")
    if saved_step:
        raise CheckpointError(lost_checkpoints(run_dir, saved_step))
    return Resumption(None, [])


@contextmanager
def exclusive_access(run_dir: Path, rank: int) -> Iterator[None]:
    """Hold the training lock of `run_dir`, on rank 0 for all ranks; remove what interrupted writers left.

    Waits for workers of a killed driver to end, and for the lock of a lost machine to become stale, unless this machine
    has witnessed it: Ray restarts the workers on another machine before that.

    Raises:
        LockedError: on every rank, if another training uses the folder.
    """
    with ExitStack() as held:
        problem = None
        if rank == 0:
            run_dir.mkdir(parents=True, exist_ok=True)
            try:
                stale_after = lock.STALE_SECONDS + lock.TOUCH_EVERY_SECONDS
                held.enter_context(locked(run_dir / LOCK_NAME, ORPHANS_LIVE_SECONDS, stale_after))
            except LockedError as error:
                problem = str(error)
        if (problem := from_rank_zero(problem)) is not None:
            raise LockedError(problem)
        witnesses = from_every_rank(witness(run_dir / LOCK_NAME))
        if rank == 0:
            record_witnesses(run_dir / LOCK_NAME, witnesses)
            for folder in (run_dir, run_dir / FOLDER_NAME):  # which may be a link to another disk
                remove_unpublished(folder)  # interrupted saves: no other process writes here
        yield


def find_common_resumption(run_dir: Path, rank: int, world_size: int, saved_step: int) -> Resumption:
    """The newest undamaged checkpoint, the same on every rank; each rank verifies a part of the files.

    Args:
        saved_step: as for `find_resumption`.

    Raises:
        CheckpointError: on every rank, if checkpoints were saved, but all are damaged or gone.
    """

    def damage_seen_by_any(folder: Path) -> list[str]:
        return list(chain.from_iterable(from_every_rank(find_damage(folder, rank, world_size))))

    def ask_all(folder: Path) -> list[str]:
        from_rank_zero(folder)
        return damage_seen_by_any(folder)

    found: Resumption | str = ""
    if rank == 0:
        try:
            found = find_resumption(run_dir, ask_all, saved_step)
        except CheckpointError as error:
            found = str(error)
        from_rank_zero(None)  # no more folders to verify
    else:
        while (folder := from_rank_zero(None)) is not None:
            damage_seen_by_any(folder)
    found = from_rank_zero(found)
    if isinstance(found, str):
        raise CheckpointError(found)
    return found
