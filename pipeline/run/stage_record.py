"""The record of a stage's folder: what it was made from, and whether it is complete. It decides what a start has to do.

`stage.json` holds the inputs of the stage: its own settings, and fingerprints of what it reads of the folders before
it. With the same inputs a complete stage is skipped and an interrupted one continues. With other inputs the old folder
is archived under another name, never deleted, and the changed inputs are named. Stages that make shards keep those
whose own inputs did not change.

Content decides, not the time of making: a folder that is made again with the same content leaves what was made from it
valid. Older versions named a folder by the id of its build instead, new at each making; their records stay valid until
the content changes.
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

STAGE_RECORD_NAME = "stage.json"


@dataclass(frozen=True)
class Change:
    """One input whose value changed."""

    name: str  # such as train.learning_rate
    text: str  # with both values


class ChangedError(ReelflowError, ValueError):
    """A stage that has to resume was made from other inputs, or its inputs are unknown."""


class BrokenLinkError(ReelflowError, ValueError):
    """What a complete stage made lies behind a link that leads nowhere; the message names the link and the way out."""


class StageRecord(BaseModel):
    """What a stage's folder was made from, and whether it is complete."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    complete: bool = False
    build: str  # random id, new whenever the folder is worked on; names its content if `contents` does not
    inputs: dict[str, Any]
    outputs: list[str] = []  # files that must exist, relative to the folder
    wall_seconds: float = 0.0  # over all starts
    peak_rss_bytes: int = 0
    summary: dict[str, Any] = {}
    contents: dict[
        str, str
    ] = {}  # fingerprints of what later stages may read; empty: not finished, or an older version
    earlier_builds: dict[str, dict[str, str]] = {}  # build that records of older versions may name -> its contents

    def content(self, name: str) -> str:
        """The fingerprint of one of its contents, which a stage that reads it names among its inputs."""
        return self.contents.get(name, self.build)

    def is_content(self, named: object, name: str) -> bool:
        """Whether what a later stage named among its inputs is the present content of that name."""
        if not isinstance(named, str):
            return False
        return self.content(name) in (named, self.earlier_builds.get(named, {}).get(name))


@dataclass
class OpenStage:
    """A stage that is running: its folder, its record, and what to tell the user."""

    folder: Path
    record: StageRecord
    note: str  # why it runs: "new", "continues", or what changed
    _started: float

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return self.record.complete

    def save(self) -> None:
        """Write the record, with the time spent so far."""
        now = time.monotonic()
        self.record.wall_seconds += now - self._started
        self._started = now
        publish_text(self.folder / STAGE_RECORD_NAME, self.record.model_dump_json(indent=1))

    def finish(
        self,
        outputs: list[Path],
        summary: dict[str, Any],
        peak_rss_bytes: int = 0,
        contents: dict[str, str] | None = None,
    ) -> None:
        """Declare the stage complete."""
        self.record.contents = contents or {}
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
    describe_reuse: Callable[[], str | None] | None = None,
    allowed_changes: Collection[str] | None = None,
    *,
    read_contents: Callable[[Path], dict[str, str]] = lambda _: {},
    remove_temporary: bool = True,
    is_whole: Callable[[Path], bool] = Path.exists,
    check_inputs: Callable[[], None] = lambda: None,
    check_continues: Callable[[], None] = lambda: None,
) -> OpenStage:
    """Compare the inputs with the folder's record: skip the stage, continue it, or start it anew.

    Args:
        inputs: everything the output depends on; JSON values.
        continues: settings whose change makes a complete output unfinished, not wrong (how many steps to train).
        describe_reuse: says what the new inputs would use again, in place; None: nothing.
        allowed_changes: names of inputs that may differ when the stage resumes; None: it starts anew if any differs.
        read_contents: fingerprints of what later stages may read of a finished folder, for a record without them.
        remove_temporary: remove files of interrupted writers; False where other processes may still be writing.
        is_whole: whether an output of a complete stage can be used; if not, the stage continues.
        check_inputs: called unless there is nothing to do; what it raises leaves folder and record as they are.
        check_continues: called before a folder is continued; what it raises leaves folder and record as they are.

    Raises:
        ChangedError: other inputs differ.
        BrokenLinkError: an output of a complete stage lies behind a link that leads nowhere. As after any error of
            the two checks, the record is as it was.
    """
    inputs = json.loads(json.dumps({**inputs, "continues": continues or {}}))
    old = read_stage_record(folder)
    if old is None:
        if allowed_changes is not None:
            raise ChangedError(
                f"{folder} holds no readable {STAGE_RECORD_NAME}, so its inputs are not known; restore it, or leave "
                "out --resume to train anew (the old folder is kept)"
            )
        check_inputs()
        holds_something = folder.exists() and any(folder.iterdir())
        note = f"the folder held something unknown, now in {archive(folder).name}" if holds_something else "new"
        return _new(folder, name, inputs, note)

    def reopened(note: str, *, is_same_build: bool = False) -> OpenStage:
        """The stage continues in its folder; its record says "not complete" before any file there changes."""
        check_inputs()
        check_continues()
        old.earlier_builds = _earlier_builds(old, folder, read_contents)
        if not is_same_build:
            old.build = _new_build()
        old.complete, old.inputs, old.contents = False, inputs, {}
        if remove_temporary:
            remove_unpublished(folder)
        stage = OpenStage(folder, old, note, time.monotonic())
        stage.save()
        return stage

    changed = _changes({k: v for k, v in old.inputs.items() if k != "continues"}, inputs | {"continues": None})
    if not changed:
        missing = [name for name in old.outputs if not is_whole(folder / name)]
        if old.complete and not missing and old.inputs.get("continues") == inputs["continues"]:
            return OpenStage(folder, old, "nothing to do", time.monotonic())
        if old.complete:
            _refuse_broken_links(folder, missing)
        lack = "is cut short" if missing and (folder / missing[0]).exists() else "is missing"
        note = f"continues: {missing[0]} {lack}" if old.complete and missing else "continues"
        return reopened(note, is_same_build=not old.complete)
    if allowed_changes is not None:
        if refused := [change for change in changed if change.name not in allowed_changes]:
            raise ChangedError(_refusal(folder, refused))
        return reopened(f"continues although {_listed(changed)}")
    if describe_reuse is not None and (reuse := describe_reuse()) is not None:
        return reopened(f"{_listed(changed)}: {reuse}")
    check_inputs()
    earlier = _earlier_builds(old, folder, read_contents)
    note = f"{_listed(changed)}: made again, the old one is in {archive(folder).name}"
    return _new(folder, name, inputs, note, earlier)


