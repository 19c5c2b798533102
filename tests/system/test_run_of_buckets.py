"""The whole run of a mix of two datasets of several shapes, and how little a change makes anew."""

import json
import shutil
from collections import Counter

import pytest
import yaml

from data.curation.sources import list_sources, of_dataset
from data.dataset.index import read_index
from data.dataset.manifest import read_manifest
from data.video.codec import decode_clip
from launch.config import load_config
from pipeline.checkpoint.read import open_checkpoint
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.encode.encode import encode_shards
from pipeline.ingest.shard import make_shards
from pipeline.sample.outputs import read_samples
from pipeline.train.monitor.metrics import read_metrics
from testing.commands import launch_here
from testing.shapes import make_video

pytestmark = pytest.mark.slow

TRAIN = {"steps": 6, "global_batch": 4, "batch_multiple": 2, "checkpoint_every_steps": 3, "log_every_steps": 1}


@pytest.fixture(scope="module")
def run(cluster, tmp_path_factory):
    """A finished run of every stage: wide and tall videos in one folder, short ones in another.

    The autoencoder is trained without Ray; its training says of the buckets what that of the network says.
    """
    folder = tmp_path_factory.mktemp("buckets")
    for number in range(8):
        sides = (64, 128) if number % 2 else (128, 64)
        make_video(folder / "long" / f"{number}.mp4", *sides, 12, 5 * number)
    for number in range(3):
        make_video(folder / "short" / f"{number}.mp4", 96, 96, 6, 9 * number)
    config = {
        "name": "mixed",
        "runs_dir": str(folder / "runs"),
        "data": {
            "mix": {
                "long": {"source": str(folder / "long")},
                "short": {"source": str(folder / "short"), "weight": 2},
            },
            "choose_buckets": {"pixels": 2304, "num_frames": [5, 9], "max_aspects": 3},
            "validation_fraction": 0,
            "videos_per_shard": 4,
        },
        "autoencoder": {"model": {"latent_channels": 4, "width": 8, "deep_width": 16}, "train": TRAIN},
        "dit": {
            "model": {"width": 32, "depth": 1, "heads": 2, "text": {"width": 16, "depth": 1, "heads": 2}},
            "train": TRAIN,
        },
        "sample": {"solver": "euler", "steps": 2, "bucket": "9x64x32@8"},
        "cluster": {"object_store_mib": 128},
    }
    path, prompts = folder / "mixed.yaml", folder / "prompts.jsonl"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [{"prompt": "a"}, {"prompt": "b", "bucket": "5x48x48@8"}, {"prompt": "c", "bucket": "9x32x64@8"}]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    said = ""
    for command in (("shard",), ("train", "autoencoder", "--local"), ("run", "--set", f"sample.prompts={prompts}")):
        done = launch_here(*command, str(path))
        assert done.returncode == 0, done.stderr
        said += done.stdout
    return path, folder / "runs" / "mixed", said


def test_every_stage_takes_every_shape(run):
    _, run_dir, _ = run
    clips, latents = read_manifest(run_dir / "clips"), read_manifest(run_dir / "latents")
    assert {record.bucket.name: record.num_train for record in clips.buckets} == {
        "9x32x64@8": 4,
        "9x64x32@8": 4,
        "5x48x48@8": 3,
    }
    assert clips.buckets == latents.buckets
    rows = read_index(run_dir / "latents")
    assert Counter(row.dataset for row in rows) == {"long": 8, "short": 3}
    for kind in ("autoencoder", "dit"):
        # 4 clips of 96 tokens, or of 72: 5 clips would fit, 4 are shared evenly. Steps go 4 : 4 : 2 x 3.
        assert open_checkpoint(run_dir / kind).record.cursor == 6 * 4
        assert [row["step"] for row in read_metrics(run_dir / kind)] == list(range(1, 7))


def test_the_training_says_what_it_makes_of_each_bucket(run):
    lines = [" ".join(line.split()) for line in run[2].splitlines() if " of the steps" in line]
    assert lines == 2 * [
        "5x48x48@8 short 3 clips, each 2 x an epoch, 4 a batch, 42.9% of the steps",
        "9x32x64@8 long 4 clips, each 1 x an epoch, 4 a batch, 28.6% of the steps",
        "9x64x32@8 long 4 clips, each 1 x an epoch, 4 a batch, 28.6% of the steps",
    ]


