"""Something that is done again and again beside a block of code."""

import threading

import pytest

from pipeline.run.repeating import repeating


def test_it_is_done_while_the_block_runs_and_not_after_it():
    again, calls = threading.Event(), list[int]()

    def action() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            again.set()

    def block() -> None:
        with repeating(action, 0.001, "reelflow-test"):
            assert again.wait(60)
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        block()
    assert calls == list(range(len(calls)))
    assert "reelflow-test" not in {thread.name for thread in threading.enumerate()}
