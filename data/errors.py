"""The errors that a user can cause, and their common base."""

from data.curation.ledger import Reason


class VideoError(ValueError):
    """A video that cannot be used; the message is one sentence for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(reason, message)  # both, so that it survives the way back from a worker
        self.reason: Reason = reason

    def __str__(self) -> str:
        return self.args[1]


class DatasetError(ValueError):
    """A dataset folder that cannot be read; the message names the file and the way out."""
