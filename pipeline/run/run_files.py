"""The files of a run: which of them make it up, and a record of all of them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Field

from data.errors import quoted
from data.files.checksums import file_sha256
from data.files.publish import TEMPORARY_PREFIX
from data.records import Record
from pipeline.run.logs import LOGS_NAME
from pipeline.run.stage_record import STAGE_RECORD_NAME

CONFIG_NAME, LOCK_SUFFIX = "config.yaml", ".lock"
LEFT_OUT = ("ray", "compiled")  # folders of a training that the next start makes anew
# They say that what lies beside them is whole, so they are pulled last.
RECORDS = ("manifest.json", "checkpoint.json", "latest", "last_save.json", STAGE_RECORD_NAME, CONFIG_NAME)


def check_name(name: str) -> str:
    """The name of a file in a run's folder.

    Raises:
        ValueError: it leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name == "." or "\0" in name or "\\" in name:
        raise ValueError(f"{quoted(name)} is no file of a run's folder")
    return name


class StoredFile(Record):
    """A file of a stored run."""

    num_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    modified_ns: int = Field(ge=0)
    """Nanoseconds since 1970; kept, since a source that has another time counts as another one."""


class StoredRun(Record):
    """run.json."""

    schema_version: int = 1
    name: str
    files: dict[Annotated[str, AfterValidator(check_name)], StoredFile]
    """By their paths in the run's folder."""


def list_run(run_dir: Path, earlier: Mapping[str, StoredFile]) -> Iterator[tuple[str, StoredFile]]:
    """The files of a run and what they hold.

    Args:
        earlier: a file of the same size and time as here is not read again.
    """
    for path in files_of(run_dir):
        found, relative = path.stat(), path.relative_to(run_dir).as_posix()
        known = earlier.get(relative)
        if known is None or (known.num_bytes, known.modified_ns) != (found.st_size, found.st_mtime_ns):
            digest = file_sha256(path)
            known = StoredFile(num_bytes=found.st_size, sha256=digest, modified_ns=found.st_mtime_ns)
        yield relative, known


def files_of(run_dir: Path, below: Path | None = None) -> Iterator[Path]:
    """The files of a run, through links, without locks and what interrupted writers left.

    Args:
        below: a folder in that of the run, whose files alone are listed.
    """
    for folder, folders, names in os.walk(below or run_dir, followlinks=True):
        left_out = LEFT_OUT if Path(folder).parent == run_dir else ()
        folders[:] = sorted(each for each in folders if each not in left_out and not each.startswith(TEMPORARY_PREFIX))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(TEMPORARY_PREFIX) and not name.endswith(LOCK_SUFFIX) and path.is_file():
                yield path


def differ(run: StoredRun, earlier: StoredRun, by_logs: bool) -> bool:
    """Whether two states of a run have other files."""
    changed = {name for name, file in run.files.items() if earlier.files.get(name) != file}
    changed |= earlier.files.keys() - run.files.keys()
    return any(by_logs or not name.startswith(f"{LOGS_NAME}/") for name in changed)


def record_rank(name: str) -> int:
    """0 for a file that says nothing of others, otherwise its place in the order in which such files are pulled."""
    last = PurePosixPath(name).name
    return RECORDS.index(last) + 1 if last in RECORDS else 0