def _earlier_builds(
    record: StageRecord, folder: Path, read_contents: Callable[[Path], dict[str, str]]
) -> dict[str, dict[str, str]]:
    """What the builds that later stages may name held, before anything changes in the folder."""
    if not record.complete or record.contents:
        return record.earlier_builds
    try:
        return {record.build: contents} if (contents := read_contents(folder)) else {}
    except (ReelflowError, OSError):  # nothing can be compared with a damaged folder
        return {}


def _refuse_broken_links(folder: Path, missing: list[str]) -> None:
    """Refuse to make outputs again that are on a disk which is not mounted: what follows would be out of date."""
    for path in (folder / name for name in missing):
        link = next((part for part in (path, *path.parents) if part.is_symlink() and not part.exists()), None)
        if link is not None:
            raise BrokenLinkError(
                f"{path} is missing because the link {link} leads to {link.readlink()}, which is not there: mount its "
                "disk, or remove the link to make again what is missing"
            )


def _new(
    folder: Path, name: str, inputs: dict[str, Any], note: str, earlier: dict[str, dict[str, str]] | None = None
) -> OpenStage:
    """Start a stage in an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    record = StageRecord(stage=name, build=_new_build(), inputs=inputs, earlier_builds=earlier or {})
    stage = OpenStage(folder, record, note, time.monotonic())
    stage.save()
    return stage


def _new_build() -> str:
    return uuid.uuid4().hex[:12]


def read_stage_record(folder: Path) -> StageRecord | None:
    """The record of a stage's folder, or None where there is none that can be read."""
    try:
        return StageRecord.model_validate_json((folder / STAGE_RECORD_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValidationError, UnicodeDecodeError):
        return None


def archive(folder: Path) -> Path:
    """Rename a folder to `NAME.superseded-N`, beside it; returns the new path."""
    archived = superseded_path(folder)
    folder.rename(archived)
    return archived


def superseded_path(folder: Path) -> Path:
    """The first of the paths `NAME.superseded-N`, beside a folder, that is free."""
    number = 1
    while (archived := folder.with_name(f"{folder.name}.superseded-{number}")).exists():
        number += 1
    return archived


def _refusal(folder: Path, changes: list[Change]) -> str:
    """Every difference, and the ways out."""
    lines = "".join(f"\n  {change.text}" for change in changes)
    names = " ".join(f"--allow-change {change.name}" for change in changes)
    return (
        f"{folder} was made from something else:{lines}\nset it back; or resume all the same with {names}; or leave "
        "out --resume to train anew (the old folder is kept)"
    )


def _listed(changes: list[Change]) -> str:
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
