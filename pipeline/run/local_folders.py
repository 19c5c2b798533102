"""Folders of this machine for what lies in a store: where a run works whose folder is there, and copies to read."""

from pathlib import Path
from urllib.parse import quote

import platformdirs

APPLICATION = "reelflow"
RUNS, COPIES = "runs", "copies"


def cache_folder() -> Path:
    """The folder of this user's caches on this machine, such as ~/.cache/reelflow; XDG_CACHE_HOME moves it."""
    return platformdirs.user_cache_path(APPLICATION).absolute()


def local_folder(uri: str, root: Path) -> Path:
    """The folder below `root` that stands for a folder of a store; two places never have the same one.

    Args:
        uri: without an empty part, and without the parts `.` and `..`.
    """
    scheme, _, path = uri.partition("://")
    return root.absolute().joinpath(scheme, *(quote(part, safe=" @+=,()") for part in path.split("/")))
