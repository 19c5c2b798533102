"""What a training that runs elsewhere tells the person who started it: a bar, and the notes of its journal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from pipeline.checkpoint.read import whole
from pipeline.checkpoint.record import step_folders
from pipeline.run.progress import Bar
from pipeline.train.monitor.events import read_events
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.watchdog import stalls


def steps_done(run_dir: Path) -> int:
    """Where the checkpoints of a training have come to."""
    return max((step for step, folder in step_folders(run_dir).items() if whole(folder)), default=0)


@contextmanager
def following(run_dir: Path, progress: Bar, say: Callable[[str], None]) -> Iterator[None]:
    """Move a bar along with the metrics the workers write, and pass on what their journal says."""
    stopped = Event()
    num_said = len(read_events(run_dir))
    start = steps_done(run_dir)
    told = set(stalls(run_dir))

    def show() -> None:
        nonlocal num_said
        events = read_events(run_dir)
        for event in events[num_said:]:
            if event.note:
                say(f"  {event.note}")
        num_said = len(events)
        for path, rank in stalls(run_dir).items():
            if path not in told:
                told.add(path)
                say(f"  rank {rank} has made no step for long; where it hangs is in {path}")
        rows = [row for row in read_metrics(run_dir) if row["step"] > start]
        if rows:
            progress.update(int(rows[-1]["step"]), f"loss {rows[-1]['total']:.4f}")

    def follow() -> None:
        while not stopped.wait(1.0):
            show()

    thread = Thread(target=follow, name="reelflow-follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        show()
