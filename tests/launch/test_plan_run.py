"""`plan`: memory, time and cost of a run before any GPU is taken."""

import json
from dataclasses import replace
from math import prod
from os import mkfifo
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.curation.source import SourceError
from data.dataset.buckets import Bucket
from data.dataset.compression import COMPRESSION
from data.video.codec import encode_clip
from launch.config import load_config
from launch.overrides import ConfigError
from launch.plan_data import TOO_SHORT, DataPlan, plan_data
from launch.plan_hardware import Hardware, parse_peak, parse_size
from launch.plan_run import RunPlan, describe_run_plan, plan_run
from models.networks.config import DiTConfig
from models.networks.counts import ClipSize, dit_cost
from pipeline.distributed.config import WorldSizeError
from testing.commands import launch_here
from testing.paths import CASES_DIR
from testing.shapes import write_two_videos

GIB = 2**30
NO_DATA = DataPlan((), None, "unknown", None, {}, {}, "")
H100 = Hardware(num_gpus=4, memory_bytes=80 * GIB, peak_flops=989e12, utilisation=0.4, price=2.5)
LARGE = {
    "dit.model.width": 768,
    "dit.model.heads": 12,
    "dit.model.depth": 2,
    "data.buckets": "[{num_frames: 33, height: 480, width: 832, fps: 16}]",
    "autoencoder.train.global_batch": 4,
    "dit.train.global_batch": "8",
}


def config(tmp_path: Path, **fields: object):
    return load_config(Path("demo"), [f"runs_dir={tmp_path}", *(f"{name}={value}" for name, value in fields.items())])


def test_figures_follow_from_the_closed_forms(tmp_path):
    given = config(tmp_path, **{"dit.flow.first_frame_share": 0, "dit.flow.given": "{}"})  # one time for each clip
    planned = plan_run(given, H100)
    dit = planned.trainings[1]
    assert isinstance(given.dit.model, DiTConfig)
    cost = dit_cost(given.dit.model, 8, ClipSize((5, 8, 8)))
    assert dit.parameters == cost.parameters
    assert dit.flops_per_step == 32 * cost.training_flops
    assert dit.tokens_per_step == 32 * 80
    seconds = 1500 * dit.flops_per_step / (4 * 989e12 * 0.4)
    assert dit.hours == pytest.approx(seconds / 3600)
    assert dit.cost == pytest.approx(4 * 2.5 * seconds / 3600)
    assert dit.checkpoint_bytes == 4 * 4 * cost.parameters  # master weights, two moments, one average, in float32
    assert planned.data.latent_bytes == 1440 * 4 * 8 * prod((5, 8, 8))
    assert planned.fits
    assert not any(training.ways_out for training in planned.trainings)


