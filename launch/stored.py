"""The copy of a run in a store: fetched before the run starts, and renewed after each checkpoint and each stage."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.config import RunConfig
from launch.overrides import ConfigError
from launch.stages import FOLDERS
from pipeline.run.repeating import repeating
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.snapshot import LATEST_NAME, remove_snapshots, snapshot
from pipeline.run.stage_record import archive
from pipeline.run.stored_run import StoredRunError, Transfer, is_stored, pull_run, push_held_run
from pipeline.run.working_folder import WorkingFolder

logger = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
"""How often a run is looked at for a new checkpoint."""


def fetch(config: RunConfig) -> Transfer | None:
    """Fetch a run that is stored and has no folder here, or only a part of it because this was interrupted.

    Raises:
        ConfigError: torchrun started this process, and the others would not wait for it.
        StoredRunError: the store cannot be read.
    """
    if config.place is None:
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        field, way_out = ("runs_dir", "set it to a folder") if config.is_stored_run else ("store", "leave store out")
        raise ConfigError(
            f"{field} is in an object store, which is not for torchrun; give `pull` before it and `push` after it, and "
            f"{way_out}"
        )
    fetched = _fetched(config, config.place)
    if fetched is not None:
        logger.info("fetched %d files of %s into %s", fetched.num_copied, config.place, config.run_dir)
    return fetched


def _fetched(config: RunConfig, place: str) -> Transfer | None:
    if config.is_stored_run:
        return WorkingFolder(config.run_dir, place).update()
    if (config.run_dir / CONFIG_NAME).exists() or not is_stored(place):
        return None
    if not config.cluster.shared_folder and config.run_dir.exists():
        logger.info("copies that this machine had of the run are now in %s", archive(config.run_dir))
    return pull_run(place, config.run_dir)


@contextmanager
def renewed(config: RunConfig, *, is_last: bool = False) -> Iterator[None]:
    """Copy the run to its store when the block ends, also with an error, and meanwhile after each checkpoint.

    The caller holds the lock of the run.

    Raises:
        StoredRunError: it is the last stage, and the store does not take it; before that, it is a warning.
    """
    has_failed = True
    try:
        with _renewed_meanwhile(config):
            yield
        has_failed = False
    finally:
        if config.place is not None:
            try:
                _push(config, config.place, config.run_dir)
            except StoredRunError as error:
                if is_last and not has_failed:
                    raise
                logger.warning("  warning: the run is not in its store yet: %s", error)


def _push(config: RunConfig, place: str, folder: Path, *, show: bool = True) -> None:
    """Store the run as it is in a folder."""
    push_held_run(
        folder,
        place,
        logs_alone=False,
        show=show,
        clears=not config.cluster.shared_folder,  # workers store objects, of which some are of deleted checkpoints
        admit=WorkingFolder(config.run_dir, place).admit if config.is_stored_run else None,
    )


@contextmanager
def _renewed_meanwhile(config: RunConfig) -> Iterator[None]:
    """While the block runs, copy the run to its store whenever a training has saved a checkpoint.

    One copy at a time, of the newest checkpoint; those that are saved while it is on its way are passed over. At the
    end of the block a copy that has begun is finished.
    """
    if config.place is None:
        yield
        return
    place = config.place
    remove_snapshots(config.run_dir)
    seen = _pointers(config.run_dir)

    def look() -> None:
        nonlocal seen
        now = _pointers(config.run_dir)
        if saved := [training for training in now if now[training] != seen.get(training)]:
            seen = now if _copied(config, place, saved[0]) else seen

    with repeating(look, LOOK_SECONDS, "reelflow-store"):
        yield


def _pointers(run_dir: Path) -> dict[str, bytes]:
    """What says which checkpoint is the newest, of each training that has saved one."""
    found = {}
    for training in FOLDERS:
        with suppress(FileNotFoundError):
            found[training] = (run_dir / training / LATEST_NAME).read_bytes()
    return found


def _copied(config: RunConfig, place: str, training: str) -> bool:
    """Copy the run with the newest checkpoint of a training; False: files were moving, so it is to be tried again."""
    try:
        with snapshot(config.run_dir, training) as still:
            _push(config, place, still, show=False)
    except FileNotFoundError:
        return False
    except (StoredRunError, OSError) as error:
        logger.warning("  warning: the newest checkpoint is not in the store: %s", error)
    return True
