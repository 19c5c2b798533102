"""The copy of a run in a store: fetched before the run starts, and renewed after each of its stages."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from launch.config import RunConfig
from launch.overrides import ConfigError
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.stored_run import StoredRunError, Transfer, is_stored, pull_run, push_held_run

logger = logging.getLogger(__name__)


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
    fetched = pull_run(place_of(config), config.run_dir)
    logger.info("fetched %d files of %s into %s", fetched.num_copied, place_of(config), config.run_dir)
    return fetched


@contextmanager
def renewed(config: RunConfig, *, is_last: bool = False) -> Iterator[None]:
    """Copy the run to its store when the block ends, also with an error. The caller holds the lock of the run.

    Raises:
        StoredRunError: it is the last stage, and the store does not take it; before that, it is a warning.
    """
    has_failed = True
    try:
        yield
        has_failed = False
    finally:
        if config.store is not None:
            try:
                push_held_run(config.run_dir, place_of(config), logs_alone=False)
            except StoredRunError as error:
                if is_last and not has_failed:
                    raise
                logger.warning("  warning: the run is not in its store yet: %s", error)


def place_of(config: RunConfig) -> str:
    """URI of the copy of a run."""
    return f"{str(config.store).rstrip('/')}/{config.name}"
