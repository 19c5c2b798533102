"""Several shapes, several datasets: which clip goes where, what a batch holds, and what a change makes anew."""

import shutil
from collections import Counter

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from data.curation.config import FilterConfig
from data.curation.ledger import read_rejections
from data.curation.sources import list_sources, of_dataset
from data.dataset.buckets import (
    Bucket,
    BucketChoice,
    SourceShape,
    batch_sizes,
    bucket_for,
    choose_buckets,
    cropped_share,
)
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.index import read_index
from data.dataset.manifest import count_buckets, read_manifest
from data.dataset.shards import write_shard
from data.errors import VideoError
from data.stream.loader import Stream, subsets_of
from data.stream.plan import BatchPlan
from data.video.augment import AugmentConfig
from data.video.codec import decode_clip, encode_clip
from data.video.extract import measure_source, read_spans
from data.video.formats import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from data.video.images import read_image
from data.video.spans import Stretch, plan_spans
from pipeline.distributed.isolated_pool import run_jobs
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.shard import make_shards, read_commit, shards_that_stand
from testing.records import made_up_clip

WIDE = Bucket(num_frames=9, height=32, width=64, fps=8)
TALL = Bucket(num_frames=9, height=64, width=32, fps=8)
SQUARE = Bucket(num_frames=9, height=48, width=48, fps=8)
SHORT = Bucket(num_frames=5, height=48, width=48, fps=8)
STILL = Bucket(num_frames=1, height=48, width=48, fps=8)
ALL = (WIDE, TALL, SQUARE, SHORT, STILL)


@pytest.mark.parametrize(
    ("height", "width", "seconds", "expected"),
    [
        (360, 640, 5.0, WIDE),
        (640, 360, 5.0, TALL),
        (480, 480, 5.0, SQUARE),
        (480, 480, 0.6, SHORT),  # half a second is 5 frames at 8 per second, a whole one 9
        (480, 480, 1.0, SQUARE),
        (360, 640, 0.6, SHORT),  # rather cropped than left out
        (480, 480, 0.0, STILL),
    ],
)
def test_a_scene_goes_where_it_fits_and_least_is_cropped(height, width, seconds, expected):
    assert bucket_for(SourceShape(height, width, seconds), ALL) == expected


def test_too_short_for_every_bucket():
    assert bucket_for(SourceShape(480, 480, 0.4), (WIDE, SQUARE, SHORT)) is None


def test_of_equal_shapes_the_one_that_does_not_enlarge_and_then_the_larger():
    small, large = Bucket(height=64, width=64), Bucket(height=128, width=128)
    assert bucket_for(SourceShape(100, 100, 9), (small, large)) == small
    assert bucket_for(SourceShape(128, 128, 9), (small, large)) == large


def test_cropping_is_the_share_of_the_picture_outside_the_bucket():
    assert cropped_share(SourceShape(100, 200, 1), SQUARE) == pytest.approx(0.5)
    assert cropped_share(SourceShape(200, 100, 1), SQUARE) == pytest.approx(0.5)
    assert cropped_share(SourceShape(90, 160, 1), WIDE) == pytest.approx(1 - (16 / 9) / 2)


def test_buckets_follow_the_histogram():
    shapes = [SourceShape(720, 1280, 9)] * 70 + [SourceShape(1280, 720, 9)] * 25 + [SourceShape(480, 480, 0)] * 5
    chosen = choose_buckets(shapes, BucketChoice(pixels=4096, num_frames=(17, 1), max_aspects=3))
    assert [(b.num_frames, b.height, b.width) for b in chosen] == [(17, 48, 80), (17, 80, 48), (1, 64, 64)]
    assert choose_buckets(list(reversed(shapes)), BucketChoice(num_frames=(1, 17))) == chosen
    one = choose_buckets(shapes, BucketChoice(max_aspects=1))
    assert len(one) == 1
    with pytest.raises(ValueError, match="no source"):
        choose_buckets([], BucketChoice())


