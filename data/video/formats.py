"""Suffixes of the file formats that are read, and what may be done with some videos."""

from typing import Literal

CONTAINERS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO_SUFFIXES = frozenset(f".{name}" for name in CONTAINERS)
IMAGE_SUFFIXES = frozenset((".jpeg", ".jpg", ".png", ".webp"))  # read as videos of one frame
HdrHandling = Literal["as_sdr", "tone_map", "drop"]  # of videos of high dynamic range
