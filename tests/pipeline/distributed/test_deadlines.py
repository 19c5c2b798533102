"""A job puts off its deadline while it gets on."""

import time

from pipeline.distributed.isolated_pool import Done, IsolatedPool, Lost
from pipeline.distributed.isolated_worker import allow_until

TIMEOUT, SECONDS = 1.0, 3.0


def sleep(gets_on: bool) -> tuple[bool, None]:
    """For longer than the timeout."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if gets_on:
            allow_until(time.monotonic() + 10 * TIMEOUT)
        time.sleep(0.05)
    return gets_on, None


def test_a_job_that_gets_on_may_take_longer_than_the_timeout(cluster):
    with IsolatedPool(sleep, [True, False], 2, TIMEOUT) as pool:
        outcomes = {outcome.job: outcome for outcome in pool.outcomes()}
    assert isinstance(outcomes[True], Done)
    assert isinstance(outcomes[False], Lost)
    assert outcomes[False].reason == "timed_out"
    assert outcomes[False].detail == "decoding it took longer than 1 s"