@given(
    st.lists(st.tuples(st.integers(16, 4000), st.integers(16, 4000), st.floats(0, 20)), min_size=1, max_size=20),
    st.integers(1, 4),
    st.sampled_from([16, 32, 64]),
)
def test_chosen_buckets_are_within_bounds_and_never_worse_than_a_square(sources, max_aspects, multiple):
    shapes = [SourceShape(*source) for source in sources]
    choice = BucketChoice(pixels=16384, num_frames=(1, 9), max_aspects=max_aspects, side_multiple=multiple)
    chosen = choose_buckets(shapes, choice)
    assert len({(b.height, b.width) for b in chosen}) <= max_aspects
    assert all(0.75 * 16384 <= b.height * b.width <= 16384 for b in chosen)
    assert all(b.height % multiple == b.width % multiple == 0 for b in chosen)
    square = Bucket(num_frames=1, height=128, width=128)
    lost = [min(cropped_share(shape, bucket) for bucket in chosen) for shape in shapes]
    assert np.mean(lost) <= np.mean([cropped_share(shape, square) for shape in shapes]) + 1e-6


def test_a_pixel_count_that_no_multiple_fills_still_has_buckets():
    for pixels, multiple, size in ((400, 16, (16, 16)), (25000, 128, (128, 128)), (6000, 64, (64, 64))):
        choice = BucketChoice(pixels=pixels, side_multiple=multiple, max_aspects=1)
        (bucket,) = choose_buckets([SourceShape(100, 100, 9)], choice)
        assert (bucket.height, bucket.width) == size


def test_a_video_of_unknown_length_is_not_taken_for_an_image(tmp_path):
    frames = np.zeros((12, 64, 64, 3), np.uint8)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height = stream.width = 64
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    shape = measure_source(tmp_path / "a.avi")
    assert shape.seconds == float("inf")
    assert [b.num_frames for b in choose_buckets([shape], BucketChoice(num_frames=(1, 9)))] == [9]


def test_pictures_of_sixteen_bits_and_transparent_ones(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[..., 0], ramp >> 8)
    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (read_image(tmp_path / "clear.png") == 255).all()


def test_a_stretch_beyond_the_end_gives_no_clip():
    with pytest.raises(VideoError, match="too short"):
        plan_spans(np.arange(80) / 8, (64, 64), [STILL], stretch=Stretch(100, 200))


def test_batches_have_equal_tokens():
    sizes = batch_sizes(ALL, global_batch=8, multiple=4)
    tokens = {bucket.name: bucket.num_latents for bucket in ALL}
    assert tokens == {WIDE.name: 96, TALL.name: 96, SQUARE.name: 108, SHORT.name: 72, STILL.name: 36}
    assert sizes == {SQUARE.name: 8, WIDE.name: 8, TALL.name: 8, SHORT.name: 12, STILL.name: 24}
    assert all(size * tokens[name] <= 8 * 108 for name, size in sizes.items())
    assert batch_sizes([SQUARE], 6, 4) == {SQUARE.name: 6}


# ------------------------------------------------------------------ files


