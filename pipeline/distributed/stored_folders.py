"""Folders of a command outside of runs, on machines that share nothing but a store: one is written, others are read."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pipeline.distributed.stored_files import StoredFiles


@dataclass(frozen=True)
class StoredFolders:
    """As `StoredFiles`, of several folders of the machine of the command, whose contents travel through one store."""

    written: StoredFiles
    read: tuple[StoredFiles, ...]

    @classmethod
    def new(cls, written: Path, read: Iterable[Path], place: str) -> Self:
        """The folders of one command.

        Args:
            written: held by this command alone.
            place: URI of `written` in a store.
        """
        files = StoredFiles.new(written, place)
        folders = sorted({folder.resolve() for folder in read})
        return cls(files, tuple(replace(files.beside(), run_dir=folder) for folder in folders))

    @contextmanager
    def served(self) -> Iterator[None]:
        """Answer the other machines while the block runs.

        Raises:
            StoredRunError: the store cannot be read.
        """
        with ExitStack() as stack:
            stack.enter_context(self.written.served())
            for files in self.read:
                stack.enter_context(files.answered())
            yield

    def fetch(self, *paths: Path) -> None:
        """As `StoredFiles.fetch`."""
        for files in (self.written, *self.read):
            files.fetch(*paths)

    def fetch_folder(self, folder: Path) -> None:
        """As `StoredFiles.fetch_folder`."""
        for files in (self.written, *self.read):
            files.fetch_folder(folder)

    def publish(self, *paths: Path, record: Path | None = None) -> None:
        """As `StoredFiles.publish`, of files of the folder that is written."""
        self.written.publish(*paths, record=record)
