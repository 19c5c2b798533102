"""What a change of the sources makes again, counted; and what comes out is what a fresh start makes."""

import gc
import os
import random
import shutil
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.curation.config import FilterConfig
from data.curation.source import Source, listing_fingerprint
from data.curation.sources import list_sources
from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.shards import read_shard, write_shard
from data.synthetic import combinations, random_scene, render
from data.video.codec import encode_clip
from pipeline.ingest.captions import read_captions
from pipeline.ingest.commit import ShardCommit, commit_shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.plan import Plan, plan_shards
from pipeline.ingest.prepare import Clips, PrepareConfig, prepare_with_origin
from pipeline.ingest.reports import SourceReport
from pipeline.run.commits import publish_commit, read_commit, remove_other_shards
from pipeline.run.fingerprints import fingerprint
from pipeline.run.shared_files import SHARED

BUCKET = Bucket(num_frames=5, height=32, width=32, fps=8)
SMALL = ShardConfig(buckets=(BUCKET,), videos_per_shard=4, max_clips_per_video=2)
COMPARED = SMALL.model_copy(update={"filters": FilterConfig(duplicate_bits=16)})


@dataclass
class Made:
    """What a start did."""

    cut: list[str]
    written: list[str]
    shards: dict[str, bytes]
    duplicates: list[str]


def prepared(videos: Path, config: ShardConfig) -> tuple[list[Source], PrepareConfig]:
    sources = list_sources(str(videos))
    captions = read_captions(config.captions, sources)
    return sources, PrepareConfig(config.buckets, captions.table, config, captions.shared_names)


