"""Untrusted tar files, read as samples; whatever `write_shard` would not have written is refused.

Nothing is unpacked to disk, executed or unpickled: members are bytes. A sample is consecutive regular files
`<key>.<member>`; no other kind of entry is allowed.
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data.errors import ReelflowError

MAX_MEMBER_BYTES = 2**30
KEY_PATTERN = re.compile(r"[0-9A-Za-z_-]{1,128}")


class TarError(ReelflowError, ValueError):
    """A tar file that is not a shard; the message names the file, the member and what is wrong with it."""


def read_samples(
    path: Path, members: frozenset[str], optional: frozenset[str] = frozenset()
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a tar file: the key, and the contents of the members by name.

    Args:
        members: the names of the members of every sample; none may be missing, no other is allowed.
        optional: names of members that a sample may have beside them.

    Raises:
        TarError: a member is not a regular file, its name is not `<key>.<member>` (a path, for example), it is too
            large, a key occurs twice, or the file is cut short.
    """
    seen: set[str] = set()
    key, sample = "", {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, kind = _checked_name(path, member, members | optional)
                if name != key:
                    if key:
                        yield key, _complete(path, key, sample, members)
                    if name in seen:
                        raise TarError(f"{path}: the key {name} occurs twice")
                    seen.add(name)
                    key, sample = name, {}
                if kind in sample:
                    raise TarError(f"{path}: the member {member.name} occurs twice")
                file = tar.extractfile(member)
                content = file.read() if file is not None else b""
                if len(content) != member.size:
                    raise TarError(f"{path}: it is cut short inside {member.name}")
                sample[kind] = content
            if path.stat().st_size < tar.offset + tarfile.BLOCKSIZE:  # the end is marked by blocks of zeros
                raise TarError(f"{path}: it is cut short after {key or 'nothing'}")
    except (tarfile.TarError, EOFError) as error:
        raise TarError(f"{path}: it is not a readable tar file ({error})") from error
    if key:
        yield key, _complete(path, key, sample, members)


def _checked_name(path: Path, member: tarfile.TarInfo, members: frozenset[str]) -> tuple[str, str]:
    """Key and member name of an entry.

    Raises:
        TarError: the entry is not allowed.
    """
    if not member.isreg():
        raise TarError(f"{path}: {member.name!r} is not a regular file but a link, a folder or a device")
    key, _, kind = member.name.partition(".")
    if not KEY_PATTERN.fullmatch(key):
        raise TarError(f"{path}: {member.name!r} is not named after a sample; a key has letters, digits, - and _")
    if kind not in members:
        raise TarError(f"{path}: {member.name!r} is not one of the members {', '.join(sorted(members))}")
    if member.size > MAX_MEMBER_BYTES:
        raise TarError(f"{path}: {member.name!r} has {member.size} bytes, more than {MAX_MEMBER_BYTES}")
    return key, kind


def _complete(path: Path, key: str, sample: dict[str, bytes], members: frozenset[str]) -> dict[str, bytes]:
    """The sample.

    Raises:
        TarError: it lacks a member.
    """
    missing = members - sample.keys()
    if missing:
        raise TarError(f"{path}: the sample {key} lacks {', '.join(sorted(missing))}")
    return sample