def test_each_prompt_gets_its_shape(run):
    _, run_dir, _ = run
    shapes = {
        clip.request.prompt: decode_clip((run_dir / "samples" / clip.file).read_bytes()).shape
        for clip in read_samples(run_dir / "samples")
    }
    assert shapes == {"a": (9, 64, 32, 3), "b": (5, 48, 48, 3), "c": (9, 32, 64, 3)}
    assert (run_dir / "report.html").is_file()


def test_a_shape_that_cannot_be_sampled_is_refused_and_earlier_samples_stay(run):
    path, run_dir, _ = run
    done = launch_here("sample", str(path), "--set", "sample.bucket=9x50x48@8")
    assert done.returncode == 1
    assert "sample.bucket '9x50x48@8'" in done.stderr
    schedule = launch_here("sample", str(path), "--set", "sample.schedule=pyramid")
    assert schedule.returncode == 1
    assert "sample.schedule is 'pyramid', but" in schedule.stderr
    assert not list(run_dir.glob("samples.*"))


def test_a_changed_video_is_encoded_anew_and_no_other(cluster, run, tmp_path):
    path, run_dir, _ = run
    config = load_config(path)
    for folder in ("clips", "latents"):
        shutil.copytree(run_dir / folder, tmp_path / folder)
    weights = tmp_path / "latents" / AUTOENCODER_NAME

    def encode() -> list[str]:
        manifest = encode_shards(
            tmp_path / "clips", tmp_path / "latents", weights, config.encode, config.cluster.workers
        )
        return [shard.sha256 for shard in manifest.shards]

    def written() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "latents").glob("*.tar")}

    times, before = written(), [shard.sha256 for shard in read_manifest(run_dir / "latents").shards]
    assert encode() == before
    assert written() == times
    changed = shutil.copytree(config.data.mix["long"].source, tmp_path / "long")
    make_video(changed / "5.mp4", 64, 128, 12, 90)
    listed = of_dataset("long", list_sources(str(changed)))
    listed += of_dataset("short", list_sources(config.data.mix["short"].source))
    make_shards(listed, tmp_path / "clips", config.data.shard(), 2)
    (its_shard,) = {row.shard for row in read_index(tmp_path / "clips") if row.source == "long/5.mp4"}
    shards = [shard.name for shard in read_manifest(tmp_path / "clips").shards]
    assert [name for name, a, b in zip(shards, encode(), before, strict=True) if a != b] == [its_shard]
    assert [name for name, time in sorted(written().items()) if time != times[name]] == [its_shard]
    weights.write_bytes(weights.read_bytes())
    assert encode() == [shard.sha256 for shard in read_manifest(tmp_path / "latents").shards]


def test_the_buckets_are_trained_on_together(run):
    """Six steps of clips of all shapes, on two workers, from latents that are there; then samples of each shape."""
    path, run_dir, _ = run
    together = run_dir.parent / "together"
    shutil.copytree(run_dir, together, ignore=shutil.ignore_patterns("dit", "samples", "report*", "stages.json"))
    settings = ["name=together", "dit.train.mixed_buckets=true", "dit.train.global_batch=6"]
    done = launch_here("train", "dit", str(path), *(word for each in settings for word in ("--set", each)))
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if " of the tokens" in line]
    assert lines == [
        "5x48x48@8 short 3 clips, each 2 x an epoch, 2.9 a step, 36.0% of the tokens",
        "9x32x64@8 long 4 clips, each 1 x an epoch, 1.9 a step, 32.0% of the tokens",
        "9x64x32@8 long 4 clips, each 1 x an epoch, 1.9 a step, 32.0% of the tokens",
    ]
    assert [row["step"] for row in read_metrics(together / "dit")] == list(range(1, 7))
    cursor = open_checkpoint(together / "dit").record.cursor
    assert abs(cursor - 6 * (2.88 + 1.92 + 1.92)) <= 2  # a turn


def test_another_start_has_nothing_to_do(run):
    path, run_dir, _ = run
    prompts = run_dir.parent.parent / "prompts.jsonl"
    done = launch_here("run", str(path), "--set", f"sample.prompts={prompts}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("nothing to do") == 6