def make(videos: Path, folder: Path, config: ShardConfig = SMALL) -> Made:
    """Do as `make_shards` does, in this process."""
    sources, prepare = prepared(videos, config)
    folder.mkdir(exist_ok=True)
    made = Made([], [], {}, [])
    while not (plan := plan_shards(sources, folder, prepare)).is_done:
        assert len(made.written) < 50, "it goes on forever"
        plan.record_stamps()
        for shard in plan.shards:
            if shard.stands:
                continue
            new: dict[str, Clips] = {}
            for source in shard.to_cut:
                report, clips = prepare_with_origin(prepare, source)
                new[source.name] = clips
                shard.add(report, source.name if clips else None)
            made.cut += new
            recipe, names = shard.give()
            commit_shard(SHARED, recipe, *(new[name] for name in names))
            made.written.append(shard.path.name)
    remove_other_shards(folder, {shard.path.name for shard in plan.shards})
    made.shards = {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.tar"))}
    made.duplicates = sorted(plan.dropped)
    return made


def plan_of(videos: Path, folder: Path, config: ShardConfig) -> Plan:
    sources, prepare = prepared(videos, config)
    return plan_shards(sources, folder, prepare)


def draw(path: Path, scene: int, crf: int = 14) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.clip(render(random_scene(0, scene, combinations()), 10, 48).astype(int) + 30, 0, 255)
    path.write_bytes(encode_clip(frames.astype(np.uint8), 8, crf=crf))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Fourteen videos, more than three shards of four hold."""
    folder = tmp_path_factory.mktemp("drawn")
    for number in range(14):
        draw(folder / "blue balls" / f"{number:02d}.mp4", number)
    return folder


@pytest.fixture
def videos(drawn, tmp_path) -> Path:
    return shutil.copytree(drawn, tmp_path / "videos")


def clip_captions(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("shard-*.tar"))
    return {record.source: record.caption for path in paths for record, _ in read_shard(path, VIDEO_MEMBER)}


def check_like_fresh(videos: Path, folder: Path, config: ShardConfig, found: Made) -> None:
    fresh = make(videos, folder.with_name("fresh"), config)
    assert found.shards == fresh.shards
    assert found.duplicates == fresh.duplicates
    shutil.rmtree(folder.with_name("fresh"))


def touch(videos: Path) -> None:
    os.utime(videos / "blue balls" / "03.mp4", (1, 1))


def tell(videos: Path) -> None:
    (videos / "blue balls" / "03.txt").write_text("another caption")


def add_first(videos: Path) -> None:
    draw(videos / "a" / "0.mp4", 40)


def add_last(videos: Path) -> None:
    draw(videos / "z" / "z.mp4", 41)


def remove(videos: Path) -> None:
    (videos / "blue balls" / "03.mp4").unlink()


def replace(videos: Path) -> None:
    draw(videos / "blue balls" / "03.mp4", 42)


@pytest.mark.parametrize(
    ("change", "num_cut", "num_gone"),
    [(touch, 0, 0), (tell, 0, 1), (add_first, 1, 1), (add_last, 1, 1), (remove, 0, 1), (replace, 1, 1)],
    ids=["touch", "caption", "first", "last", "removed", "replaced"],
)
def test_a_change_of_one_video_changes_one_shard_and_cuts_what_is_new(videos, tmp_path, change, num_cut, num_gone):
    before = make(videos, tmp_path / "clips")
    assert len(before.cut) == 14
    assert len(before.written) == len(before.shards) > 3
    change(videos)
    after = make(videos, tmp_path / "clips")
    gone = before.shards.items() - after.shards.items()
    assert len(after.cut) == num_cut
    assert len(gone) <= max(num_gone, 2 * (change is remove))  # two small ones may become one
    assert len(after.written) == len(after.shards.items() - before.shards.items()) <= 2 * num_gone
    check_like_fresh(videos, tmp_path / "clips", SMALL, after)
    again = make(videos, tmp_path / "clips")
    assert (again.cut, again.written, again.shards) == ([], [], after.shards)


def test_captions_of_a_table_are_exchanged_without_a_cut(videos, tmp_path):
    make(videos, tmp_path / "clips")
    table = tmp_path / "captions.csv"
    table.write_text("file,caption\n03.mp4,one\n05.mp4,two\n")
    config = SMALL.model_copy(update={"captions": table})
    after = make(videos, tmp_path / "clips", config)
    assert (after.cut, len(after.written)) == ([], len({*after.written}))
    assert 1 <= len(after.written) <= 2
    captions = clip_captions(tmp_path / "clips")
    assert captions.pop("blue balls/03.mp4") == "one"
    assert captions.pop("blue balls/05.mp4") == "two"
    assert set(captions.values()) == {"blue balls"}
    check_like_fresh(videos, tmp_path / "clips", config, after)
    table.write_text("file,caption\n03.mp4,one\n05.mp4,three\n")
    assert make(videos, tmp_path / "clips", config).cut == []


def test_a_video_with_a_bad_caption_comes_back_with_a_good_one(videos, tmp_path):
    first = make(videos, tmp_path / "clips")
    sidecar = videos / "blue balls" / "03.txt"
    sidecar.write_bytes(b"\xff\xfe\x00")
    without = make(videos, tmp_path / "clips")
    assert "blue balls/03.mp4" not in clip_captions(tmp_path / "clips")
    check_like_fresh(videos, tmp_path / "clips", SMALL, without)
    assert make(videos, tmp_path / "clips").cut == []
    sidecar.unlink()
    assert make(videos, tmp_path / "clips").shards == first.shards


def reports_of(folder: Path) -> dict[str, SourceReport]:
    commits = [read_commit(ShardCommit, path) for path in sorted(folder.glob("shard-*.tar"))]
    return {report.source: report for commit in commits if commit is not None for report in commit.reports}


@pytest.mark.parametrize("bits", [None, pytest.param(4, marks=pytest.mark.slow)])
def test_another_threshold_cuts_only_the_videos_of_which_a_clip_comes_back(videos, tmp_path, bits):
    def darker_than(limit: float) -> ShardConfig:
        return SMALL.model_copy(update={"filters": FilterConfig(black_luma=limit, duplicate_bits=bits)})

    folder = tmp_path / "clips"
    first = make(videos, folder, darker_than(0))
    spans = [span for report in reports_of(folder).values() for span in report.measured]
    assert len(spans) == 28
    levels = sorted({span.measures["brightness"] for span in spans})
    high, low = (levels[7] + levels[8]) / 2, (levels[3] + levels[4]) / 2

    def outside(limit: float) -> set[tuple[str, float]]:
        return {
            (name, span.start_seconds)
            for name, report in reports_of(folder).items()
            for span in report.measured
            if span.measures["brightness"] <= limit
        }

    for limit, back in ((high, set()), (high + 1e-9, set()), (low, outside(high) - outside(low))):
        made = make(videos, folder, darker_than(limit))
        expected = {name for name, _ in back}
        if bits is None:
            assert {*made.cut} == expected
        else:  # nor are there pixels of what was a duplicate of a clip that is left out now
            assert expected <= {*made.cut} <= expected | {*first.duplicates}
        found = reports_of(folder)
        left_out = {(name, clip.start_seconds) for name, report in found.items() for clip in report.filtered}
        assert left_out == outside(limit)
        check_like_fresh(videos, folder, darker_than(limit), made)
        make(videos, tmp_path / "fresh", darker_than(limit))
        assert found == reports_of(tmp_path / "fresh")
        shutil.rmtree(tmp_path / "fresh")
    assert make(videos, folder, darker_than(low + 1e-9)).written == []
    other = FilterConfig(black_luma=low, static_difference=0.1, duplicate_bits=bits)  # which is measured in any case
    assert make(videos, folder, SMALL.model_copy(update={"filters": other})).cut == []


def filtered(**filters: Any) -> ShardConfig:
    return SMALL.model_copy(update={"filters": FilterConfig(**filters)})


def test_a_filter_turned_on_cuts_nothing_and_turned_off_only_what_it_left_out(videos, tmp_path):
    folder = tmp_path / "clips"
    first = make(videos, folder)
    values = sorted(span.measures["sharpness"] for report in reports_of(folder).values() for span in report.measured)
    some = filtered(min_sharpness=(values[5] + values[6]) / 2, static_difference=0.001)
    on = make(videos, folder, some)
    assert on.cut == []
    assert {*on.shards.items()}.isdisjoint(first.shards.items())  # the records of all clips store their sharpness
    check_like_fresh(videos, folder, some, on)
    left_out = {report.source for report in reports_of(folder).values() if report.filtered}
    assert 3 <= len(left_out) <= 6
    assert make(videos, folder, some).written == []
    off = make(videos, folder)
    assert {*off.cut} == left_out
    assert off.shards == first.shards
    alike = filtered(duplicate_bits=32)
    compared = make(videos, folder, alike)
    assert compared.cut == []
    check_like_fresh(videos, folder, alike, compared)


def test_a_measure_that_is_not_cheap_is_measured_once_and_the_plan_says_why(videos, tmp_path):
    folder, on = tmp_path / "clips", filtered(max_logo_share=0.9)
    first = make(videos, folder)
    assert str(plan_of(videos, folder, on)).endswith(
        "14 videos are cut (14 of them because these were not measured: logo)"
    )
    assert len(make(videos, folder, on).cut) == 14
    off = make(videos, folder)
    assert (off.cut, off.shards) == ([], first.shards)
    assert "not measured" not in str(plan_of(videos, folder, on))
    again = make(videos, folder, on)
    assert again.cut == []
    check_like_fresh(videos, folder, on, again)


def test_a_commit_of_an_older_version_stands_until_something_is_not_measured(videos, tmp_path):
    """It knows a basis, of which the filters that measure are a part, and measured what they needed."""
    folder, dark = tmp_path / "clips", filtered(black_luma=1)
    first = make(videos, folder, dark)
    sources, prepare = prepared(videos, dark)
    of_name = {source.name: source for source in sources}
    for path in folder.glob("shard-*.tar"):
        commit = read_commit(ShardCommit, path)
        assert commit is not None
        reports = []
        for report in commit.reports:
            assert report.origin is not None
            basis = prepare.basis_of(of_name[report.source])
            older = report.origin.model_copy(update={"basis": basis, "spans": None, "stored": None})
            spans = [
                span.model_copy(update={"measures": {"brightness": span.measures["brightness"]}})
                for span in report.measured
            ]
            reports.append(report.model_copy(update={"origin": older, "measured": spans}))
        publish_commit(path, commit.model_copy(update={"reports": reports}))
    for config in (dark, filtered(black_luma=2)):
        made = make(videos, folder, config)
        assert (made.cut, made.written, made.shards) == ([], [], first.shards)
    assert len(make(videos, folder, filtered(black_luma=2, min_sharpness=0.01)).cut) == 14


@pytest.mark.slow
def test_shards_split_and_join_as_a_collection_grows_and_shrinks(videos, drawn, tmp_path):
    """Whatever the history, no video is cut twice, and the shards are those of a fresh start."""
    folder, rng = tmp_path / "clips", random.Random(3)
    shutil.rmtree(videos)
    videos.mkdir()
    names = [f"{number:02d}.mp4" for number in range(14)]
    rng.shuffle(names)
    cut = []
    for few in (names[:3], names[:5], names[:12], names):
        for name in few:
            if not (videos / name).exists():
                shutil.copy(drawn / "blue balls" / name, videos / name)
        cut += (made := make(videos, folder)).cut
        check_like_fresh(videos, folder, SMALL, made)
    assert sorted(cut) == sorted(names)
    for name in names[2:]:
        (videos / name).unlink()
    made = make(videos, folder)
    assert (made.cut, list(made.shards)) == ([], ["shard-b.tar"])
    check_like_fresh(videos, folder, SMALL, made)


@pytest.mark.slow
def test_other_sizes_of_shards_take_the_clips_that_are_there(videos, tmp_path):
    make(videos, tmp_path / "clips")
    for size in (2, 14, 3):
        config = SMALL.model_copy(update={"videos_per_shard": size})
        made = make(videos, tmp_path / "clips", config)
        assert made.cut == []
        check_like_fresh(videos, tmp_path / "clips", config, made)


@pytest.mark.slow
def test_other_settings_cut_everything_anew(videos, tmp_path):
    make(videos, tmp_path / "clips")
    config = SMALL.model_copy(update={"max_clips_per_video": 1})
    assert len(make(videos, tmp_path / "clips", config).cut) == 14


@pytest.mark.slow
def test_which_of_two_duplicates_is_kept_is_as_in_a_fresh_start(videos, tmp_path):
    """Copies of the first videos, encoded otherwise, in other shards; then originals go and come back."""
    for number in range(5):
        draw(videos / "copies" / f"{number}.mp4", number, crf=20)
    folder = tmp_path / "clips"
    first = make(videos, folder, COMPARED)
    assert first.duplicates == [f"copies/{number}.mp4" for number in range(5)]
    assert len(first.cut) == 19
    check_like_fresh(videos, folder, COMPARED, first)
    moved = tmp_path / "02.mp4"
    (videos / "blue balls" / "02.mp4").rename(moved)
    second = make(videos, folder, COMPARED)
    assert second.cut == ["copies/2.mp4"]  # its clips are in no shard
    check_like_fresh(videos, folder, COMPARED, second)
    moved.rename(videos / "blue balls" / "02.mp4")
    third = make(videos, folder, COMPARED)
    assert third.cut == ["blue balls/02.mp4"]
    assert third.shards == first.shards
    draw(videos / "a" / "0.mp4", 1, crf=18)  # an earlier one takes the place of the original
    fourth = make(videos, folder, COMPARED)
    assert fourth.cut == ["a/0.mp4"]
    assert "blue balls/01.mp4" in fourth.duplicates
    check_like_fresh(videos, folder, COMPARED, fourth)
    everything = make(videos, folder, SMALL)  # what was left out comes back
    assert sorted(everything.cut) == fourth.duplicates
    check_like_fresh(videos, folder, SMALL, everything)


def test_a_shard_that_is_damaged_is_not_copied_from(videos, tmp_path):
    first = make(videos, tmp_path / "clips")
    tell(videos)
    sources, prepare = prepared(videos, SMALL)
    (changed,) = [shard for shard in plan_shards(sources, tmp_path / "clips", prepare).shards if not shard.stands]
    content = bytearray(changed.path.read_bytes())
    content[2000:3000] = bytes(1000)  # in the first payload
    changed.path.write_bytes(content)
    after = make(videos, tmp_path / "clips")
    assert sorted(after.cut) == sorted(source.name for source in changed.sources)
    assert after.shards.keys() == first.shards.keys()
    check_like_fresh(videos, tmp_path / "clips", SMALL, after)


def as_older_version(videos: Path, folder: Path, config: ShardConfig = SMALL) -> None:
    """Clips as an older version left them: shards of consecutive sources, each with one fingerprint of all inputs."""
    make(videos, folder, config)
    sources, prepare = prepared(videos, config)
    samples, reports = {}, {}
    for path in sorted(folder.glob("shard-*.tar")):
        commit = read_commit(ShardCommit, path)
        assert commit is not None
        reports |= {report.source: report.model_copy(update={"origin": None}) for report in commit.reports}
        for record, payload in read_shard(path, VIDEO_MEMBER):
            samples.setdefault(record.source, []).append((record, payload))
    remove_other_shards(folder, ())
    for number, at in enumerate(range(0, len(sources), config.videos_per_shard)):
        group = sources[at : at + config.videos_per_shard]
        path = folder / f"shard-{number:05d}.tar"
        shard, rows = write_shard(path, [clip for one in group for clip in samples[one.name]], VIDEO_MEMBER)
        made_from = fingerprint([prepare.fingerprint(), listing_fingerprint(group), ""])
        its_reports = [reports[source.name] for source in group]
        publish_commit(path, ShardCommit(input_fingerprint=made_from, shard=shard, rows=rows, reports=its_reports))


def test_clips_of_an_older_version_stay_while_the_sources_are_the_same(videos, tmp_path):
    folder = tmp_path / "clips"
    as_older_version(videos, folder)
    before = {path.name: path.read_bytes() for path in folder.glob("shard-*.tar")}
    made = make(videos, folder)
    assert (made.cut, made.written, made.shards) == ([], [], before)
    tell(videos)
    told = make(videos, folder)
    assert (told.cut, told.written) == ([], ["shard-00000.tar"])  # the first start noted what each was made from


def test_a_touch_or_a_caption_after_an_update_costs_one_shard_and_keeps_the_order(videos, tmp_path):
    """The one fingerprint of a shard does not say what of it has changed."""
    folder = tmp_path / "clips"
    as_older_version(videos, folder)
    tell(videos)
    made = make(videos, folder)
    assert (len(made.cut), made.written) == (4, ["shard-00000.tar"])
    assert list(made.shards) == [f"shard-{number:05d}.tar" for number in range(4)]


@pytest.mark.slow
def test_one_video_more_after_an_update_regroups_without_a_cut(videos, tmp_path):
    folder = tmp_path / "clips"
    as_older_version(videos, folder)
    add_first(videos)
    made = make(videos, folder)
    assert made.cut == ["a/0.mp4"]
    check_like_fresh(videos, folder, SMALL, made)


def test_a_plan_forgets_what_became_of_the_sources_of_a_shard_that_is_complete(videos, tmp_path):
    sources, prepare = prepared(videos, SMALL)
    shard = plan_shards(sources, tmp_path, prepare).shards[0]
    alive = []
    for source in shard.sources:
        report, _ = prepare_with_origin(prepare, source)
        alive.append(weakref.ref(report))
        shard.add(report, object())
        del report
    recipe, clips = shard.give()
    assert (list(recipe.reports), len(clips)) == ([reference() for reference in alive], len(shard.sources))
    del recipe, clips
    gc.collect()
    assert not any(reference() for reference in alive)
