"""The configuration of a run that is given as `s3://bucket/runs/demo`."""

from typing import Any

from launch.config import read_tree
from launch.overrides import ConfigError
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.stored_run import read_stored_file


def read_stored_tree(uri: str) -> dict[str, Any]:
    """The sections of the configuration of a stored run, which is to go on where it is stored.

    Args:
        uri: of the run, or of its config.yaml.

    Raises:
        StoredRunError: no run is stored there, or the store cannot be read.
        ConfigError: the run has another name than its place, or its configuration is damaged.
    """
    place = uri.rstrip("/").removesuffix(f"/{CONFIG_NAME}")
    runs_dir, _, name = place.rpartition("/")
    tree = read_tree(read_stored_file(place, CONFIG_NAME), f"{place}/{CONFIG_NAME}")
    if tree.get("name") != name:
        raise ConfigError(
            f"{place} holds the run {tree.get('name')}: a run goes on in a place of its own name; push it to "
            f"{runs_dir}/{tree.get('name')}, or pull it into a folder"
        )
    tree |= {"runs_dir": runs_dir, "store": None}
    if isinstance(tree.get("cluster"), dict):  # what it was pushed with, maybe from a folder
        tree["cluster"] = {key: value for key, value in tree["cluster"].items() if key != "shared_folder"}
    return tree
