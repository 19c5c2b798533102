"""Idempotence: each stage leaves a record of what it was made from, and is skipped while that stands.

`stage.json` in a stage's folder names its inputs (its own settings and the builds of the stages before
it). Started again with the same inputs, a finished stage does nothing and an interrupted one goes on;
with others, the old folder is set aside, never deleted, and the reason is said. Stages that make shards
remake in place only those that were made from something else.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from data.errors import ReelflowError
from data.files.publish import publish_text, remove_unpublished

RECORD_NAME = "stage.json"


@dataclass(frozen=True)
class Change:
    """One input that is not what it was."""

    name: str  # such as train.learning_rate
    text: str  # with both values


class ChangedError(ReelflowError, ValueError):
    """A stage that was to go on was made from something else, or from nobody knows what."""


class StageRecord(BaseModel):
    """What a stage's folder was made from, and whether it is complete."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    complete: bool = False
    build: str  # new each time the stage is made anew; the stages after it name it among their inputs
    inputs: dict[str, Any]
    outputs: list[str] = []  # files that must be there, relative to the folder
    wall_seconds: float = 0.0  # over all starts
    peak_rss_bytes: int = 0
    summary: dict[str, Any] = {}


@dataclass
class OpenStage:
    """A stage about to run: its folder, its record, and what to tell the user."""

    folder: Path
    record: StageRecord
    note: str  # why it runs: "new", "goes on", or what changed
    _begun: float

    @property
    def complete(self) -> bool:
        """Nothing to do."""
        return self.record.complete

    def save(self) -> None:
        """Write the record, with the time spent so far."""
        now = time.monotonic()
        self.record.wall_seconds += now - self._begun
        self._begun = now
        publish_text(self.folder / RECORD_NAME, self.record.model_dump_json(indent=1))

    def finish(self, outputs: list[Path], summary: dict[str, Any], peak_rss_bytes: int = 0) -> None:
        """Declare the stage complete."""
        self.record.outputs = [os.path.relpath(path, self.folder) for path in outputs]
        self.record.summary = summary
        self.record.peak_rss_bytes = max(self.record.peak_rss_bytes, peak_rss_bytes)
        self.record.complete = True
        self.save()


def begin(
    folder: Path,
    name: str,
    inputs: dict[str, Any],
    continues: dict[str, Any] | None = None,
    standing: Callable[[], int] | None = None,
    allowed_changes: Collection[str] | None = None,
    *,
    tidy: bool = True,
) -> OpenStage:
    """Look at what is in `folder` and decide: skip, go on, or start.

    Args:
        inputs: everything the output depends on; plain JSON values.
        continues: settings that may change without making the old output wrong, only unfinished
            (how many steps to train): a change of one reopens a complete stage.
        standing: how many shards in the folder the new inputs would give again; the stage remakes the others in place.
        allowed_changes: names of inputs that may differ and what is there still be gone on from; None: whatever
            differs, the stage is made anew.
        tidy: remove what interrupted writers left in the folder; False where others may be writing there still.

    Raises:
        ChangedError: other inputs differ.
    """
    inputs = json.loads(json.dumps({**inputs, "continues": continues or {}}))
    old = read_record(folder)
    note = "new"
    if old is not None:
        changed = _changes({k: v for k, v in old.inputs.items() if k != "continues"}, inputs | {"continues": None})
        if not changed:
            missing = [name for name in old.outputs if not (folder / name).exists()]
            if old.complete and not missing and old.inputs.get("continues") == inputs["continues"]:
                return OpenStage(folder, old, "nothing to do", time.monotonic())
            note = f"goes on: {missing[0]} is missing" if old.complete and missing else "goes on"
            if old.complete:  # what was made from it is not made from what it will be
                old.build = uuid.uuid4().hex[:12]
            old.complete, old.inputs = False, inputs
            return _reopened(folder, old, note, tidy=tidy)
        if allowed_changes is not None:
            refused = [change for change in changed if change.name not in allowed_changes]
            if refused:
                raise ChangedError(_refusal(folder, refused))
            old.complete, old.inputs, old.build = False, inputs, uuid.uuid4().hex[:12]
            return _reopened(folder, old, f"goes on although {_told(changed)}", tidy=tidy)
        if standing is not None and (num_standing := standing()) > 0:
            old.complete, old.inputs, old.build = False, inputs, uuid.uuid4().hex[:12]
            note = f"{_told(changed)}: {num_standing} shards stand, what depends on it is made again"
            return _reopened(folder, old, note, tidy=tidy)
        aside = set_aside(folder)
        note = f"{_told(changed)}: made again, the old one is in {aside.name}"
    elif allowed_changes is not None:
        raise ChangedError(
            f"{folder} holds no readable {RECORD_NAME}, so what it was made from is not known; restore it, or leave "
            "out --resume to train anew (the old folder is kept)"
        )
    elif folder.exists() and any(folder.iterdir()):
        aside = set_aside(folder)
        note = f"the folder held something unknown, now in {aside.name}"
    folder.mkdir(parents=True, exist_ok=True)
    stage = OpenStage(
        folder, StageRecord(stage=name, build=uuid.uuid4().hex[:12], inputs=inputs), note, time.monotonic()
    )
    stage.save()
    return stage


def read_record(folder: Path) -> StageRecord | None:
    """The record of a stage's folder, or None where there is none that can be read."""
    try:
        return StageRecord.model_validate_json((folder / RECORD_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValidationError, UnicodeDecodeError):
        return None


def set_aside(folder: Path) -> Path:
    """Give a folder a name that nobody reads, beside its own."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.superseded-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def _reopened(folder: Path, record: StageRecord, note: str, *, tidy: bool) -> OpenStage:
    """A stage that goes on in its folder; that it is not complete is on the disk before anything changes there."""
    if tidy:
        remove_unpublished(folder)
    stage = OpenStage(folder, record, note, time.monotonic())
    stage.save()
    return stage


def _refusal(folder: Path, changes: list[Change]) -> str:
    """Every difference, and the ways out."""
    lines = "".join(f"\n  {change.text}" for change in changes)
    names = " ".join(f"--allow-change {change.name}" for change in changes)
    return (
        f"{folder} was made from something else:{lines}\nset it back; or go on all the same with {names}; or leave out "
        "--resume to train anew (the old folder is kept)"
    )


def _told(changes: list[Change]) -> str:
    return "; ".join(change.text for change in changes)


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[Change]:
    """Which leaves differ; None in `new` is not compared."""
    changes = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if key in new and after is None and key not in old:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            changes += _changes(before, after, f"{prefix}{key}.")
        elif before != after:
            text = f"{prefix}{key} changed ({_short(before)} -> {_short(after)})"
            changes.append(Change(f"{prefix}{key}", text))
    return changes


def _short(value: Any) -> str:  # noqa: ANN401 - any JSON value
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
