"""Before the first step: alone in the folder, room on the disk, and the checkpoint to go on from.

Rank 0 looks and every rank learns what it found, so that a damaged file, which one rank reads, is an
error of all, and never a rank that waits for the others.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data.files.publish import remove_unpublished
from pipeline.checkpoint.read import find_damage
from pipeline.checkpoint.record import (
    _STEP,
    FOLDER_NAME,
    LATEST_NAME,
    Checkpoint,
    CheckpointError,
    read_record,
    step_folders,
)
from pipeline.distributed.collectives import from_every_rank, from_rank_zero
from pipeline.run import lock
from pipeline.run.lock import LockedError, locked


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


LOCK_NAME = "training.lock"
ORPHANS_LIVE_SECONDS = 30.0  # the workers of a killed driver end within this time


@contextmanager
def alone_in(run_dir: Path, rank: int) -> Iterator[None]:
    """Hold the training lock of `run_dir`, on rank 0 for all; remove what interrupted writers left.

    Workers that a killed driver left are waited for, and so is proof that a holder on another machine is dead: Ray
    starts the workers again elsewhere before a lost machine's lock is stale.

    Raises:
        LockedError: on every rank: another training works there.
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
        if rank == 0:
            for folder in (run_dir, run_dir / FOLDER_NAME):  # which may be a link to another disk
                remove_unpublished(folder)  # interrupted saves, which nobody else can be writing
        yield


def agree_on_resumption(run_dir: Path, rank: int, world_size: int) -> Resumption:
    """The newest whole checkpoint; each rank reads a part of the files of every one that is considered.

    Raises:
        CheckpointError: on every rank: there are checkpoints, and none can be used.
    """

    def damage_seen_by_any(folder: Path) -> list[str]:
        return list(chain.from_iterable(from_every_rank(find_damage(folder, rank, world_size))))

    def ask_all(folder: Path) -> list[str]:
        from_rank_zero(folder)
        return damage_seen_by_any(folder)

    found: Resumption | str = ""
    if rank == 0:
        try:
            found = find_resumption(run_dir, ask_all)
        except CheckpointError as error:
            found = str(error)
        from_rank_zero(None)  # no more folders to look at
    else:
        while (folder := from_rank_zero(None)) is not None:
            damage_seen_by_any(folder)
    found = from_rank_zero(found)
    if isinstance(found, str):
        raise CheckpointError(found)
    return found
