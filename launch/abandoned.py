"""Local clusters whose command was killed: recorded when they start, and ended before the next one begins.

After `kill -9` of a command, the processes of the Ray cluster that it started go on for a while, and hold processors,
memory and ports. The records are of this machine alone, in its folder for temporary files.
"""

import logging
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR

import psutil
from pydantic import Field, ValidationError

from data.files.publish import publish_text
from data.records import Record

logger = logging.getLogger(__name__)

END_SECONDS = 10.0


class ProcessRecord(Record):
    """A process: its number is given to another one some time after its end, but not with the same start."""

    pid: int = Field(gt=0, lt=2**31)
    started: float
    """Seconds since 1970."""

    def find(self) -> psutil.Process | None:
        """The process, if it is still running."""
        try:
            process = psutil.Process(self.pid)
            is_same = process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if is_same else None


class ClusterRecord(Record):
    """A local cluster: the command that started it, and its own processes."""

    command: ProcessRecord
    processes: tuple[ProcessRecord, ...]


def records_dir() -> Path:
    """Where the clusters of this user on this machine are recorded."""
    return Path(tempfile.gettempdir()) / f"reelflow-clusters-{os.getuid()}"


def _is_private(folder: Path) -> bool:
    """Whether a folder is one that only this user writes to: others could name any of this user's processes in it."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return False
    return S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def record_of(process: psutil.Process) -> ProcessRecord:
    """The record of a running process."""
    return ProcessRecord(pid=process.pid, started=process.create_time())


def record_cluster(processes: list[psutil.Process]) -> Path | None:
    """Record the cluster of this process; the caller removes the file when the cluster has ended.

    Returns:
        The record; None where its folder is not private to this user.
    """
    records = [record_of(process) for process in processes if process.is_running()]
    this = record_of(psutil.Process())
    path = records_dir() / f"{this.pid}.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(path.parent):
        logger.warning(
            "  warning: %s can be written by others, so this cluster is not recorded there, and will not be ended if "
            "this command is killed; remove that folder",
            path.parent,
        )
        return None
    publish_text(path, ClusterRecord(command=this, processes=tuple(records)).model_dump_json())
    return path


def end_abandoned_clusters() -> int:
    """End what is left of clusters whose command does not run any more.

    Returns:
        The number of processes that were ended.
    """
    num_ended = 0
    if not _is_private(records_dir()):
        return num_ended
    for path in sorted(records_dir().glob("*.json")):
        try:
            record = ClusterRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError):
            _remove(path)  # another command has just removed it, or it was cut short
            continue
        if record.command.find() is not None:
            continue
        ended = _end([process for known in record.processes if (process := known.find()) is not None])
        path.unlink(missing_ok=True)
        if ended:
            logger.warning(
                "  warning: command %d was killed; ended %d processes of the Ray cluster that it had started",
                record.command.pid,
                ended,
            )
        num_ended += ended
    return num_ended


def _remove(path: Path) -> None:
    """Remove what is no record; what cannot be removed, such as a folder, stays."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _end(processes: list[psutil.Process]) -> int:
    """Kill processes and all that they have started; returns their number."""
    family = {process.pid: process for process in processes}
    for process in processes:
        try:
            family |= {child.pid: child for child in process.children(recursive=True)}
        except psutil.NoSuchProcess:
            continue
    for process in family.values():
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(family.values()), timeout=END_SECONDS)
    return len(family)
