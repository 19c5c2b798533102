"""The folder in which a stored run works: it follows the store, and never replaces what others have stored."""

from pathlib import Path

import fsspec
import pytest

from pipeline.run.objects import StoredRunError
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.stored_run import push_held_run
from pipeline.run.working_folder import WorkingFolder


class Machine(WorkingFolder):
    """A machine with a folder of its own."""

    def write(self, **contents: str) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        for name, text in {CONFIG_NAME: "name: demo", **contents}.items():
            (self.run_dir / name).write_text(text, encoding="utf-8")

    def push(self) -> None:
        push_held_run(self.run_dir, self.place, show=False, admit=self.admit)

    def contents(self) -> dict[str, str]:
        files = [path for path in self.run_dir.iterdir() if path.suffix != ".lock"]
        return {path.name: path.read_text(encoding="utf-8") for path in files if path.name != CONFIG_NAME}


@pytest.fixture
def machines(tmp_path, request) -> tuple[Machine, Machine]:
    place = f"memory://{request.node.name}/demo"
    first, second = (Machine(tmp_path / name / "demo", place) for name in ("first", "second"))
    return first, second


def superseded(machine: Machine) -> list[Path]:
    return sorted(machine.run_dir.parent.glob("demo.superseded-*"))


def test_the_run_goes_from_machine_to_machine(machines):
    first, second = machines
    assert first.update() is None  # nothing is stored
    first.write(shard="made", old="of the first")
    first.push()
    assert second.update() is not None
    assert second.contents() == {"shard": "made", "old": "of the first"}
    (second.run_dir / "old").unlink()
    second.write(more="trained")
    second.push()
    fetched = first.update()
    assert fetched is not None
    assert fetched.num_copied == 2  # `more` and the configuration: the shard was there
    assert first.contents() == {"shard": "made", "more": "trained"}
    assert first.update() is None
    assert superseded(first) == superseded(second) == []


def test_what_was_not_stored_goes_on_here_and_is_moved_aside_where_another_machine_has_gone_on(machines, caplog):
    first, second = machines
    first.update()
    first.write(shard="made")
    first.push()
    first.write(step="70")  # killed before it was stored
    assert first.update() is None
    assert first.contents() == {"shard": "made", "step": "70"}
    second.update()
    second.write(step="60")
    second.push()
    assert first.update() is not None
    assert first.contents() == {"shard": "made", "step": "60"}
    (aside,) = superseded(first)
    assert (aside / "step").read_text(encoding="utf-8") == "70"
    assert f"that is now in {aside}" in caplog.text


def test_a_push_does_not_replace_what_another_command_has_stored(machines):
    first, second = machines
    for machine in machines:  # both begin where nothing is stored
        machine.update()
        machine.write(shard=machine.run_dir.parent.name)
    first.push()
    with pytest.raises(
        StoredRunError, match=r"another command has stored memory://\S+ meanwhile, which is not replaced"
    ):
        second.push()
    first.push()
    second.update()
    assert second.contents() == {"shard": "first"}
    second.write(shard="second")
    second.push()
    first.write(shard="first again")
    with pytest.raises(StoredRunError, match="another command has stored"):
        first.push()


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_push_that_is_killed_is_known_as_that_of_this_machine(machines, monkeypatch, is_replaced):
    first, _ = machines
    first.update()
    first.write(shard="made")
    first.push()
    first.write(shard="again")
    files, (real) = fsspec.url_to_fs(first.place)[0], fsspec.url_to_fs(first.place)[0].pipe_file

    def killed(path: str, content: bytes) -> None:
        if is_replaced:
            real(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "pipe_file", killed)
        with pytest.raises(KeyboardInterrupt):
            first.push()
    assert first.update() is None
    assert first.contents() == {"shard": "again"}
    first.push()


def test_an_update_that_is_interrupted_goes_on(machines, monkeypatch):
    first, second = machines
    first.update()
    first.write(shard="made", other="made too")
    first.push()
    second.write(shard="a copy that a worker had", stale="likewise")
    (second.run_dir / CONFIG_NAME).unlink()
    files, left = fsspec.url_to_fs(second.place)[0], [1]
    real = files.get_file

    def fails(stored: str, path: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PermissionError("it went away")
        real(stored, path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "get_file", fails)
        with pytest.raises(StoredRunError, match="it went away"):
            second.update()
    assert not (second.run_dir / CONFIG_NAME).exists()
    second.update()
    assert second.contents() == {"shard": "made", "other": "made too"}
    assert superseded(second) == []
