"""The table of changes in docs/guides/reliability.md: what each stage makes again after a change, counted."""

import os
import re
import shutil
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from data.dataset.manifest import read_manifest
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from pipeline.sample.outputs import read_samples
from pipeline.train.monitor.metrics import read_metrics
from testing.commands import launch_here

pytestmark = pytest.mark.slow

NUM_VIDEOS, STEPS = 14, 3
CONFIG = """
name: run
runs_dir: {folder}/runs
data:
  source: {folder}/videos
  buckets: [{{num_frames: 9, height: 32, width: 32, fps: 8}}]
  max_clips_per_video: 1
  videos_per_shard: 4
  validation_fraction: 0.15
  filters: {{black_luma: 1}}
autoencoder:
  model: {{latent_channels: 4, width: 8, deep_width: 16}}
  train: {{steps: 3, global_batch: 4, checkpoint_every_steps: 3, log_every_steps: 1}}
dit:
  model: {{width: 32, depth: 1, heads: 2, text: {{width: 16, depth: 1, heads: 2, max_bytes: 63}}}}
  train: {{steps: 3, global_batch: 4, checkpoint_every_steps: 3, log_every_steps: 1}}
sample: {{solver: euler, steps: 1, batch: 8, prompts: {folder}/prompts.txt}}
evaluate: {{max_reconstructions: 2}}
cluster: {{object_store_mib: 128, workers: {{num_workers: 1}}}}
"""


@dataclass(frozen=True)
class Work:
    """What the stages of one start did."""

    videos_cut: int = 0
    clip_shards: int = 0
    autoencoder_steps: int = 0
    clips_encoded: int = 0
    latent_shards: int = 0
    dit_steps: int = 0
    clips_sampled: int = 0
    evaluations: int = 0


def files_of(folder: Path) -> set[tuple[str, int]]:
    """The shards of a folder; one that is written again is another file."""
    return {(path.name, path.stat().st_ino) for path in folder.glob("shard-*.tar")}


def start(folder: Path, *settings: str) -> Work:
    """Run every stage that takes a command; returns what was done."""
    run_dir, options = folder / "runs" / "run", [word for setting in settings for word in ("--set", setting)]
    before = {name: files_of(run_dir / name) for name in ("clips", "latents")}
    said = {}
    for command in (("shard",), ("train", "autoencoder"), ("encode",), ("train", "dit"), ("sample",), ("evaluate",)):
        local = ["--local"] if command[0] == "train" else []
        done = launch_here(*command, str(folder / "config.yaml"), *options, *local)
        assert done.returncode == 0, done.stdout + done.stderr
        said[" ".join(command)] = done.stdout

    def ran(stage: str) -> bool:
        return f"{stage}: nothing to do" not in said[stage]

    def number(stage: str, pattern: str) -> int:
        """What a stage says, once or, before it starts, twice."""
        return max(map(int, re.findall(pattern, said[stage])), default=0)

    return Work(
        videos_cut=number("shard", r"(\d+) videos are cut\n"),
        clip_shards=len(files_of(run_dir / "clips") - before["clips"]),
        autoencoder_steps=len(read_metrics(run_dir / "autoencoder")) * ran("train autoencoder"),
        clips_encoded=number("encode", r"(\d+) clips are encoded\n"),
        latent_shards=len(files_of(run_dir / "latents") - before["latents"]),
        dit_steps=len(read_metrics(run_dir / "dit")) * ran("train dit"),
        clips_sampled=len(read_samples(run_dir / "samples")) * ran("sample"),
        evaluations=int(ran("evaluate")),
    )


