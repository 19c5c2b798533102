"""What is written to the files of a folder, bit by bit: lines of metrics and logs, previews."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files.publish import published
from pipeline.run.run_files import files_of
from pipeline.run.whole_run import Addition

CHECKPOINTS_NAME = "checkpoints"  # which are published as a whole


@dataclass(frozen=True)
class _State:
    """Of a file; a file that is replaced is another one, of another inode."""

    inode: int
    size: int
    modified_ns: int


class WrittenFiles:
    """What has come to the files of folders since the last call.

    Args:
        folders: in that of the run.
    """

    def __init__(self, run_dir: Path, folders: Sequence[Path]) -> None:
        self._run_dir, self._folders = run_dir, folders
        self._seen = self._states()

    def take(self) -> tuple[list[Addition], list[str]]:
        """What has come to files, and the names of those that have gone."""
        additions, now = [], self._states()
        for name, state in now.items():
            before = self._seen.get(name)
            if before == state:
                continue
            grows = before is not None and before.inode == state.inode and before.size < state.size
            start = before.size if grows and before is not None else 0
            try:
                with (self._run_dir / name).open("rb") as file:
                    file.seek(start)
                    content = file.read(state.size - start)
            except FileNotFoundError:  # it will be seen at the next call
                continue
            additions.append(Addition(name, content, is_whole=start == 0))
        removed = [name for name in self._seen if name not in now]
        self._seen = now
        return additions, removed

    def adopt(self, name: str) -> None:
        """Make an empty file that the whole run has, unless it is known here."""
        path = self._run_dir / name
        if name not in self._seen and not path.exists():
            with published(path) as temporary:
                temporary.touch()
                self._seen[name] = _state(temporary)  # known before it can be removed again

    def _states(self) -> dict[str, _State]:
        found = {}
        for folder in self._folders:
            for path in files_of(self._run_dir, folder):
                if CHECKPOINTS_NAME in path.relative_to(folder).parts[:1]:
                    continue
                try:
                    found[path.relative_to(self._run_dir).as_posix()] = _state(path)
                except FileNotFoundError:  # it was removed meanwhile
                    continue
        return found


def _state(path: Path) -> _State:
    found = path.stat()
    return _State(found.st_ino, found.st_size, found.st_mtime_ns)
