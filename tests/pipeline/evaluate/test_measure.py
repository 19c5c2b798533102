"""Measuring sets on a cluster, and the command that compares them."""

import json
import shutil

import numpy as np
import pytest
import torch

from pipeline.distributed.config import WorkersConfig
from pipeline.evaluate.clip_sets import open_clips
from pipeline.evaluate.features import pixels_of, random_convolutions
from pipeline.evaluate.measure import Networks, measure_sets
from pipeline.evaluate.statistics import STATISTICS, measure_clip
from testing.commands import launch_here
from testing.html_page import Page

WORKERS = WorkersConfig(num_workers=2)
ONE = WorkersConfig(num_workers=1)  # starts in half the time, where the number does not matter


@pytest.fixture
def dataset(mixed_dataset, tmp_path):
    return shutil.copytree(mixed_dataset, tmp_path / "run" / "clips")


def test_every_clip_is_measured_alone_and_in_order(cluster, dataset, tmp_path):
    clips = open_clips(dataset, 20, None)
    (found,) = measure_sets([clips], Networks(), tmp_path / "cache", WORKERS)
    assert found.numbers.tolist() == list(range(20))
    network = random_convolutions(3, torch.device("cpu"))
    for number in (0, 7, 19):
        frames = clips.read(number)
        expected = network.compute(pixels_of(torch.from_numpy(frames)))[0].numpy()
        assert np.allclose(found.features[number], expected, rtol=1e-4, atol=1e-5)
        statistics = [getattr(measure_clip(frames), name) for name in STATISTICS]
        assert found.statistics[number].tolist() == statistics
    assert np.isnan(found.similarity).all()


def test_a_set_is_measured_once_until_it_changes(cluster, dataset, tmp_path, monkeypatch):
    clips = open_clips(dataset, 6, None)
    (first,) = measure_sets([clips], Networks(), tmp_path, ONE)
    (file,) = tmp_path.glob("*.npz")
    with monkeypatch.context() as without_actors:
        without_actors.setattr("pipeline.evaluate.measure.results_of_actors", None)
        (again,) = measure_sets([clips], Networks(), tmp_path, ONE)
        assert all(np.array_equal(vars(first)[name], vars(again)[name], equal_nan=True) for name in vars(first))
    file.write_bytes(file.read_bytes()[:-50])  # a damaged file is measured again
    (again,) = measure_sets([clips], Networks(), tmp_path, ONE)
    assert len(again.numbers) == 6
    measure_sets([open_clips(dataset, 7, None)], Networks(), tmp_path, ONE)
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_damaged_clips_are_left_out_and_counted(cluster, dataset, tmp_path, caplog):
    clips = open_clips(dataset, 40, None)
    row = clips.rows[5]  # pyright: ignore[reportAttributeAccessIssue] - of a dataset
    with (dataset / row.shard).open("r+b") as shard:
        shard.seek(row.offset)
        shard.write(bytes(row.size))
    (found,) = measure_sets([clips], Networks(), tmp_path / "cache", ONE)
    assert found.numbers.tolist() == [number for number in range(40) if number != 5]
    assert f"1 of 40 clips cannot be read and are left out; the first is {row.key}" in caplog.text
    assert not (tmp_path / "cache").exists()  # the next start tries again


ALONE = ("--set", "cluster.workers.num_workers=1")


def test_command_writes_figures_and_a_page(cluster, dataset, tmp_path):
    output = tmp_path / "compared"
    made = launch_here("compare", str(dataset), str(dataset), "--split", "validation", "--output", str(output), *ALONE)
    assert made.returncode == 0, made.stderr
    result = json.loads((output / "comparison.json").read_text())
    assert result["samples"]["folder"] == result["reference"]["folder"] == "run/clips"
    found = result["comparison"]
    assert (found["num_samples"], found["num_reference"]) == (40, 10)
    assert "40 clips of run/clips, 10 of run/clips" in made.stdout
    page = Page(output / "index.html")
    videos = [attributes for name, attributes in page.elements if name == "video"]
    assert len(videos) == 24
    assert all(str(attributes["src"]).startswith("data:video/mp4;base64,") for attributes in videos)
    assert str(tmp_path) not in (output / "index.html").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clip-features", "none.pt"), "none.pt: there is no such file"),
        (("--max-clips", "4", "--guidance-scale", "2", "--set", "cluster.workers.num_workers=0"), "num_workers"),
        (("--text-similarity", "none"), "none: there is no such folder"),
    ],
)
def test_command_refuses_before_it_measures(dataset, tmp_path, options, message):
    made = launch_here("compare", str(dataset), str(dataset), "--output", str(tmp_path / "out"), *options)
    assert made.returncode != 0
    assert message in made.stderr
    assert not (tmp_path / "out").exists()