def draw(path: Path, scene: int, brightness: float = 1.0) -> None:
    frames = np.clip(render(random_scene(0, scene, combinations()), 10, 48) * brightness + 8, 0, 255)
    path.write_bytes(encode_clip(frames.astype(np.uint8), 8))


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> Path:
    """A finished run on a folder of videos, each with a caption."""
    folder = tmp_path_factory.mktemp("changes")
    (folder / "videos").mkdir()
    for number in range(NUM_VIDEOS):
        draw(folder / "videos" / f"{number:02d}.mp4", number, 0.05 if number == 7 else 1.0)
        (folder / "videos" / f"{number:02d}.txt").write_text(f"video {number}")
    (folder / "prompts.txt").write_text("video 1\nvideo 2\n")
    (folder / "config.yaml").write_text(CONFIG.format(folder=folder))
    made = start(folder)
    assert astuple(made) == (NUM_VIDEOS, made.clip_shards, STEPS, NUM_VIDEOS, made.clip_shards, STEPS, 2, 1)
    assert made.clip_shards > 3
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    """A copy of the run and its videos."""
    for name in ("videos", "runs"):
        shutil.copytree(finished / name, tmp_path / name)
    shutil.copy(finished / "prompts.txt", tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path


def nothing(folder: Path) -> None:
    pass


def touch(folder: Path) -> None:
    os.utime(folder / "videos" / "03.mp4")


def caption(folder: Path) -> None:
    (folder / "videos" / "03.txt").write_text("another caption")


def add_first(folder: Path) -> None:
    draw(folder / "videos" / "+.mp4", 40)


def add_last(folder: Path) -> None:
    draw(folder / "videos" / "z.mp4", 41)


def remove(folder: Path) -> None:
    (folder / "videos" / "03.mp4").unlink()


def leave_out(folder: Path) -> None:
    """Cut with a threshold that leaves one clip out, which the start that follows takes back."""
    done = launch_here("shard", str(folder / "config.yaml"), "--set", "data.filters.black_luma=20")
    assert done.returncode == 0, done.stdout + done.stderr
    assert read_manifest(folder / "runs" / "run" / "clips").num_samples == ALL - 1


ALL = NUM_VIDEOS
NONE = Work()
STORED = Work(clip_shards=-1, latent_shards=-1)
"""The records of all clips get another measure; those of latents have none, so they are written as they were."""


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        (nothing, (), NONE),
        (touch, (), NONE),
        (caption, (), Work(0, 1, 0, 0, 1, STEPS, 2, 1)),
        (add_first, (), Work(1, 1, STEPS, ALL + 1, -1, STEPS, 2, 1)),
        (add_last, (), Work(1, 1, STEPS, ALL + 1, -1, STEPS, 2, 1)),
        (remove, (), Work(0, 1, STEPS, ALL - 1, -1, STEPS, 2, 1)),
        (nothing, ("data.filters.black_luma=2",), NONE),
        (nothing, ("data.filters.black_luma=20",), Work(0, 1, STEPS, ALL - 1, -1, STEPS, 2, 1)),
        (leave_out, (), Work(videos_cut=1, clip_shards=1)),
        (nothing, ("data.filters.static_difference=0.001",), NONE),
        (nothing, ("data.filters.black_luma=null",), NONE),
        (nothing, ("data.filters.min_sharpness=0.000001", "data.filters.max_clipped_share=0.999"), STORED),
        (nothing, ("data.filters.max_logo_share=0.999",), replace(STORED, videos_cut=ALL)),
        (nothing, ("data.videos_per_shard=64",), Work(0, 1, STEPS, ALL, 1, STEPS, 2, 1)),
        (nothing, ("autoencoder.model.width=16",), Work(0, 0, STEPS, ALL, -1, STEPS, 2, 1)),
        (nothing, ("dit.train.learning_rate=0.002",), Work(0, 0, 0, 0, 0, STEPS, 2, 1)),
    ],
    ids=[
        "nothing",
        "touch",
        "caption",
        "first",
        "last",
        "removed",
        "filter-without-effect",
        "filter",
        "filter-back",
        "filter-on",
        "filter-off",
        "filter-stored",
        "filter-unmeasured",
        "shards",
        "width",
        "dit",
    ],
)
def test_what_a_change_makes_again(folder, change, settings, expected, capsys, request):
    """A number of shards of -1 stands for all; one shard may split into two, or two may join."""
    change(folder)
    done = start(folder, *settings)
    with capsys.disabled():
        print(f"\n{request.node.callspec.id}: {done}")
    num_shards = len(read_manifest(folder / "runs" / "run" / "clips").shards)
    for name, wanted in vars(expected).items():
        found = getattr(done, name)
        if name == "clip_shards" and wanted == 1:
            assert found in (1, 2), name
        else:
            assert found == (num_shards if wanted == -1 else wanted), name
    assert start(folder, *settings) == NONE
