"""A run in a store: pushed and pulled whole, whatever interrupts it, and never mixed with another."""

import os
import shutil
from hashlib import sha256
from pathlib import Path

import fsspec
import pytest
from filelock import FileLock

from data.errors import ReelflowError
from pipeline.run.stored_run import StoredRunError, pull_run, push_held_run, push_run

FILES = {
    "config.yaml": "name: demo\n",
    "clips/manifest.json": "{}",
    "clips/part/shard.tar": "pixels",
    "clips/part/ray/same.tar": "pixels",
    "dit/checkpoints/step_0000003/checkpoint.json": '{"step": 3}',
    "dit/checkpoints/step_0000003/rank_00000.safetensors": "weights",
    "dit/latest": "step_0000003\n",
    "dit/stage.json": '{"complete": true}',
}
LEFT_OUT = (
    "run.lock",
    "dit/training.lock",
    "dit/ray/x",
    "dit/compiled/x",
    "dit/.tmp-latest-1",
    "clips/.tmp-x/shard.tar",
)


@pytest.fixture
def place(request) -> str:
    return f"memory://runs/{request.node.name}/demo"


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "here" / "demo"
    for number, (name, content) in enumerate([*FILES.items(), *((name, "x") for name in LEFT_OUT)]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of each file but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def objects(place: str) -> set[str]:
    return {name.rpartition("/")[2] for name in fsspec.url_to_fs(place)[0].find(f"{place}/objects")}


def test_a_run_comes_back_as_it_was_and_nothing_is_sent_twice(run_dir, place, tmp_path):
    pushed = push_run(run_dir, place)
    assert (pushed.num_files, pushed.num_copied) == (len(FILES), len(set(FILES.values())))
    assert len(objects(place)) == len(set(FILES.values()))
    there = tmp_path / "there" / "demo"
    assert pull_run(place, there).num_copied == len(FILES)
    assert contents(there) == {name: seen for name, seen in contents(run_dir).items() if name in FILES}
    assert pull_run(place, there).num_copied == push_run(run_dir, place).num_copied == 0

    (run_dir / "dit/latest").write_text("step_0000006\n", encoding="utf-8")
    shutil.rmtree(run_dir / "dit/checkpoints")
    (run_dir / "dit/new").write_text("weights", encoding="utf-8")  # a content that is there
    assert push_run(run_dir, place).num_copied == 1
    assert len(objects(place)) == len(set(FILES.values())) - 1  # what only checkpoint.json held is gone
    with pytest.raises(StoredRunError, match=r"has 1 files that differ from those stored, such as dit/latest: pull"):
        pull_run(place, there)
    anew = tmp_path / "anew" / "demo"
    pull_run(place, anew, ["dit"])
    assert set(contents(anew)) == {"config.yaml", "dit/latest", "dit/new", "dit/stage.json"}


def test_logs_alone_need_not_be_sent(run_dir, place):
    push_run(run_dir, place)
    (run_dir / "logs").mkdir()
    (run_dir / "logs" / "driver.log").write_text("nothing to do", encoding="utf-8")
    assert push_held_run(run_dir, place, logs_alone=False).num_copied == 0
    assert push_held_run(run_dir, place).num_copied == 1
    (run_dir / "dit" / "latest").unlink()
    assert push_held_run(run_dir, place, logs_alone=False).num_files == len(FILES)


class Stopped(OSError):
    """In place of a connection that breaks, or of the end of this process."""


@pytest.mark.parametrize("after", range(4))
def test_an_interrupted_push_leaves_the_run_before_it(run_dir, place, tmp_path, monkeypatch, after):
    push_run(run_dir, place)
    before = contents(run_dir)
    for name in ("dit/latest", "clips/manifest.json", "clips/part/shard.tar"):
        (run_dir / name).write_text(f"another {name}", encoding="utf-8")
    files, left = fsspec.url_to_fs(place)[0], [after]

    def stopping(call):
        def calls(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Stopped("it went away")
            return call(*arguments, **options)

        return calls

    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", stopping(files.put_file))
        patch.setattr(files, "pipe_file", stopping(files.pipe_file))
        with pytest.raises(StoredRunError, match=r"demo cannot be used \(it went away\); check the address"):
            push_run(run_dir, place)
    pull_run(place, tmp_path / "before" / "demo")
    assert contents(tmp_path / "before" / "demo") == {name: before[name] for name in FILES}
    assert push_run(run_dir, place).num_copied == 3 - min(after, 3)
    pull_run(place, tmp_path / "after" / "demo")
    assert contents(tmp_path / "after" / "demo") == {name: contents(run_dir)[name] for name in FILES}


def test_an_interrupted_pull_goes_on_and_writes_what_calls_others_whole_last(run_dir, place, tmp_path, monkeypatch):
    push_run(run_dir, place)
    there, files = tmp_path / "there" / "demo", fsspec.url_to_fs(place)[0]
    fetched, original = [], files.get_file

    def get_file(name, target):
        if len(fetched) == 4:
            raise Stopped("it went away")
        fetched.append(Path(target).name)
        original(name, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "get_file", get_file)
        with pytest.raises(StoredRunError, match="it went away"):
            pull_run(place, there)
    assert {"dit/latest", "dit/stage.json", "config.yaml"} & set(contents(there)) == set()
    assert (there / "dit/checkpoints/step_0000003/checkpoint.json").is_file()
    assert not list(there.rglob(".tmp-*"))
    assert pull_run(place, there).num_copied == 3
    assert set(contents(there)) == set(FILES)


def test_objects_of_no_file_are_deleted_where_nobody_else_stores_any(run_dir, place, monkeypatch):
    push_run(run_dir, place)
    files, late = fsspec.url_to_fs(place)[0], "1" * 64
    for name in ("0" * 64, late):
        files.pipe_file(f"{place}/objects/{name}", b"of a worker")
    named = objects(place) - {"0" * 64, late}
    (run_dir / "dit" / "latest").write_text("step_0000006\n", encoding="utf-8")
    push_run(run_dir, place)
    assert {"0" * 64, late} < objects(place)
    files.rm_file(f"{place}/objects/{late}")
    (run_dir / "dit" / "latest").write_text("step_0000009\n", encoding="utf-8")
    put = files.put_file

    def put_file(source, target):
        files.pipe_file(f"{place}/objects/{late}", b"of a worker, while the push goes on")
        put(source, target)

    monkeypatch.setattr(files, "put_file", put_file)
    push_held_run(run_dir, place, clears=True)
    assert len(objects(place) & named) == len(named) - 1
    assert late in objects(place)
    assert "0" * 64 not in objects(place)


def test_a_file_that_changes_while_it_is_sent_ends_the_push(run_dir, place, monkeypatch):
    files = fsspec.url_to_fs(place)[0]

    def put_file(source, target):
        if Path(source).name == "latest":
            Path(source).write_text("step_0000004\n", encoding="utf-8")
        files.pipe_file(target, Path(source).read_bytes())

    monkeypatch.setattr(files, "put_file", put_file)
    with pytest.raises(StoredRunError, match=r"dit/latest has changed while it was sent"):
        push_run(run_dir, place)
    sent = objects(place)
    assert all(name == sha256(files.cat_file(f"{place}/objects/{name}")).hexdigest() for name in sent)
    assert not files.exists(f"{place}/run.json")


def test_what_is_no_run_or_another_one_is_refused(run_dir, place, tmp_path):
    with pytest.raises(StoredRunError, match=r"is not the folder of a run: it holds no config\.yaml"):
        push_run(tmp_path, place)
    with pytest.raises(StoredRunError, match=r"demo holds no run: there is no run\.json"):
        pull_run(place, tmp_path / "x")
    push_run(run_dir, place)
    other = run_dir.rename(run_dir.with_name("other"))
    with pytest.raises(StoredRunError, match="holds the run demo, not other; name another place"):
        push_run(other, place)
    with pytest.raises(StoredRunError, match=r"has no folder samples; it has clips, dit"):
        pull_run(place, tmp_path / "x", ["dit", "samples"])
    with FileLock(other / "run.lock"), pytest.raises(ReelflowError, match="is in use by process"):
        push_run(other, place)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a//x", "", ".", "a\\\\..\\\\x"])
def test_a_stored_run_writes_nowhere_else(place, tmp_path, name):
    digest = "0" * 64
    record = f'{{"name": "demo", "files": {{"{name}": {{"num_bytes": 1, "sha256": "{digest}", "modified_ns": 1}}}}}}'
    fsspec.url_to_fs(place)[0].pipe_file(f"{place}/run.json", record.encode())
    with pytest.raises(StoredRunError, match=r"run\.json is damaged: .* is no file of a run's folder"):
        pull_run(place, tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_damaged_contents_are_not_taken(run_dir, place, tmp_path):
    push_run(run_dir, place)
    files = fsspec.url_to_fs(place)[0]
    for name in objects(place):
        files.pipe_file(f"{place}/objects/{name}", b"\0" * files.size(f"{place}/objects/{name}"))
    with pytest.raises(StoredRunError, match=r"what is stored of .* is damaged; push the run again"):
        pull_run(place, tmp_path / "there")
    assert contents(tmp_path / "there") == {}
