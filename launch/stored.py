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

logger = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
"""How often a run is looked at for a new checkpoint."""


def fetch(config: RunConfig) -> Transfer | None:
    """Fetch a run that is stored and has no folder here, or only a part of it because this was interrupted.

    Raises:
        ConfigError: torchrun started this process, and the others would not wait for it.
        StoredRunError: the store cannot be read.
    """
    if config.store is None:
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("store is not for torchrun; give `pull` before it and `push` after it, and leave store out")
    if (config.run_dir / CONFIG_NAME).exists() or not is_stored(place_of(config)):
        return None
    if not config.cluster.shared_folder and config.run_dir.exists():
        logger.info("copies that this machine had of the run are now in %s", archive(config.run_dir))
    fetched = pull_run(place_of(config), config.run_dir)
    logger.info("fetched %d files of %s into %s", fetched.num_copied, place_of(config), config.run_dir)
    return fetched


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
        if config.store is not None:
            try:
                push_held_run(config.run_dir, place_of(config), logs_alone=False, clears=_clears(config))
            except StoredRunError as error:
                if is_last and not has_failed:
                    raise
                logger.warning("  warning: the run is not in its store yet: %s", error)


def _clears(config: RunConfig) -> bool:
    """Whether workers store objects, of which some are of checkpoints that have been deleted since."""
    return not config.cluster.shared_folder


def place_of(config: RunConfig) -> str:
    """URI of the copy of a run."""
    return f"{str(config.store).rstrip('/')}/{config.name}"


@contextmanager
def _renewed_meanwhile(config: RunConfig) -> Iterator[None]:
    """While the block runs, copy the run to its store whenever a training has saved a checkpoint.

    One copy at a time, of the newest checkpoint; those that are saved while it is on its way are passed over. At the
    end of the block a copy that has begun is finished.
    """
    if config.store is None:
        yield
        return
    remove_snapshots(config.run_dir)
    seen = _pointers(config.run_dir)

    def look() -> None:
        nonlocal seen
        now = _pointers(config.run_dir)
        if saved := [training for training in now if now[training] != seen.get(training)]:
            seen = now if _copied(config, saved[0]) else seen

    with repeating(look, LOOK_SECONDS, "reelflow-store"):
        yield


def _pointers(run_dir: Path) -> dict[str, bytes]:
    """What says which checkpoint is the newest, of each training that has saved one."""
    found = {}
    for training in FOLDERS:
        with suppress(FileNotFoundError):
            found[training] = (run_dir / training / LATEST_NAME).read_bytes()
    return found


def _copied(config: RunConfig, training: str) -> bool:
    """Copy the run with the newest checkpoint of a training; False: files were moving, so it is to be tried again."""
    try:
        with snapshot(config.run_dir, training) as still:
            push_held_run(still, place_of(config), logs_alone=False, show=False, clears=_clears(config))
    except FileNotFoundError:
        return False
    except (StoredRunError, OSError) as error:
        logger.warning("  warning: the newest checkpoint is not in the store: %s", error)
    return True
