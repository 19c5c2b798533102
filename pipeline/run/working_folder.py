"""The folder of this machine in which a run works that lies in a store.

The store has the run. The folder follows it: before the run starts, it is made what is stored, unless it is that
already or has gone on from it. Where another command has stored a newer state meanwhile, that state counts: work of
this folder that was not stored yet is moved aside, and a push from here does not replace what others have stored.

    NAME/                the folder
    NAME.stored.json     what the store holds if nobody else has written there
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from data.files.publish import publish_text
from data.records import Record
from pipeline.run.lock import RUN_LOCK_NAME, locked
from pipeline.run.objects import StoredRunError
from pipeline.run.run_files import CONFIG_NAME, StoredRun, differ, list_run
from pipeline.run.stage_record import superseded_path
from pipeline.run.stored_run import Transfer, pull_run, stored_run

logger = logging.getLogger(__name__)


class StoredStates(Record):
    """NAME.stored.json: what the store had, and what was going to take its place. A kill may leave either there."""

    states: tuple[StoredRun | None, ...]


@dataclass(frozen=True)
class WorkingFolder:
    """A run's folder on this machine, and its place in a store."""

    run_dir: Path
    place: str

    def update(self) -> Transfer | None:
        """Make the folder what is stored. None: nothing is stored, or the folder is that or has gone on from it.

        Raises:
            StoredRunError: the store cannot be read.
            LockedError: a command works in the folder.
        """
        stored = stored_run(self.place)
        if stored is None:
            self.run_dir.parent.mkdir(parents=True, exist_ok=True)
            self._write(None)
            return None
        known = self._known()
        if stored in known and (self.run_dir / CONFIG_NAME).exists():
            return None
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with locked(self.run_dir / RUN_LOCK_NAME):
            if self._has_own_work(stored, known):
                moved = self._moved_aside()
                logger.warning(
                    "  warning: %s holds a newer state of this run than this machine, where work was not stored yet: "
                    "that is now in %s",
                    self.place,
                    moved,
                )
            self._states_path.unlink(missing_ok=True)  # until all of it is here
            (self.run_dir / CONFIG_NAME).unlink(missing_ok=True)
        transfer = pull_run(self.place, self.run_dir, replaces=True)
        self._write(transfer.run)
        return transfer

    def admit(self, earlier: StoredRun | None, run: StoredRun) -> None:
        """As `push_held_run` calls it.

        Raises:
            StoredRunError: another command has stored the run since it was fetched or stored from here.
        """
        known = self._known()
        if earlier is not None and earlier not in known:
            raise StoredRunError(
                f"another command has stored {self.place} meanwhile, which is not replaced; what this one has made "
                f"stays in {self.run_dir}. One command at a time may work on a run: start the one that is to go on "
                "again, which fetches what is stored"
            )
        self._write(earlier, run)

    def _has_own_work(self, stored: StoredRun, known: tuple[StoredRun | None, ...]) -> bool:
        """Whether the folder holds what is not stored and never was; logs do not count."""
        if not (self.run_dir / CONFIG_NAME).exists():  # copies for a worker, or an update that was interrupted
            return False
        earlier = [state for state in (*known, stored) if state is not None]
        times = {name: file for state in earlier for name, file in state.files.items()}
        run = StoredRun(name=self.run_dir.name, files=dict(list_run(self.run_dir, times)))
        return all(differ(run, state, by_logs=False) for state in earlier)

    def _moved_aside(self) -> Path:
        """Move all that the folder holds, but for its lock, which this process has."""
        aside = superseded_path(self.run_dir)
        aside.mkdir()
        for path in list(self.run_dir.iterdir()):
            if path.name != RUN_LOCK_NAME:
                path.rename(aside / path.name)
        return aside

    def _known(self) -> tuple[StoredRun | None, ...]:
        try:
            return StoredStates.model_validate_json(self._states_path.read_bytes()).states
        except (FileNotFoundError, ValidationError):  # then whatever is stored counts
            return ()

    def _write(self, *states: StoredRun | None) -> None:
        publish_text(self._states_path, StoredStates(states=states).model_dump_json())

    @property
    def _states_path(self) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}.stored.json")
