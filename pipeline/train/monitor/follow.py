"""Following a training that runs in other processes: a progress bar, and the notes of its events."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.checkpoint.read import newest_complete_step
from pipeline.run.progress import Bar
from pipeline.run.repeating import repeating
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.watchdog import stalls

REPORT_SECONDS = 1.0


@contextmanager
def following(run_dir: Path, progress: Bar, say: Callable[[str], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Update a progress bar from metrics.jsonl while the block runs, and report notes of events and stalled ranks.

    Args:
        say: shows a line that the user should know.
        warn: shows a line that the user should act on: unreadable samples, a stalled rank.
    """
    num_reported = len(read_events(run_dir))
    start = newest_complete_step(run_dir)
    reported = set(stalls(run_dir))

    def report() -> None:
        nonlocal num_reported
        events = read_events(run_dir)
        for event in events[num_reported:]:
            if event.note and event.event == "unreadable":
                warn(f"  warning: {event.note}")
            elif event.note:
                say(f"  {event.note}")
        num_reported = len(events)
        for path, rank in stalls(run_dir).items():
            if path not in reported:
                reported.add(path)
                warn(f"  rank {rank} has made no step for a long time; its stack traces are in {path}")
        rows = [row for row in read_metrics(run_dir) if row["step"] > start]
        if rows:
            progress.update(int(rows[-1]["step"]), f"loss {rows[-1]['total']:.4f}")

    try:
        with repeating(report, REPORT_SECONDS, "reelflow-follow"):
            yield
    finally:
        report()
