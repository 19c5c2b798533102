"""SIGTERM ends a command as an error of its own, also in the middle of a call of Ray."""

import os
import signal
import threading
import time

import pytest
import ray

from pipeline.run.context import StoppedError
from pipeline.run.signals import stopped_by_sigterm


def sleep_until_sigterm() -> None:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(60)


def wait_for_ray_until_sigterm() -> None:
    never = ray.remote(num_cpus=1000)(lambda: None).remote()
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        ray.wait([never], timeout=60)
    finally:
        ray.cancel(never)


@pytest.mark.parametrize("work", [sleep_until_sigterm, wait_for_ray_until_sigterm])
def test_sigterm_stops_the_work_and_the_handler_before_is_back(cluster, work):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(StoppedError, match=r"^the work was stopped$"), stopped_by_sigterm("the work was stopped"):
        work()
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_is_no_sigterm():
    with pytest.raises(KeyboardInterrupt), stopped_by_sigterm("the work was stopped"):
        raise KeyboardInterrupt
