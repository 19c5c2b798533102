"""Where commands outside of runs write: a folder, or a folder in a store, which machines share in place of one."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import yaml
from pydantic import TypeAdapter, ValidationError

from data.files.locations import Folder
from data.files.publish import publish_text
from data.records import Settings
from launch.cluster import check_folder
from launch.config import ClusterConfig, check_writable
from launch.overrides import ConfigError
from pipeline.run.local_folders import RUNS, cache_folder, local_folder
from pipeline.run.objects import StoredRunError
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.shared_files import SHARED, WorkerFiles
from pipeline.run.stored_run import push_held_run
from pipeline.run.working_folder import WorkingFolder

logger = logging.getLogger(__name__)
_FOLDER: TypeAdapter[Path | str] = TypeAdapter(Folder)


@dataclass(frozen=True)
class Output:
    """A place to write to."""

    folder: Path
    """Of this machine."""
    place: str | None
    """URI in a store; None: there is the folder alone."""

    @classmethod
    def of(cls, given: Path | str, cluster: ClusterConfig) -> Self:
        """What `--output` names.

        Raises:
            ConfigError: it is the URI of no folder in a store, or the configuration says that machines share a folder.
        """
        try:
            found = _FOLDER.validate_python(given)
        except ValidationError as error:
            raise ConfigError(f"--output: {error.errors()[0]['msg']}") from error
        if isinstance(found, Path):
            return cls(found, None)
        if cluster.shared_folder and "shared_folder" in cluster.model_fields_set:
            raise ConfigError(
                f"cluster.shared_folder is true, but --output is {found}, and machines see no folder in a store: leave "
                "cluster.shared_folder out"
            )
        return cls(local_folder(found, cache_folder() / RUNS), found)

    def __str__(self) -> str:
        return self.place or str(self.folder)

    @contextmanager
    def kept(self, settings: Settings) -> Iterator[None]:
        """Fetch what is stored there, and store what the folder holds when the block ends, also with an error.

        Args:
            settings: of the command, which are stored with the rest.

        Raises:
            ConfigError: the folder cannot be written.
            StoredRunError: the store cannot be read, or does not take it; after another error that is a warning.
        """
        if self.place is None:
            check_writable(self.folder)
            yield
            return
        working, has_failed = WorkingFolder(self.folder, self.place), True
        working.update()
        check_writable(self.folder)
        publish_text(self.folder / CONFIG_NAME, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        try:
            yield
            has_failed = False
        finally:
            try:
                push_held_run(self.folder, self.place, clears=True, admit=working.admit)
            except StoredRunError as error:
                if not has_failed:
                    raise
                logger.warning("  warning: %s is not stored in %s: %s", self.folder, self.place, error)

    @contextmanager
    def shared(self, cluster: ClusterConfig, read: Iterable[Path]) -> Iterator[WorkerFiles]:
        """Yield the files as the workers of the connected cluster reach them.

        Args:
            read: folders that they read too, with all that lies below.

        Raises:
            ClusterError, NotSharedError: as `check_folder`, of a folder.
            StoredRunError: the store cannot be read.
        """
        if self.place is None:
            check_folder(cluster, self.folder)
            yield SHARED
            return
        from pipeline.distributed.stored_folders import StoredFolders

        files = StoredFolders.new(self.folder, read, self.place)
        with files.served():
            yield files
