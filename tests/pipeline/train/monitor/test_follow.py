"""The progress bar reports a stalled training."""

from pipeline.run.progress import bar
from pipeline.train.monitor.follow import following


def test_the_person_who_waits_is_told_of_a_stall(tmp_path):
    said: list[str] = []
    with bar("train", 2, "steps") as progress, following(tmp_path, progress, print, said.append):
        (tmp_path / "stalls").mkdir()
        for process in (7, 8):  # started again, it hangs again
            (tmp_path / "stalls" / f"rank_00001-{process}.txt").write_text("rank 1\nFile x\n")
    paths = [tmp_path / "stalls" / f"rank_00001-{process}.txt" for process in (7, 8)]
    assert said == [f"  rank 1 has made no step for a long time; its stack traces are in {path}" for path in paths]
