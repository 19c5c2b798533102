"""Fixtures shared by the tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.curation.ledger import reject
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from testing.datasets import SMALL, WIDE, colour_clip, record, write_dataset
from testing.shapes import make_video
from testing.text_encoders import write_text_encoder

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

CLIPS_DIR = Path(__file__).resolve().parent.parent.parent / "shared" / "clips"


@pytest.fixture(scope="session")
def clips_dir() -> Path:
    """Real videos, good and broken. They lie beside the checkout; without them the tests fail."""
    assert CLIPS_DIR.is_dir(), f"the test videos are missing: {CLIPS_DIR}"
    return CLIPS_DIR


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers, as every default run has."""
    from launch.cluster import connected
    from launch.config import ClusterConfig

    with connected(ClusterConfig(object_store_mib=128)):
        yield


@pytest.fixture(scope="session")
def shape_videos(tmp_path_factory):
    """Two wide, one tall, one square video, one that is short, and an image that lies on its side."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", 64, 128, 20, 0)
    make_video(folder / "b.mp4", 64, 128, 10, 5)
    make_video(folder / "c.mp4", 128, 64, 12, 10)
    make_video(folder / "d.mp4", 96, 96, 18, 15)
    make_video(folder / "e.mp4", 96, 96, 6, 20)
    picture = Image.fromarray(np.tile(np.arange(96, dtype=np.uint8)[:, None, None], (1, 64, 3)))
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    picture.save(folder / "f.png", exif=turned)
    (folder / "g.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return folder


@pytest.fixture(scope="session")
def mixed_dataset(tmp_path_factory) -> Path:
    """Forty clips of two shapes, a quarter of them for validation, and three broken sources."""
    samples = []
    for number in range(40):
        bucket = WIDE if number % 5 == 0 else SMALL
        split = "validation" if number % 4 == 0 else "train"
        decoder = "pyav" if number < 10 else "decord"
        clip = record(number, bucket, split=split, decoder=decoder, caption="x" * (number + 1))
        samples.append((clip, colour_clip(bucket, (6 * number, 255 - 6 * number, 128))))
    rejections = (
        reject("a.mp4", "decode", "undecodable", "none of its frames can be decoded"),
        reject("b.mp4", "decode", "undecodable", "none of its frames can be decoded"),
        reject("c.mp4", "read", "empty_file", "the file is empty"),
    )
    return write_dataset(tmp_path_factory.mktemp("mixed") / "run" / "clips", samples, rejections)


@pytest.fixture
def shapes_dir(tmp_path):
    for name in ("a.mp4", "sub/b.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_clip(render(random_scene(0, 1, combinations()), 24, 48), 8))
    (tmp_path / "videos" / "notes.txt").write_text("hello")
    return tmp_path / "videos"


@pytest.fixture(scope="session")
def text_encoder_dir(tmp_path_factory):
    return write_text_encoder(tmp_path_factory.mktemp("t5"))
