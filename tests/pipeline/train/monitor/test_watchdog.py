"""A rank that makes no progress leaves a stack trace; one that does leaves none."""

import os
import time

from pipeline.train.monitor.watchdog import stall_watch, stalls


def test_a_rank_that_hangs_says_where(tmp_path):
    def wait_for_nothing() -> None:
        time.sleep(1.0)

    with stall_watch(tmp_path, 3, 0.2) as moved:
        moved()
        wait_for_nothing()
    path = tmp_path / "stalls" / f"rank_00003-{os.getpid()}.txt"
    assert stalls(tmp_path) == {path: 3}
    text = path.read_text()
    assert text.startswith("rank 3, process ")
    assert "wait_for_nothing" in text


def test_a_rank_that_moves_leaves_nothing(tmp_path):
    with stall_watch(tmp_path, 0, 60) as moved:
        moved()
    with stall_watch(tmp_path, 0, None) as moved:
        moved()
    assert stalls(tmp_path) == {}
    assert list((tmp_path / "stalls").iterdir()) == []
