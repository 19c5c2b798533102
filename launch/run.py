"""One start of a run: its folder, its lock, its logs, and its stages in order."""

import logging
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from data.files.publish import publish_text
from launch.config import RunConfig, check_writable, dump_config
from launch.errors import describe
from launch.overrides import ConfigError
from launch.stages import FOLDERS, NAMES, stages_of
from launch.stored import renewed
from pipeline.run.context import RunContext, StoppedError
from pipeline.run.lock import RUN_LOCK_NAME, locked
from pipeline.run.logs import DRIVER_LOG, LOGS_NAME, file_log
from pipeline.run.memory import memory_monitor
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.shared_files import SHARED, RunFiles
from pipeline.run.signals import stopped_by_sigterm

ending = logging.getLogger("reelflow")
"""Of what ended a start. It is none of the packages' loggers, which the console shows: the command tells it there."""


@dataclass(frozen=True)
class StartOptions:
    """How a run is started."""

    on_ray: bool = True
    """False: trainings run in this process; torchrun implies it."""
    retry_quarantined: bool = False
    """Try again what an earlier start put in quarantine."""
    allowed_changes: Collection[str] | None = None
    """Names of inputs that may differ when a training resumes; None: a training whose inputs changed starts anew."""


def run_stages(config: RunConfig, names: Collection[str] = NAMES, options: StartOptions | None = None) -> None:
    """Run stages in order; each is skipped while its inputs are those that its folder was made from.

    Raises:
        ReelflowError: an input or a setting of the user cannot be used.
        StoppedError: it stopped as requested, a training after it has saved.
        StoredRunError: all stages are done, but the store does not take the run.
    """
    stages = stages_of(config, names)
    for stage in stages:
        stage.check()
    with started(config, options or StartOptions()) as run:
        for stage in stages:
            with renewed(config, is_last=stage is stages[-1]):
                stage.execute(run)


@contextmanager
def started(config: RunConfig, options: StartOptions) -> Iterator[RunContext]:
    """Hold the run's lock, write its configuration, and yield what its stages share.

    Raises:
        ConfigError: the run's folder cannot be written.
        LockedError: another process holds the lock.
    """
    # Under torchrun every process comes here; the first one writes and reports.
    is_first = int(os.environ.get("RANK", "0")) == 0
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    text = dump_config(config)
    with ExitStack() as resources:
        if is_first:
            check_writable(config.run_dir)
            resources.enter_context(locked(config.run_dir / RUN_LOCK_NAME))
            publish_text(config.run_dir / CONFIG_NAME, text)
            resources.enter_context(file_log(config.run_dir / LOGS_NAME / DRIVER_LOG))
            resources.enter_context(_ending_logged())
        is_alone = by_torchrun or not options.on_ray
        files = SHARED if is_alone or config.cluster.shared_folder else _stored_files(config, str(config.place))
        yield RunContext(
            run_dir=config.run_dir if files.is_shared else config.run_dir.resolve(),  # as on the other machines
            config_yaml=text,
            folders=FOLDERS,
            connect=_connect_once(config, files, resources),
            on_ray=not is_alone,
            is_first_process=is_first,
            retry_quarantined=options.retry_quarantined,
            allowed_changes=options.allowed_changes,
            memory=resources.enter_context(memory_monitor()),
            files=files,
        )


def _stored_files(config: RunConfig, place: str) -> RunFiles:
    """The files of a run whose machines share its store alone.

    Raises:
        ConfigError: a part of the run's folder is a link, which other machines do not have.
    """
    from pipeline.distributed.stored_files import StoredFiles

    for path in config.run_dir.iterdir():
        if path.is_symlink():
            raise ConfigError(
                f"cluster.shared_folder is false, and {path} is a link, which other machines do not have: move what it "
                "leads to into its place"
            )
    return StoredFiles.new(config.run_dir, place, parts=config.cluster.shard_parts)


@contextmanager
def _ending_logged() -> Iterator[None]:
    """Write to the log what ends the block early: a request to stop, an error of the user, a bug with its traceback."""
    try:
        yield
    except (KeyboardInterrupt, StoppedError) as stop:
        ending.warning("%s", str(stop) or "interrupted")
        raise
    except Exception as error:
        message = describe(error)
        ending.error("%s", message or "an unexpected error", exc_info=message is None)
        raise


def _connect_once(config: RunConfig, files: RunFiles, resources: ExitStack) -> Callable[[], None]:
    """What joins or starts the Ray cluster at its first call; it is left with `resources`."""
    is_connected = False

    def connect() -> None:
        nonlocal is_connected
        if not is_connected:
            from launch.cluster import check_folder, connected
            from launch.rules import refuse_local_videos
            from pipeline.distributed.machines import other_machines

            resources.enter_context(connected(config.cluster))
            if files.is_shared:
                check_folder(config.cluster, config.run_dir)
            elif other_machines(config.cluster.workers):
                try:
                    refuse_local_videos(config)
                except ValueError as error:
                    raise ConfigError(str(error)) from error
            resources.enter_context(files.served())
            resources.enter_context(stopped_by_sigterm(f"the run in {config.run_dir} was stopped"))
            is_connected = True

    return connect
