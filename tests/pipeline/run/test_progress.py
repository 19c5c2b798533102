"""Lines of progress in a log without a terminal."""

from pipeline.run.progress import bar


def test_log_lines_tell_the_rate_the_time_left_and_the_end_once(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 50.0, 200.0, 201.0])
    monkeypatch.setattr("pipeline.run.progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("pipeline.run.progress.sys.stderr.isatty", lambda: False)
    with bar("train", 400, "steps", start=100) as progress:
        progress.update(110)  # too soon after the start to be worth a line
        progress.update(200, "loss 0.5")
        progress.update(400)
        progress.update(400)
    assert capsys.readouterr().out.splitlines() == [
        "  train  200/400 steps  2.0/s  ETA 1:40  loss 0.5",
        "  train  400/400 steps  1.5/s  in 200 s",
    ]
