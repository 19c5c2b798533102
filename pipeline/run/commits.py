"""Commits of shards: a record beside each shard, published after it, that says what the shard was made from.

A shard without a commit is unfinished. A shard whose commit names other inputs than the present ones is made again.
"""

import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import TypeVar

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from data.dataset.index import IndexRow
from data.dataset.manifest import ShardRecord
from data.errors import ReelflowError
from data.files.publish import publish_text
from data.records import Record

COMMIT_SUFFIX = ".commit.json"
SHARD_PATTERN = "shard-*.tar"


class ShardWriteError(ReelflowError, RuntimeError):
    """A shard that cannot be written; the message names the folder, why, and the way out."""


class Commit(Record):
    """What every commit holds; each stage that writes shards adds its own fields."""

    model_config = ConfigDict(serialize_by_alias=True)

    input_fingerprint: str = Field(
        validation_alias=AliasChoices("input_fingerprint", "made_from"), serialization_alias="made_from"
    )  # of everything that the shard depends on
    shard: ShardRecord
    rows: list[IndexRow]


AnyCommit = TypeVar("AnyCommit", bound=Commit)


def commit_path(shard_path: Path) -> Path:
    """Where the commit of a shard is."""
    return shard_path.with_suffix(COMMIT_SUFFIX)


def publish_commit(shard_path: Path, commit: Commit) -> None:
    """Declare a shard finished."""
    publish_text(commit_path(shard_path), commit.model_dump_json())


def remove_commit(shard_path: Path) -> None:
    """Declare a shard unfinished, before it is written again; nothing where it has no commit."""
    commit_path(shard_path).unlink(missing_ok=True)


def read_commit(kind: type[AnyCommit], shard_path: Path) -> AnyCommit | None:
    """The commit of a shard; None where it has none, or one that is damaged or of an older format."""
    try:
        return kind.model_validate_json(commit_path(shard_path).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValidationError):
        return None


def remove_other_shards(output_dir: Path, names: Collection[str]) -> None:
    """Delete the shards that are not named, with their commits: an earlier start may have planned more shards."""
    for path in output_dir.glob(SHARD_PATTERN):
        if path.name not in names:
            remove_commit(path)
            path.unlink()


@contextmanager
def writing(shard_path: Path) -> Iterator[None]:
    """Writes a shard and its commit within the block.

    Raises:
        ShardWriteError: the operating system refused it, because the disk is full, for example.
    """
    try:
        yield
    except OSError as error:
        raise ShardWriteError(_why_not_written(shard_path, error)) from error


def _why_not_written(shard_path: Path, error: OSError) -> str:
    folder, reason = shard_path.parent, error.strerror or str(error)
    if error.errno in (ENOSPC, EDQUOT):
        free = shutil.disk_usage(folder).free / 2**20
        reason = f"{reason}: {free:.1f} MiB are free there, too little for this shard"
        way_out = "free some space"
    elif error.errno in (EACCES, EPERM, EROFS):
        way_out = "make the folder writable"
    else:
        way_out = "repair the disk, or set runs_dir to another one,"
    return (
        f"{shard_path.name} cannot be written to {folder} ({reason}); {way_out} and give the command again: every "
        "shard that is committed is kept"
    )
