"""Parts of one prompts file, sampled by jobs that know nothing of each other, and one job at a time in a folder."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from data.errors import ReelflowError, shorten
from pipeline.run.lock import locked
from pipeline.sample.outputs import FAILED_NAME, SAMPLES_NAME

LOCK_NAME = ".sample.lock"
PATIENCE_SECONDS = 10.0  # in which another shard that starts too lets go of the folder


class ShardError(ReelflowError, ValueError):
    """A shard that there is not; the message says how to write one."""


@dataclass(frozen=True)
class Shard:
    """One of `count` parts of the clips of a job. A clip belongs to a part by its address alone."""

    number: int
    """From 1."""
    count: int

    @classmethod
    def of_text(cls, text: str) -> Self:
        """Such as 2/8.

        Raises:
            ShardError: it is not of that form.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ShardError(
                f"--shard is {shorten(text)!r}; write NUMBER/COUNT, from 1/COUNT to COUNT/COUNT, such as 2/8"
            )
        return cls(int(found[1]), int(found[2]))

    def owns(self, clip_id: str) -> bool:
        """Whether the clip is of this part."""
        return int(clip_id, 16) % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def suffix(self) -> str:
        """Of the names of its files."""
        return f"-{self.number}-of-{self.count}"


def manifest_name(shard: Shard | None) -> str:
    """The file that lists the clips of a job."""
    return _of_shard(SAMPLES_NAME, shard)


def failed_name(shard: Shard | None) -> str:
    """The file that lists what a job could not make."""
    return _of_shard(FAILED_NAME, shard)


def _of_shard(name: str, shard: Shard | None) -> str:
    stem, _, suffix = name.rpartition(".")
    return name if shard is None else f"{stem}{shard.suffix}.{suffix}"


@contextmanager
def held_folder(output_dir: Path, shard: Shard | None = None) -> Iterator[None]:
    """Hold a samples folder, or the part of it that is a shard's, while the block runs.

    Different shards of one count may run together; nothing else may.

    Raises:
        LockedError: another job samples into it.
    """
    with ExitStack() as stack:
        with locked(output_dir / LOCK_NAME, 0.0 if shard is None else PATIENCE_SECONDS):
            for path in sorted(output_dir.glob(".sample-*-of-*.lock")):
                if shard is None or not path.name.endswith(f"-of-{shard.count}.lock"):
                    with locked(path):
                        pass
            if shard is None:
                yield
                return
            stack.enter_context(locked(output_dir / f".sample{shard.suffix}.lock"))
        yield
