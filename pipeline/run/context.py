"""What every stage of one start of a run shares: its folder, how it was started, and what it says."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import ReelflowError
from pipeline.run.chain import Need, find_outdated
from pipeline.run.memory import MemoryMonitor
from pipeline.run.shared_files import SHARED, RunFiles
from pipeline.run.stage_record import OpenStage, StageRecord, begin, read_stage_record

if TYPE_CHECKING:
    from pipeline.run.stage import Stage

logger = logging.getLogger(__name__)


class StageOrderError(ReelflowError, ValueError):
    """A stage was asked for whose input has not been made."""


class StoppedError(Exception):
    """A command stopped as requested, with all that was done saved; the message says where."""


@dataclass(frozen=True)
class RunContext:
    """One start of a run."""

    run_dir: Path
    config_yaml: str
    """The resolved configuration, for the report."""
    folders: Mapping[str, Mapping[str, Need]] = field(default_factory=dict)
    """Of all stages, in order, each with what its stage needs."""
    connect: Callable[[], None] = lambda: None
    """Joins or starts the Ray cluster; called before a stage's work, any number of times."""
    on_ray: bool = True
    is_first_process: bool = True
    """False in the other processes of torchrun, which only train: the first one writes and reports."""
    retry_quarantined: bool = False
    allowed_changes: Collection[str] | None = None
    """Names of inputs that may differ when a training resumes; None: a training whose inputs changed starts anew."""
    memory: MemoryMonitor = field(default_factory=MemoryMonitor)
    files: RunFiles = SHARED
    """Its files, as workers reach them."""

    def folder_of(self, stage: "Stage") -> Path:
        """Where a stage writes."""
        return self.run_dir / stage.folder

    def finished(self, folder: str, stage_name: str) -> StageRecord:
        """The record of a finished stage's folder.

        Raises:
            StageOrderError: that stage has not finished, or a folder behind it has changed since; names the commands.
            DamagedRecordError: the record of a folder behind it cannot be read.
        """
        record = read_stage_record(self.run_dir / folder)
        if record is None or not record.complete:
            raise StageOrderError(
                f"{self.run_dir / folder} is not finished; run `{stage_name}` first, or `run` to do every stage in "
                "order"
            )
        if outdated := find_outdated(self.run_dir, folder, self.folders):
            commands = ", ".join(f"`{stage.stage}`" for stage in outdated)
            raise StageOrderError(
                f"{self.run_dir / folder} is out of date: {'; '.join(stage.reason for stage in outdated)}. Give these "
                f"commands first, in this order: {commands}; or `run`, which does every stage in order. (A training "
                "then begins anew, or goes on from its checkpoint with --allow-change and the name of the input.)"
            )
        return record

    def content_of(self, folder: str, need: Need, named: object = None) -> str:
        """The fingerprint of what a stage needs of a finished stage's folder.

        Args:
            named: what the stage's own record names, if anything. It is returned if it is still that content: records
                of older versions name it otherwise.

        Raises:
            StageOrderError, DamagedRecordError: as `finished`.
        """
        record = self.finished(folder, need.stage)
        return (
            named if isinstance(named, str) and record.is_content(named, need.content) else record.content(need.content)
        )

    def records(self, exclude: str) -> list[StageRecord]:
        """The records of all stages that have one, in order; without that of the folder `exclude`."""
        folders = [self.run_dir / name for name in self.folders if name != exclude]
        return [record for folder in folders if (record := read_stage_record(folder)) is not None]

    def peak_rss_bytes(self) -> int:
        """The most memory that this process and those it started have used together."""
        self.memory.measure()
        return self.memory.peak_rss_bytes

    @contextmanager
    def opened(self, stage: "Stage", inputs: dict[str, Any]) -> Iterator[OpenStage | None]:
        """Yield the stage's open folder, or None where there is nothing to do; log what happens.

        Raises:
            ChangedError: inputs changed that are not in `allowed_changes`.
            ReelflowError: as the two checks of the stage. After any of these, folder and record are as they were.
        """
        opened = begin(
            self.folder_of(stage),
            stage.name,
            inputs,
            stage.continues(),
            stage.describe_reuse(self),
            self.allowed_changes,
            read_contents=stage.contents,
            remove_temporary=stage.remove_temporary,
            is_whole=stage.is_whole,
            check_inputs=lambda: stage.check_inputs(self),
            check_continues=lambda: stage.check_continues(self),
        )
        if opened.complete:
            logger.info("%s: nothing to do (%s)", stage.name, _figures(opened.record.summary))
            yield None
            return
        logger.info("%s: %s", stage.name, opened.note)
        started = time.monotonic()
        try:
            if self.on_ray:
                self.connect()
            yield opened
        except BaseException:
            opened.save()  # the time spent is kept; what is finished stays, and the next start continues
            raise
        logger.info("%s: done in %.0f s (%s)", stage.name, time.monotonic() - started, _figures(opened.record.summary))


def _figures(summary: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in summary.items()
    )
