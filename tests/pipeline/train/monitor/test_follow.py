"""Whoever waits for a training is told of its events, and of a rank that has stalled."""

from pipeline.run.progress import bar
from pipeline.train.monitor.events import Event, append_event
from pipeline.train.monitor.follow import following


def test_unreadable_samples_are_a_warning_and_other_notes_are_not(tmp_path):
    said, warned = [], []
    with bar("train", 2, "steps") as progress, following(tmp_path, progress, said.append, warned.append):
        append_event(tmp_path, Event.now("started", 0, 1, 0, "resuming from step 0"))
        append_event(tmp_path, Event.now("unreadable", 1, 1, 0, "3 of 10 training samples cannot be read"))
        append_event(tmp_path, Event.now("finished", 2, 1, 0))
    assert said == ["  resuming from step 0"]
    assert warned == ["  warning: 3 of 10 training samples cannot be read"]


def test_the_person_who_waits_is_told_of_a_stall(tmp_path):
    said: list[str] = []
    with bar("train", 2, "steps") as progress, following(tmp_path, progress, print, said.append):
        (tmp_path / "stalls").mkdir()
        for process in (7, 8):  # started again, it hangs again
            (tmp_path / "stalls" / f"rank_00001-{process}.txt").write_text("rank 1\nFile x\n")
    paths = [tmp_path / "stalls" / f"rank_00001-{process}.txt" for process in (7, 8)]
    assert said == [f"  rank 1 has made no step for a long time; its stack traces are in {path}" for path in paths]
