"""The files of a run where its machines share no folder.

The machine of the command has the whole run. Each other machine has a folder of the same path, with copies of what it
has read and of what it has made. Contents travel through the run's store (`objects.py`); which file has which content
is asked of the machine of the command, which also gets every file as soon as it is made. So whatever reads a run there
finds it as if all had written into one folder.

Stages call `RunFiles` where a file crosses machines. On machines that share the folder these calls do nothing.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data.errors import ReelflowError

T = TypeVar("T")


class SupersededError(ReelflowError, RuntimeError):
    """This start of a training was given up, and another one has begun elsewhere."""


class RunFiles(Protocol):
    """The files of a run, as a process on any of its machines reaches them. Pickled to workers."""

    @property
    def is_shared(self) -> bool:
        """Whether all machines see one folder."""
        ...

    def served(self) -> AbstractContextManager[None]:
        """Answer the other machines while the block runs. Called by the command, which is connected to Ray."""
        ...

    def fetch(self, *paths: Path) -> None:
        """Make the present content of files available here; those that are not in the run are left alone.

        Raises:
            StoredRunError: the store cannot be read.
        """
        ...

    def fetch_folder(self, folder: Path) -> None:
        """As `fetch`, of all files of a folder, once for all processes of this machine."""
        ...

    def fetch_dataset(self, folder: Path) -> None:
        """As `fetch_folder`, of a dataset that `PayloadReader` reads: its shards may come in parts as they are read."""
        ...

    def publish(self, *paths: Path, record: Path | None = None) -> None:
        """Give the run files that were written here.

        Args:
            record: says that the others are whole. No other machine finds it without them, nor beside older ones.

        Raises:
            StoredRunError: the store does not take them.
            SupersededError: another start of the training has begun.
        """
        ...

    def remove(self, path: Path) -> None:
        """Delete a file, if it is there."""
        ...

    def discard(self, folder: Path) -> None:
        """Delete copies of this machine that nothing reads here any more."""
        ...

    def where_whole(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - of any function
        """Call a function where the whole run is: here, or on the machine of the command."""
        ...

    def of_start(self, start: str) -> "RunFiles":
        """These files, for the workers of one start of a training: they are refused once another start has begun."""
        ...

    def begin(self, folder: Path) -> None:
        """Called by one worker of a start of the training in `folder`, before the others go on."""
        ...

    def kept_alike(self, folder: Path, requests: Sequence[str]) -> AbstractContextManager[None]:
        """While the block runs, keep the folder of a training here and that of the whole run alike.

        At the beginning it is made as it is there. After that, small files that are written here come to the run about
        once a second. Called by one process of each machine.

        Args:
            requests: names of files in the folder that come here when they are made there.
        """
        ...


class ReadFiles(Protocol):
    """The part of `RunFiles` by which workers get what they read. Commands outside of runs have it of any folders."""

    def fetch(self, *paths: Path) -> None:
        """As `RunFiles.fetch`."""
        ...

    def fetch_folder(self, folder: Path) -> None:
        """As `RunFiles.fetch_folder`."""
        ...


class WorkerFiles(ReadFiles, Protocol):
    """As `ReadFiles`, and by which workers give what they make."""

    def publish(self, *paths: Path, record: Path | None = None) -> None:
        """As `RunFiles.publish`."""
        ...


@dataclass(frozen=True)
class SharedFolder:
    """All machines see one folder, or there is one machine."""

    is_shared: bool = True

    def served(self) -> AbstractContextManager[None]:
        """Nobody asks."""
        return nullcontext()

    def fetch(self, *paths: Path) -> None:
        """They are there."""

    def fetch_folder(self, folder: Path) -> None:
        """It is there."""

    def fetch_dataset(self, folder: Path) -> None:
        """It is there."""

    def publish(self, *paths: Path, record: Path | None = None) -> None:
        """They are seen already."""

    def remove(self, path: Path) -> None:
        """As `RunFiles.remove`."""
        path.unlink(missing_ok=True)

    def discard(self, folder: Path) -> None:
        """It is not a copy."""

    def where_whole(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - of any function
        """As `RunFiles.where_whole`."""
        return function(*arguments)

    def of_start(self, start: str) -> RunFiles:  # noqa: ARG002 - of the interface
        """The lock of the training does it."""
        return self

    def begin(self, folder: Path) -> None:
        """Nothing has to be prepared."""

    def kept_alike(self, folder: Path, requests: Sequence[str]) -> AbstractContextManager[None]:  # noqa: ARG002 - of the interface
        """There is one folder."""
        return nullcontext()


SHARED = SharedFolder()
