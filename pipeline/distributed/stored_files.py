"""`RunFiles` on machines that share no folder: contents by the run's store, everything else by an actor of Ray.

The actor runs on the machine of the command, and ends with it. A machine that is cut off from the cluster therefore
cannot give the run anything any more, even if it still reaches the store.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any, Self, TypeVar

import ray
from filelock import FileLock
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from data.dataset.parts import begin_parts
from data.files.publish import TEMPORARY_PREFIX
from pipeline.run.logs import LOGS_NAME
from pipeline.run.objects import OBJECTS_NAME, PAUSES, MissingObjectError, Objects, described
from pipeline.run.repeating import repeating
from pipeline.run.run_files import StoredFile
from pipeline.run.shared_files import RunFiles, SupersededError
from pipeline.run.stored_run import stored_run
from pipeline.run.whole_run import TRANSFERS, WholeRun, receive, remove_others
from pipeline.run.written import WrittenFiles

T = TypeVar("T")
CALLS = 16  # that the actor answers at a time
ALIKE_SECONDS = 1.0
SHARD_SUFFIX = ".tar"
FETCH_LOCK = "fetch.lock"
NAME_PREFIX = "files-"


@dataclass(frozen=True)
class StoredFiles:
    """The files of a run whose machines share its store alone.

    Args:
        run_dir: absolute, the same on every machine.
        place: URI of the run in its store.
        name: of the actor, and of the file by which its machine is recognised; unique.
        start: of a training's workers, if they are these.
        marker: a file that this machine alone has; None: one in `run_dir`.
        parts: shards of datasets come in parts, as they are read.
        is_run: whether what is stored at `place` is this folder, whose known contents are not sent again.
    """

    run_dir: Path
    place: str
    name: str
    start: str | None = None
    marker: Path | None = None
    parts: bool = False
    is_run: bool = True
    is_shared: bool = False

    @classmethod
    def new(cls, run_dir: Path, place: str, *, parts: bool = False) -> Self:
        """The files of a run, for one command."""
        return cls(run_dir.resolve(), place, _new_name(), parts=parts)

    @contextmanager
    def served(self) -> Iterator[None]:
        """As `RunFiles.served`.

        Raises:
            StoredRunError: the store cannot be read.
        """
        for left in self.run_dir.glob(f"{TEMPORARY_PREFIX}{NAME_PREFIX}*"):  # by commands that were killed
            left.unlink()
        self._marker.touch()
        try:
            with self.answered():
                yield
        finally:
            self._marker.unlink(missing_ok=True)

    def beside(self) -> Self:
        """Files of another folder, which others may write to, of the command that these are of."""
        return replace(self, name=_new_name(), marker=self._marker, is_run=False)

    @contextmanager
    def answered(self) -> Iterator[None]:
        """Answer the other machines while the block runs.

        Raises:
            StoredRunError: the store cannot be read.
        """
        stored_run(self.place)  # a store that cannot be read is an error here, and not of the actor
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(WholeRun).options(
            name=self.name, num_cpus=0, max_concurrency=CALLS, scheduling_strategy=here
        )
        handle = actor.remote(self.run_dir, self.place, self.is_run)
        try:
            ray.get(handle.__ray_ready__.remote())
            yield
        finally:
            ray.kill(handle)

    def fetch(self, *paths: Path) -> None:
        """As `RunFiles.fetch`."""
        if not self._is_here:
            self._fetch(self._names(paths))

    def fetch_folder(self, folder: Path) -> None:
        """As `RunFiles.fetch_folder`."""
        if not self._is_here and (names := self._names([folder])):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            with FileLock(self.run_dir / FETCH_LOCK):
                self._fetch(self._ask("names_below", names[0]))

    def fetch_dataset(self, folder: Path) -> None:
        """As `RunFiles.fetch_dataset`."""
        if not self.parts:
            self.fetch_folder(folder)
            return
        if self._is_here or not (found := self._names([folder])):
            return
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(self.run_dir / FETCH_LOCK):
            names = self._ask("names_below", found[0])
            shards = [name for name in names if name.endswith(SHARD_SUFFIX) and not (self.run_dir / name).exists()]
            for name, file in self._ask("offer", shards).items():
                begin_parts(self.run_dir / name, f"{self.place}/{OBJECTS_NAME}/{file.sha256}", file.num_bytes)
            self._fetch([name for name in names if name not in set(shards)])

    def publish(self, *paths: Path, record: Path | None = None) -> None:
        """As `RunFiles.publish`."""
        if self._is_here:
            return
        whole = [path for path in (*paths, record) if path is not None]
        names, last = self._names(whole), None if record is None else self._names([record])[0]
        try:
            self._ask("take", self.start, dict(zip(names, self._sent(whole), strict=True)), last)
        except MissingObjectError:  # a push removed a content that no file of the run had any more, before it had this
            self._ask("take", self.start, dict(zip(names, self._sent(whole), strict=True)), last)

    def remove(self, path: Path) -> None:
        """As `RunFiles.remove`."""
        path.unlink(missing_ok=True)
        if not self._is_here:
            self._ask("remove", self._names([path])[0])

    def discard(self, folder: Path) -> None:
        """As `RunFiles.discard`."""
        if not self._is_here:
            rmtree(folder, ignore_errors=True)

    def where_whole(self, function: Callable[..., T], *arguments: Any) -> T:  # noqa: ANN401 - of any function
        """As `RunFiles.where_whole`."""
        return function(*arguments) if self._is_here else self._ask("call", self.start, function, *arguments)

    def of_start(self, start: str) -> RunFiles:
        """As `RunFiles.of_start`."""
        return replace(self, start=start)

    def begin(self, folder: Path) -> None:
        """As `RunFiles.begin`."""
        self._ask("begin", self.start, folder)

    @contextmanager
    def kept_alike(self, folder: Path, requests: Sequence[str]) -> Iterator[None]:
        """As `RunFiles.kept_alike`."""
        if self._is_here:
            yield
            return
        names = self._ask("names_below", self._names([folder])[0])
        remove_others(self.run_dir, folder, names)
        self._fetch(names)
        folder.mkdir(parents=True, exist_ok=True)
        written = WrittenFiles(self.run_dir, (folder, self.run_dir / LOGS_NAME))
        asked = self._names([folder / name for name in requests])

        def send() -> None:
            with suppress(RayActorError, SupersededError):  # nobody is there for whom the training could go on
                additions, removed = written.take()
                if additions or removed:
                    self._ask("add", self.start, additions, removed)
                for name in self._ask("existing", asked):
                    written.adopt(name)

        try:
            with repeating(send, ALIKE_SECONDS, "reelflow-alike"):
                yield
        finally:
            send()

    def _sent(self, paths: Sequence[Path]) -> list[StoredFile]:
        """Store the contents of files."""
        objects = Objects(self.place, PAUSES)

        def send(path: Path) -> StoredFile:
            file = described(path)
            objects.put(path, file)
            return file

        with ThreadPoolExecutor(TRANSFERS) as executor:
            return list(executor.map(send, paths))

    def _fetch(self, names: Sequence[str]) -> None:
        """Make files available whose names in the run are given."""
        if not names:
            return
        objects, offered = Objects(self.place, PAUSES), self._ask("offer", list(names))

        def fetch(name: str) -> None:
            path = self.run_dir / name
            try:
                receive(objects, path, name, offered[name])
            except MissingObjectError:  # a push has removed it, since the run had no such file for a moment
                again = self._ask("offer", [name], again=True)
                if name in again:
                    receive(objects, path, name, again[name])

        with ThreadPoolExecutor(TRANSFERS) as executor:
            list(executor.map(fetch, offered))

    def _names(self, paths: Sequence[Path]) -> list[str]:
        """The names in the run of those paths that lie in its folder."""
        return [path.relative_to(self.run_dir).as_posix() for path in paths if path.is_relative_to(self.run_dir)]

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - of any method
        """Call a method of `WholeRun` on the machine of the command; its errors are raised as they were there."""
        try:
            actor: Any = ray.get_actor(self.name)
        except ValueError as error:
            raise SupersededError("the command of this run has ended, and what it began is given up") from error
        try:
            return ray.get(getattr(actor, method).remote(*arguments, **options))
        except RayTaskError as error:
            raise error.cause from error

    @property
    def _marker(self) -> Path:
        return self.marker or self.run_dir / f"{TEMPORARY_PREFIX}{self.name}"

    @property
    def _is_here(self) -> bool:
        """Whether this is the machine of the command, whose folder is that of the whole run."""
        return self._marker.exists()


def _new_name() -> str:
    return f"{NAME_PREFIX}{uuid.uuid4().hex[:12]}"
