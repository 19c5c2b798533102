"""The file formats that are read."""

# What a source folder is searched for.
CONTAINERS = ("3gp", "avi", "flv", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts", "webm", "wmv")
VIDEO_SUFFIXES = frozenset(f".{name}" for name in CONTAINERS)
IMAGE_SUFFIXES = frozenset((".jpeg", ".jpg", ".png", ".webp"))  # one-frame videos
