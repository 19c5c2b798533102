"""events.jsonl: when a training started, could not read samples, stopped or finished. Lines are only ever appended."""

import time
from pathlib import Path
from typing import Literal, Self

from data.files.jsonl import append_line, read_jsonl
from data.records import Record
from pipeline.checkpoint.read import read_last_save

EVENTS_NAME = "events.jsonl"
EventKind = Literal["started", "unreadable", "stopped", "finished"]


class Event(Record):
    """One line of events.jsonl."""

    time: float  # seconds since 1970
    event: EventKind
    step: int  # number of finished steps
    world_size: int
    zero_stage: int
    note: str = ""  # shown to the user

    @classmethod
    def now(cls, event: EventKind, step: int, world_size: int, zero_stage: int, note: str = "") -> Self:
        """The event with the current time."""
        return cls(time=time.time(), event=event, step=step, world_size=world_size, zero_stage=zero_stage, note=note)


def append_event(run_dir: Path, event: Event) -> None:
    """Append one line, on a new line even where a killed process left the previous one incomplete."""
    append_line(run_dir / EVENTS_NAME, event)


def read_events(run_dir: Path) -> list[Event]:
    """All events so far, without incomplete lines."""
    return read_jsonl(run_dir / EVENTS_NAME, Event, skip_damaged=True)


def last_saved_step(run_dir: Path) -> int:
    """The last step that is known to have been saved, whether its checkpoint is still there or not; 0: none is.

    Older versions wrote no last_save.json, but a training that resumed, stopped or finished had saved a checkpoint.

    Raises:
        CheckpointError: last_save.json is damaged.
    """
    return max(
        [read_last_save(run_dir), *(event.step for event in read_events(run_dir) if event.event != "unreadable")]
    )
