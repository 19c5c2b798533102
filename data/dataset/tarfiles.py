"""Tars from anywhere, read as samples and refused where they are not what this project writes.

Nothing is unpacked to disk, run or unpickled: members are bytes. A sample is a run of regular files
`<key>.<member>`; whatever else a tar may hold has no place in a shard.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data.errors import ReelflowError

MAX_MEMBER_BYTES = 2**30
KEY_PATTERN = re.compile(r"[0-9A-Za-z_-]{1,128}")


class TarError(ReelflowError, ValueError):
    """A tar that is not a shard; the message names the file, the member and what is wrong with it."""


def read_samples(path: Path, members: frozenset[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar: key, and the content of each member by its name.

    Args:
        members: the names every sample has, all of them and no other.

    Raises:
        TarError: a member is not a regular file, is named in a way that reaches out of the folder, is of an
            unknown kind (a pickle, say) or too large, a key comes twice, or the tar is cut short.
    """
    seen: set[str] = set()
    key, sample = "", {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, kind = _checked_name(path, member, members)
                if name != key:
                    if key:
                        yield key, _whole(path, key, sample, members)
                    if name in seen:
                        raise TarError(f"{path}: the key {name} comes twice")
                    seen.add(name)
                    key, sample = name, {}
                if kind in sample:
                    raise TarError(f"{path}: the member {member.name} comes twice")
                file = tar.extractfile(member)
                content = file.read() if file is not None else b""
                if len(content) != member.size:
                    raise TarError(f"{path}: it is cut short inside {member.name}")
                sample[kind] = content
            if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:  # a tar ends in blocks of zeros
                raise TarError(f"{path}: it is cut short after {key or 'nothing'}")
    except (tarfile.TarError, EOFError) as error:
        raise TarError(f"{path}: it is no readable tar ({error})") from error
    if key:
        yield key, _whole(path, key, sample, members)


def _checked_name(path: Path, member: tarfile.TarInfo, members: frozenset[str]) -> tuple[str, str]:
    """Key and kind of a member that is allowed."""
    if not member.isreg():
        raise TarError(f"{path}: {member.name!r} is no regular file but a link, a folder or a device")
    key, _, kind = member.name.partition(".")
    if not KEY_PATTERN.fullmatch(key):
        raise TarError(f"{path}: {member.name!r} is no name of a sample; a key holds letters, digits, - and _")
    if kind not in members:
        raise TarError(f"{path}: {member.name!r} is none of {', '.join(sorted(members))}")
    if member.size > MAX_MEMBER_BYTES:
        raise TarError(f"{path}: {member.name!r} has {member.size} bytes, more than {MAX_MEMBER_BYTES}")
    return key, kind


def _whole(path: Path, key: str, sample: dict[str, bytes], members: frozenset[str]) -> dict[str, bytes]:
    missing = members - sample.keys()
    if missing:
        raise TarError(f"{path}: the sample {key} lacks {', '.join(sorted(missing))}")
    return sample
