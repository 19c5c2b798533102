"""The base of every error that a user can cause, and the errors that several modules of `data` raise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from data.curation.ledger import Reason


MAX_SHOWN = 120


def shorten(text: str, limit: int = MAX_SHOWN) -> str:
    """A text for a message: without its middle, and with its length, where it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 4 :]} ({len(text)} characters)"


def quoted(value: object) -> str:
    """A value as a message shows it: its `repr`, printable and shortened."""
    return shorten(ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value))


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8, and halves of surrogate pairs, are in hexadecimal."""
    if name.isascii():
        return name
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a surrogate pair, which only a JSON file can contain
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened; the name of its class where it has none."""
    text = str(error).strip() or type(error).__name__
    return shorten(text.splitlines()[0], 300)


class ReelflowError(Exception):
    """An error with a message for the user: what happened, where, and the way out. Anything else is a bug.

    A training whose ranks all raise an error that is not `retryable` ends; after any other its workers are started
    again, as often as `cluster.workers.max_failures` allows.
    """

    retryable: ClassVar[bool] = False


class VideoError(ReelflowError, ValueError):
    """A video that cannot be used; the message is one sentence."""

    retryable = True  # one rank alone meets it; the others would wait for it until their collective times out

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives the way back from a worker
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.args[1]


class DatasetError(ReelflowError, ValueError):
    """A dataset folder that cannot be read; the message names the file and the way out."""

    retryable = True  # as VideoError
