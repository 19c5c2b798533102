"""Logging: messages for people on the console, and a file for each process under the run's `logs/`.

Modules log to `logging.getLogger(__name__)`. The console shows the messages of the driver as they are; the files also
hold time, level and module, the warnings of libraries, and tracebacks.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOGS_NAME = "logs"
DRIVER_LOG = "driver.log"
PACKAGES = ("data", "models", "pipeline", "launch")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class ConsoleHandler(logging.Handler):
    """Writes messages to standard output as it is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one message."""
        sys.stdout.write(self.format(record) + "\n")
        sys.stdout.flush()


@contextmanager
def console_log(level: int = logging.INFO) -> Iterator[None]:
    """Show this program's messages of at least `level` on the console while the block runs."""
    handler = ConsoleHandler()
    handler.setLevel(level)
    with _handling(handler, [logging.getLogger(name) for name in PACKAGES]):
        yield


def shows_progress() -> bool:
    """Whether progress is to be shown: not where the console is limited to warnings."""
    handlers = [h for h in logging.getLogger(PACKAGES[0]).handlers if isinstance(h, ConsoleHandler)]
    return not handlers or min(handler.level for handler in handlers) <= logging.INFO


@contextmanager
def file_log(path: Path) -> Iterator[None]:
    """Append this program's messages, and the warnings of libraries, to a file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(FORMAT))
    try:
        with _handling(handler, [logging.getLogger()]):
            yield
    finally:
        handler.close()


def rank_log(run_dir: Path, stage_name: str, rank: int) -> Path:
    """The log file of one rank of a training, such as `logs/train-dit-rank-00003.log`."""
    return run_dir / LOGS_NAME / f"{stage_name.replace(' ', '-')}-rank-{rank:05d}.log"


@contextmanager
def _handling(handler: logging.Handler, loggers: list[logging.Logger]) -> Iterator[None]:
    own = [logging.getLogger(name) for name in PACKAGES]
    levels = [logger.level for logger in own]
    for logger in own:
        logger.setLevel(logging.DEBUG)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        for logger, level in zip(own, levels, strict=True):
            logger.setLevel(level)
