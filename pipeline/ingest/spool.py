"""The encoded clips of one source on their way to their shard: in memory while they are few, otherwise in a file.

A film of two hours has thousands of clips. In a file in the folder of the dataset, which every worker reaches, they
take no memory of the worker that makes them nor of the one that writes the shard.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from data.dataset.clip import ClipRecord
from data.files.publish import temporary_sibling

MAX_HELD_BYTES = 16 << 20


@dataclass(frozen=True)
class Clips(Sequence[tuple[ClipRecord, bytes]]):
    """Encoded clips with their records, in order; each is read when it is asked for."""

    records: tuple[ClipRecord, ...]
    edges: tuple[int, ...]  # clip k is bytes edges[k] to edges[k + 1]
    content: bytes | Path

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> tuple[ClipRecord, bytes]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[ClipRecord, bytes]]: ...
    def __getitem__(self, index: int | slice) -> tuple[ClipRecord, bytes] | list[tuple[ClipRecord, bytes]]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start, end = self.edges[number], self.edges[number + 1]
        if isinstance(self.content, bytes):
            return self.records[number], self.content[start:end]
        with self.content.open("rb") as file:
            file.seek(start)
            return self.records[number], file.read(end - start)

    def remove(self) -> None:
        """Delete the file, if there is one; the clips cannot be read any more."""
        if isinstance(self.content, Path):
            self.content.unlink(missing_ok=True)


NO_CLIPS = Clips((), (0,), b"")
"""One object for all sources without clips, so that it is pickled once for many of them."""


class SpoolError(OSError):
    """The file cannot be written; the message names the folder and the way out."""


class ClipSpool:
    """Collects the clips of one source."""

    def __init__(self, folder: Path | None) -> None:
        """Nothing is written yet.

        Args:
            folder: on a file system that the writer of the shard reaches too; None: all clips are held in memory. A
                file that a killed worker leaves behind is deleted by `remove_unpublished`.
        """
        self._folder = folder
        self._path: Path | None = None
        self._forget()

    def _forget(self) -> None:
        self._records: list[ClipRecord] = []
        self._edges, self._held = [0], bytearray()

    def add(self, record: ClipRecord, content: bytes) -> None:
        """Append a clip.

        Raises:
            SpoolError: the file cannot be written.
        """
        self._records.append(record)
        self._edges.append(self._edges[-1] + len(content))
        self._held += content
        if self._folder is not None and len(self._held) > MAX_HELD_BYTES:
            self._flush(self._folder)

    def _flush(self, folder: Path) -> None:
        if self._path is None:
            self._path = temporary_sibling(folder / "clips")
        try:
            with self._path.open("ab") as file:
                file.write(self._held)
        except OSError as error:
            detail = f"the clips of a long video cannot be written to {folder} ({error.strerror})"
            raise SpoolError(error.errno, f"{detail}; make room there, and give the command again") from error
        self._held = bytearray()

    def clear(self) -> None:
        """Forget all clips."""
        if not self._records:
            return
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None
        self._forget()

    def close(self) -> Clips:
        """The clips that were added since the last `clear`.

        Raises:
            SpoolError: the file cannot be written.
        """
        if not self._records:
            return NO_CLIPS
        if self._path is None:
            content: bytes | Path = bytes(self._held)
        else:
            assert self._folder is not None
            self._flush(self._folder)
            content = self._path
        return Clips(tuple(self._records), tuple(self._edges), content)