def make_video(path, height, width, num_frames, shade):
    ramp = np.linspace(0, 200, num_frames)[:, None, None, None] + np.linspace(0, 40, width)[None, None, :, None]
    frames = np.broadcast_to(ramp + shade, (num_frames, height, width, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_clip(frames, 8))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
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


def test_an_image_is_a_video_of_one_frame_the_way_up_it_says(videos):
    assert measure_source(videos / "f.png") == SourceShape(64, 96, 0.0)
    (span,) = read_spans(videos / "f.png", [Bucket(num_frames=1, height=64, width=96), WIDE], 4)
    assert (span.start_seconds, span.decoder, span.frames.shape) == (0.0, "pillow", (1, 64, 96, 3))
    assert np.array_equal(span.frames[0, 0, :, 0], np.arange(95, -1, -1))
    assert decode_clip(encode_clip(span.frames, 8)).shape == (1, 64, 96, 3)


def test_measured_without_decoding(videos):
    assert measure_source(videos / "a.mp4") == SourceShape(64, 128, 2.5)


def ingest(videos, output, config, num_workers=2):
    return make_shards(list_sources(str(videos), config.suffixes), output, config, num_workers)


def test_every_source_ends_in_its_bucket(cluster, videos, tmp_path):
    config = ShardConfig(buckets=ALL, max_clips_per_video=9)
    assert config.suffixes == VIDEO_SUFFIXES | IMAGE_SUFFIXES
    manifest = ingest(videos, tmp_path, config)
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


def test_chosen_once_and_then_kept(cluster, videos, tmp_path, monkeypatch):
    config = ShardConfig(choose_buckets=BucketChoice(pixels=2304, num_frames=(1, 5, 9), max_aspects=3))
    first = ingest(videos, tmp_path, config)
    sides = {(record.bucket.height, record.bucket.width) for record in first.buckets}
    assert sides == {(32, 64), (64, 32), (48, 48)}
    assert first.num_samples == sum(record.num_samples for record in first.buckets) == 8
    sources = list_sources(str(videos), config.suffixes)
    assert shards_that_stand(sources, tmp_path, config) == 1
    other = config.model_copy(update={"choose_buckets": BucketChoice(pixels=9216, num_frames=(1, 5, 9))})
    assert shards_that_stand(sources, tmp_path, other) == 0
    measured = []
    monkeypatch.setattr(
        "pipeline.ingest.shard.run_jobs", lambda f, jobs, *a: measured.append(f) or run_jobs(f, jobs, *a)
    )
    assert ingest(videos, tmp_path, config) == first
    assert [getattr(function, "__name__", "cut") for function in measured] == ["cut"]


def test_a_change_makes_only_its_own_shards_anew(cluster, videos, tmp_path):
    sources, output = tmp_path / "videos", tmp_path / "clips"
    shutil.copytree(videos, sources)
    config = ShardConfig(buckets=(SQUARE, SHORT), videos_per_shard=2)

    def made() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in output.glob("shard-*.tar")}

    first = ingest(sources, output, config)
    before = made()
    assert [shard.num_samples for shard in first.shards] == [3, 3, 1]
    make_video(sources / "d.mp4", 96, 96, 18, 40)
    assert shards_that_stand(list_sources(str(sources)), output, config) == 2
    second = ingest(sources, output, config)
    assert [name for name, time in made().items() if time != before[name]] == ["shard-00001.tar"]
    assert [a == b for a, b in zip(first.shards, second.shards, strict=True)] == [True, False, True]
    fresh = ingest(sources, tmp_path / "fresh", config)
    assert fresh == second
    (sources / "a.txt").write_text("a caption", encoding="utf-8")
    assert shards_that_stand(list_sources(str(sources)), output, config) == 2
    other = config.model_copy(update={"buckets": (SQUARE,)})
    assert shards_that_stand(list_sources(str(sources)), output, other) == 0
    (sources / "e.mp4").unlink()
    third = ingest(sources, output, config)
    assert sorted(made()) == [shard.name for shard in third.shards] == ["shard-00000.tar", "shard-00001.tar"]
    assert read_commit(output / "shard-00002.tar") is None


def test_a_deleted_shard_is_made_again(cluster, videos, tmp_path):
    config = ShardConfig(buckets=(SQUARE, SHORT), videos_per_shard=2)
    first = ingest(videos, tmp_path, config)
    (tmp_path / "shard-00001.tar").unlink()
    assert ingest(videos, tmp_path, config) == first


def test_a_mix_names_every_source_after_its_dataset(cluster, videos, tmp_path):
    config = ShardConfig(buckets=(SQUARE, SHORT))
    listed = [source for name in ("one", "two") for source in of_dataset(name, list_sources(str(videos)))]
    make_shards(listed, tmp_path, config, 2)
    rows = read_index(tmp_path)
    assert len({row.key for row in rows}) == len(rows) == 14
    assert Counter(row.dataset for row in rows) == {"one": 7, "two": 7}
    assert all(row.source.startswith(f"{row.dataset}/") for row in rows)
    assert read_manifest(tmp_path).buckets == count_buckets(rows)


