"""Commits of shards: a record beside each shard, published after it, that says what the shard was made from.

A shard without a commit is unfinished. A shard whose commit names other inputs than the present ones is made again.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from data.dataset.index import IndexRow
from data.dataset.manifest import ShardRecord
from data.files.publish import publish_text
from data.records import Record

COMMIT_SUFFIX = ".commit.json"
SHARD_PATTERN = "shard-*.tar"


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
