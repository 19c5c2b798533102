"""The frames of a clip without loss, as PNG pictures in one zip file: 00000.png, 00001.png, ..."""

import io
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from PIL import Image

from data.errors import VideoError
from data.records import Frames

FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that the format has: bytes must not depend on the day


class PictureZipEncoder:
    """Writes the file of a clip whose frames come in parts; it keeps them compressed. Equal frames give equal bytes."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._zip = ZipFile(self._buffer, "w", ZIP_STORED)
        self._num_frames = 0

    def add(self, frames: Frames) -> None:
        """The next frames."""
        for frame in frames:
            picture = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(frame)).save(picture, "PNG")
            entry = ZipInfo(f"{self._num_frames:05}.png", FIRST_DATE)
            entry.external_attr = 0o644 << 16
            self._zip.writestr(entry, picture.getvalue())
            self._num_frames += 1

    def finish(self) -> bytes:
        """The file. No frames can be added any more."""
        self._zip.close()
        return self._buffer.getvalue()


def read_picture_zip(content: bytes) -> Frames:
    """All frames of a file that `PictureZipEncoder` wrote.

    Raises:
        VideoError: the bytes are no such file.
    """
    try:
        with ZipFile(io.BytesIO(content)) as file:
            pictures = [Image.open(io.BytesIO(file.read(name))) for name in sorted(file.namelist(), key=_number)]
            return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    except (BadZipFile, OSError, ValueError) as error:
        raise VideoError("undecodable", f"it is no zip file of pictures of one size ({error})") from error


def _number(name: str) -> tuple[int, str]:
    return len(name), name  # there may be more than five digits