def test_weights_say_how_often_each_sample_is_seen(tmp_path):
    """Two datasets in two buckets; in any stretch of the run, a clip of weight 3 comes three times as often."""
    samples = []
    for number in range(48):
        record = made_up_clip(number, (SQUARE, STILL)[number % 2])
        samples.append((record.model_copy(update={"dataset": "few" if number < 12 else "many"}), bytes([number])))
    rows = write_shard(tmp_path / "shard-00000.tar", samples, VIDEO_MEMBER)[1]
    subsets = subsets_of(tmp_path, rows, {"few": 3.0})
    assert [(s.bucket.name, s.rows[0].dataset, len(s.rows), s.weight) for s in subsets] == [
        (STILL.name, "few", 6, 3.0),
        (STILL.name, "many", 18, 1.0),
        (SQUARE.name, "few", 6, 3.0),
        (SQUARE.name, "many", 18, 1.0),
    ]
    sizes = batch_sizes([subset.bucket for subset in subsets], 4, 2)
    assert sizes == {SQUARE.name: 4, STILL.name: 12}
    stream = Stream(subsets, sizes, seed=0, rank=0, world_size=1)
    batches = stream.batches(0, list, readers=0)
    seen: Counter[str] = Counter()
    num_steps = 9 + 3  # 36 turns of each bucket's weighted clips: 12 of 3 x 6 + 18 and 4 each, or 12 each
    for batch in (next(batches) for _ in range(num_steps)):
        assert len({sample.row.bucket for sample in batch}) == 1
        assert len(batch) == sizes[batch[0].row.bucket]
        seen.update(sample.row.key for sample in batch)
    few, many = ({seen[row.key] for row in rows if row.dataset == name} for name in ("few", "many"))
    assert few == {3}
    assert many == {1}


def test_the_cursor_counts_clips_of_unequal_batches(tmp_path):
    samples = [(made_up_clip(number, (SQUARE, STILL)[number % 2]), b"x") for number in range(20)]
    rows = write_shard(tmp_path / "shard-00000.tar", samples, VIDEO_MEMBER)[1]
    subsets = subsets_of(tmp_path, rows, {})
    sizes = {SQUARE.name: 2, STILL.name: 6}
    plan = BatchPlan([subset.part() for subset in subsets], sizes, seed=0)
    assert [plan.step(plan.cursor(step)) for step in range(50)] == list(range(50))
    assert [plan.cursor(step + 1) - plan.cursor(step) for step in range(50)] == [plan.batch_size(s) for s in range(50)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"buckets": ()}, "buckets is empty"),
        ({"buckets": (SQUARE, SQUARE)}, "names 9x48x48@8 twice"),
        ({"buckets": (SQUARE,), "choose_buckets": {}}, "keep one of them"),
        ({"choose_buckets": {"num_frames": [16]}}, "use 13 or 17"),
        ({"choose_buckets": {"num_frames": []}}, "name at least one length"),
        ({"choose_buckets": {"pixels": 300, "side_multiple": 32}}, "not even a square of 32"),
    ],
)
def test_impossible_buckets_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        ShardConfig(**fields)


# ------------------------------------------------------------------ augmentation


def test_crops_lie_from_one_end_to_the_other_and_flips_mirror_them(videos):
    """A ramp from left to right: the crop at the left is darker by what the one at the right is brighter."""
    kept = read_spans(videos / "a.mp4", [SQUARE], 1)
    spans = read_spans(videos / "a.mp4", [SQUARE], 1, augment=AugmentConfig(flip=True, crops=3))
    assert [span.variant for span in spans] == ["crop 0", "crop 0 flip", "", "flip", "crop 1", "crop 1 flip"]
    assert np.array_equal(spans[2].frames, kept[0].frames)
    for plain, flipped in zip(spans[::2], spans[1::2], strict=True):
        assert np.array_equal(plain.frames[:, :, ::-1], flipped.frames)
    left, centre, right = (span.frames.mean() for span in spans[::2])
    assert left < centre < right
    assert centre == pytest.approx((left + right) / 2, abs=0.5)
    wide = read_spans(videos / "a.mp4", [WIDE], 1, augment=AugmentConfig(crops=3))
    assert [span.variant for span in wide] == [""]  # nothing overhangs


def test_only_the_training_split_is_augmented(cluster, videos, tmp_path):
    augment, filters = AugmentConfig(flip=True), FilterConfig(duplicate_bits=0)
    config = ShardConfig(buckets=(SQUARE,), augment=augment, validation_fraction=0.5, filters=filters)
    ingest(videos, tmp_path, config)
    rows = read_index(tmp_path)
    assert len({row.key for row in rows}) == len(rows)
    variants = {split: Counter(row.variant for row in rows if row.split == split) for split in ("train", "validation")}
    assert variants["train"][""] == variants["train"]["flip"] > 0
    assert set(variants["validation"]) == {""}
