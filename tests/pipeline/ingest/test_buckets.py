"""Ingestion into several buckets: placement, choice of buckets, and what a change remakes."""

import shutil
from collections import Counter

from data.curation.config import FilterConfig
from data.curation.ledger import read_rejections
from data.curation.sources import list_sources, of_dataset
from data.dataset.buckets import (
    BucketChoice,
)
from data.dataset.index import read_index
from data.dataset.manifest import count_buckets, read_manifest
from data.video.augment import AugmentConfig
from data.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import describe_reuse, make_shards
from pipeline.run.commits import commit_path
from testing.shapes import ALL, SHORT, SQUARE, STILL, TALL, WIDE, make_video


def ingest(shape_videos, output, config):
    """On one worker, which starts in half the time: test_shard.py compares with two."""
    return make_shards(list_sources(str(shape_videos), config.suffixes), output, config, 1)


def test_every_source_ends_in_its_bucket(cluster, shape_videos, tmp_path):
    config = ShardConfig(buckets=ALL, max_clips_per_video=9)
    assert config.suffixes == VIDEO_SUFFIXES | IMAGE_SUFFIXES
    manifest = ingest(shape_videos, tmp_path, config)
    rows = read_index(tmp_path)
    assert Counter((row.source, row.bucket) for row in rows) == {
        ("a.mp4", WIDE.name): 2,
        ("b.mp4", WIDE.name): 1,
        ("c.mp4", TALL.name): 1,
        ("d.mp4", SQUARE.name): 2,
        ("e.mp4", SHORT.name): 1,
        ("f.png", STILL.name): 1,
    }
    assert {record.bucket.name: record.num_samples for record in manifest.buckets} == Counter(r.bucket for r in rows)
    assert manifest.ledger is not None
    assert (manifest.ledger.sources, manifest.ledger.shards, manifest.ledger.quarantine) == (7, 6, 1)
    (bad,) = read_rejections(tmp_path / "quarantine.jsonl")
    assert (bad.source, bad.reason) == ("g.jpg", "undecodable")


def test_chosen_once_and_then_kept(cluster, shape_videos, tmp_path, monkeypatch):
    config = ShardConfig(choose_buckets=BucketChoice(pixels=2304, num_frames=(1, 5, 9), max_aspects=3))
    first = ingest(shape_videos, tmp_path, config)
    sides = {(record.bucket.height, record.bucket.width) for record in first.buckets}
    assert sides == {(32, 64), (64, 32), (48, 48)}
    assert first.num_samples == sum(record.num_samples for record in first.buckets) == 8
    sources = list_sources(str(shape_videos), config.suffixes)
    assert describe_reuse(sources, tmp_path, config) == "1 of 1 shards stay as they are"
    other = config.model_copy(update={"choose_buckets": BucketChoice(pixels=9216, num_frames=(1, 5, 9))})
    assert describe_reuse(sources, tmp_path, other) is None
    started = []
    for module in ("buckets", "shard"):
        monkeypatch.setattr(f"pipeline.ingest.{module}.IsolatedPool", lambda *a, name=module: started.append(name))
    assert ingest(shape_videos, tmp_path, config) == first
    assert not started


def test_a_change_makes_only_its_own_shards_anew(cluster, shape_videos, tmp_path):
    sources, output = tmp_path / "videos", tmp_path / "clips"
    shutil.copytree(shape_videos, sources)
    config = ShardConfig(buckets=(SQUARE, SHORT), videos_per_shard=2)

    def made() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.tar")}

    def reuse(settings: ShardConfig = config) -> str | None:
        return describe_reuse(list_sources(str(sources)), output, settings)

    def shard_of(name: str) -> str:
        return next(row.shard for row in read_index(output) if row.source == name)

    first = ingest(sources, output, config)
    before, number = made(), len(first.shards)
    make_video(sources / "d.mp4", 96, 96, 18, 40)
    assert "1 videos are cut" in (reuse() or "")
    second = ingest(sources, output, config)
    assert [name for name, time in made().items() if time != before[name]] == [shard_of("d.mp4")]
    assert sum(a == b for a, b in zip(first.shards, second.shards, strict=True)) == number - 1
    assert ingest(sources, tmp_path / "fresh", config) == second
    (sources / "a.txt").write_text("a caption", encoding="utf-8")
    assert (reuse() or "").endswith("videos are taken from earlier shards, 0 videos are cut")
    assert reuse(config.model_copy(update={"buckets": (SQUARE,)})) is None
    (sources / "e.mp4").unlink()
    third = ingest(sources, output, config)
    assert sorted(made()) == [shard.name for shard in third.shards]
    assert {path.name for path in output.glob("*.commit.json")} == {
        commit_path(output / shard.name).name for shard in third.shards
    }


def test_a_deleted_shard_is_made_again(cluster, shape_videos, tmp_path):
    config = ShardConfig(buckets=(SQUARE, SHORT), videos_per_shard=2)
    first = ingest(shape_videos, tmp_path, config)
    (tmp_path / first.shards[1].name).unlink()
    assert ingest(shape_videos, tmp_path, config) == first


def test_a_mix_names_every_source_after_its_dataset(cluster, shape_videos, tmp_path):
    config = ShardConfig(buckets=(SQUARE, SHORT))
    listed = [source for name in ("one", "two") for source in of_dataset(name, list_sources(str(shape_videos)))]
    make_shards(listed, tmp_path, config, 1)
    rows = read_index(tmp_path)
    assert len({row.key for row in rows}) == len(rows) == 14
    assert Counter(row.dataset for row in rows) == {"one": 7, "two": 7}
    assert all(row.source.startswith(f"{row.dataset}/") for row in rows)
    assert read_manifest(tmp_path).buckets == count_buckets(rows)


def test_only_the_training_split_is_augmented(cluster, shape_videos, tmp_path):
    augment, filters = AugmentConfig(flip=True), FilterConfig(duplicate_bits=0)
    config = ShardConfig(buckets=(SQUARE,), augment=augment, validation_fraction=0.5, filters=filters)
    ingest(shape_videos, tmp_path, config)
    rows = read_index(tmp_path)
    assert len({row.key for row in rows}) == len(rows)
    variants = {split: Counter(row.variant for row in rows if row.split == split) for split in ("train", "validation")}
    assert variants["train"][""] == variants["train"]["flip"] > 0
    assert set(variants["validation"]) == {""}
