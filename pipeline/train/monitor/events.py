"""events.jsonl: where a training started, from what, and how it ended. Lines are only ever appended."""

import time
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError

from data.records import Record

JOURNAL_NAME = "events.jsonl"
EventKind = Literal["started", "stopped", "finished"]


class Event(Record):
    """One thing that happened to a training."""

    time: float
    event: EventKind
    step: int
    world_size: int
    zero_stage: int
    note: str = ""  # for people

    @classmethod
    def now(cls, event: EventKind, step: int, world_size: int, zero_stage: int, note: str = "") -> Self:
        """The event, at this moment."""
        return cls(time=time.time(), event=event, step=step, world_size=world_size, zero_stage=zero_stage, note=note)


def append_event(run_dir: Path, event: Event) -> None:
    """Write one line. A line cut short by a kill is passed over by readers, so the next one begins anew."""
    with (run_dir / JOURNAL_NAME).open("a", encoding="utf-8") as file:
        file.write("\n" + event.model_dump_json() if file.tell() else event.model_dump_json())


def read_events(run_dir: Path) -> list[Event]:
    """All events so far."""
    path = run_dir / JOURNAL_NAME
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            events.append(Event.model_validate_json(line))
        except ValidationError:
            continue  # cut short
    return events
