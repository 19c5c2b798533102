"""What a job ships to its cluster: the files of the program, and the configuration."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from launch.cluster import PROJECT_DIR
from launch.overrides import ConfigError

PACKAGES = ("data", "models", "pipeline", "launch")
CONFIG_NAME = "job.yaml"
MAX_BYTES = 64 * 2**20
"""Of all files that are shipped: far more than the program has, and far less than the 512 MiB that Ray takes."""
_SOURCE = re.compile(r"[A-Za-z0-9_]+\.py|py\.typed")
_FOLDER = re.compile(r"[A-Za-z0-9_]+")
_READ_AT_RUN_TIME = {
    "launch/presets": re.compile(r"[A-Za-z0-9_-]+\.yaml"),
    "pipeline/report/templates": re.compile(r"[A-Za-z0-9_-]+\.(html|css|js)"),
}
"""Files of the program that are not Python, by folder."""


class ShippedError(ConfigError):
    """What would be shipped is too large; the message names the largest files."""


@dataclass(frozen=True)
class ShippedFile:
    """A file of the program."""

    name: str
    """Relative to the checkout, with slashes."""
    size: int
    """In bytes."""


def shipped_files(folder: Path = PROJECT_DIR) -> list[ShippedFile]:
    """The program in a checkout, and nothing else of it: no data, no links, no file that is not of the program.

    Raises:
        ShippedError: it has more than `MAX_BYTES`.
    """
    files = sorted(
        (file for package in PACKAGES for file in _files_below(folder / package, folder)), key=lambda file: file.name
    )
    total = sum(file.size for file in files)
    if total > MAX_BYTES:
        largest = sorted(files, key=lambda file: -file.size)[:3]
        named = ", ".join(f"{file.name} ({file.size / 2**20:.1f} MiB)" for file in largest)
        raise ShippedError(
            f"the program in {folder} has {total / 2**20:.1f} MiB, more than the {MAX_BYTES // 2**20} MiB that a job "
            f"ships; the largest files are {named}: move what is no source code out of it"
        )
    return files


def _files_below(folder: Path, root: Path) -> Iterator[ShippedFile]:
    if not folder.is_dir() or folder.is_symlink():
        return
    also = _READ_AT_RUN_TIME.get(folder.relative_to(root).as_posix())
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            if _FOLDER.fullmatch(path.name) and path.name != "__pycache__":
                yield from _files_below(path, root)
        elif _SOURCE.fullmatch(path.name) or (also is not None and also.fullmatch(path.name)):
            yield ShippedFile(path.relative_to(root).as_posix(), path.stat().st_size)


@contextmanager
def packed(config: str | None, folder: Path = PROJECT_DIR) -> Iterator[Path]:
    """A temporary folder with what is shipped.

    Args:
        config: text of the configuration, which the package holds as `CONFIG_NAME`; None: it is on the cluster.

    Raises:
        ShippedError: as `shipped_files`.
    """
    files = shipped_files(folder)
    with TemporaryDirectory(prefix="reelflow-job-") as name:
        target = Path(name)
        for file in files:
            (target / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file.name, target / file.name)
        if config is not None:
            (target / CONFIG_NAME).write_text(config, encoding="utf-8")
        yield target
