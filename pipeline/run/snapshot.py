"""The state of a run while one of its trainings goes on, in a folder of its own in which nothing moves."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.files.publish import TEMPORARY_PREFIX
from pipeline.run.logs import LOGS_NAME
from pipeline.run.run_files import files_of

LATEST_NAME, CHECKPOINTS_NAME = "latest", "checkpoints"  # in the folder of a training

PREFIX = f"{TEMPORARY_PREFIX}snapshot-"


@contextmanager
def snapshot(run_dir: Path, training: str) -> Iterator[Path]:
    """Yield a folder, of the name of the run, from which it can be resumed as if it had been killed now.

    It holds the newest checkpoint of the training and no other, copies of what the training and the logs append to, and
    everything else of the run. Files that never change are links: hard ones of the checkpoint, which the training may
    delete meanwhile.

    Args:
        training: folder of the training in that of the run, such as `dit`.

    Raises:
        FileNotFoundError: it has saved no checkpoint, or has just deleted it: a newer one is there.
    """
    pointer = (run_dir / training / LATEST_NAME).read_bytes()
    newest = run_dir / training / CHECKPOINTS_NAME / pointer.decode("utf-8", "replace").strip()
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=run_dir) as folder:
        root = Path(folder) / run_dir.resolve().name
        for path in files_of(run_dir):
            relative = path.relative_to(run_dir)
            if path.is_relative_to(newest.parent) and not path.is_relative_to(newest):
                continue
            target = root / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_relative_to(newest):
                _link(path, target)
            elif relative.parts[0] in (training, LOGS_NAME):
                shutil.copy2(path, target)
            else:
                target.symlink_to(path.resolve())
        (root / training / LATEST_NAME).write_bytes(pointer)  # as it was before the others were copied
        yield root


def remove_snapshots(run_dir: Path) -> None:
    """Remove what a process that was killed has left, which would keep the files of deleted checkpoints."""
    for folder in run_dir.glob(f"{PREFIX}*"):
        shutil.rmtree(folder)


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path.resolve(), target)
    except FileNotFoundError:
        raise
    except OSError:  # the checkpoints are on another disk, or links are not possible there
        target.symlink_to(path.resolve())
