"""Bad input of every kind: a clear message, no traceback, and nothing lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from testing.commands import TINY, launch, launch_here


@pytest.fixture
def config(cluster, tmp_path) -> Path:
    """On one worker, which starts in half the time."""
    path = tmp_path / "tiny.yaml"
    one_worker = TINY.replace("{{object_store_mib", "{{workers: {{num_workers: 1}}, object_store_mib")
    path.write_text(one_worker.format(runs=tmp_path / "runs"), encoding="utf-8")
    return path


def refused(*arguments: str) -> str:
    """Run a command that has to fail, and return what it says."""
    done = launch_here(*arguments)
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert "error: " in done.stderr or "Error" in done.stderr
    return done.stderr


def test_folders_without_videos(config, tmp_path):
    empty = tmp_path / "empty"
    said = refused("shard", str(config), "--set", f"data.source={empty}")
    assert f"{empty} is not a folder" in said
    empty.mkdir()
    assert "is empty; put videos in it" in refused("shard", str(config), "--set", f"data.source={empty}")
    (empty / "notes.txt").write_text("hello")
    said = refused("shard", str(config), "--set", f"data.source={empty}")
    assert "holds 1 files (.txt) but no video" in said


def test_a_corrupt_video_among_good_ones_goes_to_quarantine(config, tmp_path):
    source = tmp_path / "videos"
    (source / "moves").mkdir(parents=True)
    clips = [encode_clip(render(random_scene(0, number, combinations()), 12, 48), 8) for number in range(3)]
    for number, content in enumerate(clips):
        (source / "moves" / f"{number}.mp4").write_bytes(content)
    (source / "moves" / "broken.mp4").write_bytes(clips[-1][: len(clips[-1]) // 3])
    (source / "moves" / "empty.mp4").touch()
    (source / "moves" / "text.mp4").write_text("hello")
    done = launch_here("shard", str(config), "--set", f"data.source={source}")
    assert done.returncode == 0, done.stderr
    assert "clips 3, filtered 0, quarantined 3" in done.stdout
    quarantine = (tmp_path / "runs" / "tiny" / "clips" / "quarantine.jsonl").read_text(encoding="utf-8")
    assert [name in quarantine for name in ("broken.mp4", "empty.mp4", "text.mp4")] == [True] * 3
    assert "the file is empty" in quarantine
    assert "nothing to do" in launch_here("shard", str(config), "--set", f"data.source={source}").stdout
    mended = source / "moves" / "text.mp4"
    mended.unlink()
    retried = launch_here("shard", str(config), "--set", f"data.source={source}", "--retry")
    assert "source changed" in retried.stdout  # another set of files is another dataset
    assert "clips 3, filtered 0, quarantined 2" in retried.stdout


def test_nothing_but_corrupt_videos(config, tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    (source / "a.mp4").write_text("hello")
    assert "none of the 1 videos" in refused("shard", str(config), "--set", f"data.source={source}")


def test_a_misspelt_key_and_a_missing_config(config):
    said = refused("run", str(config), "--set", "dit.train.lerning_rate=1")
    assert "dit.train.lerning_rate: there is no such field; did you mean learning_rate?" in said
    assert "presets are" in refused("run", "nowhere.yaml")
    assert "error: " in launch("run", "nowhere.yaml").stderr  # and from outside


def test_missing_checkpoints(config, tmp_path):
    (tmp_path / "none").mkdir()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle moves left")
    said = refused("sample", str(tmp_path / "none"), "--prompts", str(prompts), "--output", str(tmp_path / "out"))
    assert "is not a checkpoint" in said
    assert "is not finished; run `train dit` first" in refused("sample", str(config))
    assert "clips is not finished; run `shard` first" in refused("train", "autoencoder", str(config))
    assert "latents is not finished; run `encode` first" in refused("train", "dit", str(config), "--local")
    assert "holds no checkpoint to resume from" in refused("train", "dit", str(config), "--resume")


def test_prompts_that_cannot_be_read_are_refused_before_anything_is_made(config, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.touch()
    for place, reason in ((tmp_path / "none.txt", "there is no such prompts file"), (empty, "holds no prompt")):
        assert reason in refused("run", str(config), "--set", f"sample.prompts={place}")
    assert not (tmp_path / "runs").exists()


def test_an_output_folder_that_cannot_be_written(config, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    said = refused("shard", str(config), "--set", f"runs_dir={blocked}")
    assert "cannot be made" in said
    assert "set runs_dir to a folder you own" in said


def test_a_full_disk_is_said_and_nothing_is_lost(config, tmp_path):
    """/dev/full refuses every write as a full disk does; a small quota needs privileges a test does not have."""
    from data.files.publish import published

    def write_a_lot() -> None:
        with published(tmp_path / "x") as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x")

    with pytest.raises(OSError, match="No space left"):
        write_a_lot()
    assert not (tmp_path / "x").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]

    from launch.errors import describe

    assert "the disk is full" in (describe(OSError(28, "No space left on device", str(tmp_path))) or "")


def test_debug_shows_the_traceback(config):
    done = launch("run", str(config), "--set", "nonsense=1", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_another_package_of_the_same_name_is_refused(tmp_path):

    from testing.paths import ROOT

    shadow = tmp_path / "shadow"
    (shadow / "models").mkdir(parents=True)
    (shadow / "models" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(shadow)!r}, {str(ROOT)!r}]; import launch.__main__ as m; m.main()"
    done = subprocess.run([sys.executable, "-c", code, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "the package 'models' was imported from" in done.stderr


def test_a_run_does_not_touch_its_sources(config, tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    content = encode_clip(render(random_scene(0, 1, combinations()), 12, 48), 8)
    (source / "a.mp4").write_bytes(content)
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    assert launch_here("shard", str(config), "--set", f"data.source={source}").returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    shutil.rmtree(tmp_path / "runs")


def test_a_missing_package_is_told_before_work_starts(tmp_path, monkeypatch):
    (tmp_path / "rapidocr_onnxruntime.py").write_text("raise ImportError('there is no such package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(runs=tmp_path / "runs"), encoding="utf-8")
    done = launch("shard", str(config), "--set", "data.filters.text_fraction=0.1", "--set", f"data.source={tmp_path}")
    assert done.returncode != 0
    assert "data.filters.text_fraction needs RapidOCR (there is no such package): pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "tiny" / "clips").exists()
