"""Whether a folder, and every folder behind it, is still made from what the folders before it hold now.

The record of a stage names what it read of the folders that it was made from: fingerprints of their content
(`stage_record.py`). A folder that names another content than is there now is out of date, and so is whatever was made
from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import ReelflowError
from pipeline.run.stage_record import STAGE_RECORD_NAME, StageRecord, read_stage_record


class DamagedRecordError(ReelflowError, ValueError):
    """The record of a stage that cannot be read; the message names the file and the way out."""


@dataclass(frozen=True)
class Need:
    """What a stage reads of the folder of another one."""

    stage: str
    """Name of the stage that makes the folder."""
    content: str
    """Which of the contents that this stage declares (`Stage.contents`)."""


@dataclass(frozen=True)
class Outdated:
    """A folder that has to be made again."""

    stage: str
    """Name of the stage that makes it."""
    reason: str
    """For the user; names the folder."""


def find_outdated(run_dir: Path, folder: str, folders: Mapping[str, Mapping[str, Need]]) -> list[Outdated]:
    """The folders that have to be made again before `folder` can be used, in order; empty if it is up to date.

    A folder that was deleted is not looked at: what was made from it cannot be compared with it. One that is there, but
    whose record cannot be read, may have changed.

    Args:
        folder: of a finished stage.
        folders: of all stages, in order, each with what its stage needs; a folder is made from earlier ones only.

    Raises:
        DamagedRecordError: the record of a folder behind it cannot be read.
    """
    found: dict[str, list[Outdated]] = {}
    records: dict[str, StageRecord] = {}
    damaged: dict[str, Path] = {}  # folder -> the record that cannot be read: its own, or of a folder behind it
    order = list(folders)
    for name in order[: order.index(folder) + 1] if folder in folders else ():
        record = read_stage_record(run_dir / name)
        if record is None:
            path = run_dir / name / STAGE_RECORD_NAME
            if path.exists():
                damaged[name] = path
            continue
        if behind_it := [damaged[other] for other in record.inputs if other in damaged]:
            damaged[name] = behind_it[0]
        records[name] = record
        before = {other: need for other, need in folders[name].items() if other in found and other in record.inputs}
        behind = [outdated for other in before for outdated in found[other]]
        changed = [
            other
            for other, need in before.items()
            if records[other].complete and not records[other].is_content(record.inputs[other], need.content)
        ]
        if not record.complete:
            own = [Outdated(record.stage, f"{run_dir / name} is not finished")]
        elif changed:
            own = [Outdated(record.stage, f"{run_dir / name} was made before {' and '.join(changed)} changed")]
        else:
            own = [Outdated(record.stage, f"{run_dir / name} depends on these")] if behind else []
        found[name] = list(dict.fromkeys([*behind, *own]))
    if folder in found and folder in damaged:
        path = damaged[folder]
        raise DamagedRecordError(
            f"{path} is damaged, so it is not known whether {run_dir / folder} is out of date; restore that file, or "
            f"use `run`, which makes {path.parent.name} and what was made from it again (the old ones are kept)"
        )
    return found.get(folder, [])
