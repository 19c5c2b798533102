"""Checksums of files."""

from hashlib import sha256
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Checksum of a file's contents, as hexadecimal digits."""
    digest = sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