def test_what_does_not_fit_names_the_nearest_settings_that_do(tmp_path):
    given = config(tmp_path, **LARGE)
    small = replace(H100, memory_bytes=5 * GIB // 2)
    planned = plan_run(given, small).trainings[1]
    assert not planned.fits
    assert planned.ways_out
    again = config(tmp_path, **{**LARGE, **dict(way.split("=") for way in planned.ways_out)})
    assert plan_run(again, small).trainings[1].fits
    assert "DOES NOT FIT" in describe_run_plan(RunPlan("x", small, NO_DATA, (planned,)))


def test_sequence_parallelism_and_checkpointing_lower_activations_alone(tmp_path):
    def memory(**fields: object):
        return plan_run(config(tmp_path, **LARGE, **fields), H100).trainings[1].memory

    groups = {"dit.train.sequence_parallel": 4, "dit.train.gradient_accumulation_steps": 4}
    plain, shared = memory(), memory(**groups, **{"cluster.workers.num_workers": 4})
    assert shared.weights == plain.weights
    assert shared.activations < plain.activations
    all_again = memory(**{"dit.train.activation_checkpointing": "true"})
    selective = memory(**{"dit.train.activation_checkpointing": "selective"})
    assert all_again.activations < selective.activations < plain.activations


def test_workers_that_cannot_share_a_batch_are_refused_by_stage(tmp_path):
    with pytest.raises(WorldSizeError, match=r"train autoencoder: train.global_batch is 4, but 3 workers must divide"):
        plan_run(config(tmp_path), replace(H100, num_gpus=3))


def test_buckets_say_what_they_keep_and_drop(tmp_path):
    write_two_videos(tmp_path / "videos")
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    given = config(tmp_path, **{"data.source": tmp_path / "videos"})
    short = Bucket(num_frames=1, height=32, width=32, fps=8)
    sizes = {"channels": 8, "compression": COMPRESSION, "text_width": None}
    data = plan_data(given, [short], **sizes)
    assert data.kept == {short.name: 2}
    assert data.dropped == {"unreadable": 1}
    assert data.num_clips is None
    assert data.latent_bytes is None
    long = Bucket(num_frames=401, height=32, width=32, fps=1)
    data = plan_data(given, [long], **sizes, num_clips=10)
    assert data.dropped == {"unreadable": 1, TOO_SHORT: 2}
    assert data.latent_bytes == 10 * 4 * 8 * 101 * 16


def test_links_to_nothing_and_pipes_are_unreadable(tmp_path):
    write_two_videos(tmp_path / "videos")
    (tmp_path / "videos" / "link.mp4").symlink_to("nowhere.mp4")
    mkfifo(tmp_path / "videos" / "pipe.mp4")
    given = config(tmp_path, **{"data.source": tmp_path / "videos"})
    short = Bucket(num_frames=1, height=32, width=32, fps=8)
    data = plan_data(given, [short], channels=8, compression=COMPRESSION, text_width=None)
    assert (data.kept, data.dropped) == ({short.name: 2}, {"unreadable": 2})


def test_videos_in_a_store_are_not_looked_at(tmp_path):
    write_two_videos(tmp_path)
    name = min(path.name for path in tmp_path.glob("*.mp4"))
    (tmp_path / "table.csv").write_text(f"path,caption\n{name},a\ns3://bucket/b.mp4,b\n")
    given = config(tmp_path, **{"data.source": tmp_path / "table.csv"})
    short = Bucket(num_frames=1, height=32, width=32, fps=8)
    data = plan_data(given, [short], channels=8, compression=COMPRESSION, text_width=None)
    assert (data.kept, data.dropped) == ({short.name: 1}, {})
    assert data.examined.startswith("1 of 2 videos")


def test_images_and_parts_of_videos_have_their_bucket(tmp_path):
    write_two_videos(tmp_path)
    name = min(path.name for path in tmp_path.glob("*.mp4"))
    Image.new("RGB", (64, 64)).save(tmp_path / "still.png")
    (tmp_path / "table.csv").write_text(f"path,start,end\n{name},,\n{name},0.25,0.5\nstill.png,,\n")
    given = config(tmp_path, **{"data.source": tmp_path / "table.csv"})
    one, five = Bucket(num_frames=1, height=32, width=32, fps=8), Bucket(num_frames=5, height=32, width=32, fps=8)
    sizes = {"channels": 8, "compression": COMPRESSION, "text_width": None}
    assert plan_data(given, [one, five], **sizes).kept == {five.name: 1, one.name: 2}
    assert plan_data(given, [five], **sizes).dropped == {TOO_SHORT: 2}
    folder = {"data.source": tmp_path, "data.buckets": "[{num_frames: 1, height: 32, width: 32, fps: 8}]"}
    assert plan_data(config(tmp_path, **folder), [one], **sizes).kept == {one.name: 3}
    small = {"data.filters.too_large_pixels": 9}
    assert plan_data(config(tmp_path, **folder, **small), [one], **sizes).dropped == {"too_large": 3}


@pytest.mark.parametrize(("letter_box", "kept"), [("keep", "tall"), ("crop", "wide")])
def test_bars_are_cut_off_where_the_shard_stage_cuts_them_off(tmp_path, letter_box, kept):
    frames = np.zeros((9, 96, 64, 3), dtype=np.uint8)
    frames[:, 32:64] = np.random.default_rng(0).integers(100, 255, (9, 32, 64, 3), dtype=np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 8))
    tall, wide = Bucket(num_frames=5, height=48, width=32, fps=8), Bucket(num_frames=5, height=32, width=64, fps=8)
    given = config(tmp_path, **{"data.source": tmp_path, "data.letter_box": letter_box})
    data = plan_data(given, [tall, wide], channels=8, compression=COMPRESSION, text_width=None)
    assert data.kept == {{"tall": tall, "wide": wide}[kept].name: 1}


def test_a_name_that_no_file_can_have_is_unreadable(tmp_path):
    given = config(tmp_path, **{"data.source": CASES_DIR / "captions" / "s_nul" / "t.jsonl"})
    data = plan_data(given, given.data.buckets, channels=8, compression=COMPRESSION, text_width=None)
    assert (data.kept, data.dropped) == ({}, {"unreadable": 1})


def test_videos_that_are_elsewhere_need_a_number_of_clips(tmp_path):
    given = config(tmp_path, **{"data.source": tmp_path / "videos"})
    sizes = {"channels": 8, "compression": COMPRESSION, "text_width": None}
    with pytest.raises(SourceError, match="videos is not a folder"):
        plan_data(given, given.data.buckets, **sizes)
    data = plan_data(given, given.data.buckets, **sizes, num_clips=10)
    assert (data.num_clips, data.kept, data.dropped, data.examined) == (10, {}, {}, "")
    assert data.latent_bytes == 10 * 4 * 8 * 5 * 8 * 8
    assert "no video was looked at" in data.counted


def test_sizes_and_gpus_are_read_or_refused_by_name():
    assert parse_size("80GiB") == 80 * GIB
    assert parse_size("1.5 tb") == 1.5e12
    assert parse_peak("H100") == 989e12
    assert parse_peak("312") == 312e12
    with pytest.raises(ConfigError, match="--gpu-memory 80: write a number and a unit"):
        parse_size("80")
    with pytest.raises(ConfigError, match="--gpu RTX: give one of A100"):
        parse_peak("RTX")


def test_the_command_prints_json_and_exits_with_3_where_it_does_not_fit(tmp_path):
    arguments = ["plan", "demo", "--set", f"runs_dir={tmp_path}", "--gpus", "1", "--gpu-memory"]
    done = launch_here(*arguments, "1GiB", "--json")
    assert done.returncode == 3, done.stderr
    figures = json.loads(done.stdout)
    parts = figures["trainings"][1]["memory"]
    assert parts["total"] == sum(value for name, value in parts.items() if name not in ("total", "host"))
    assert figures["data"]["buckets"][0]["tokens"] == 80
    assert not list(tmp_path.iterdir())
