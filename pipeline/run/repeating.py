"""Something that is done again and again beside a block of code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread


@contextmanager
def repeating(action: Callable[[], None], seconds: float, name: str) -> Iterator[None]:
    """Call a function every so many seconds from a thread while the block runs; a call that has begun is finished.

    Args:
        action: an error of it ends the repetition, and is printed as every uncaught one of a thread.
        name: of the thread, in stack traces.
    """
    ended = Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
