"""What is seen at the end of the stage: shards that were not written, and captions that changed meanwhile."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.curation.config import FilterConfig
from data.curation.source import Source, look_again
from data.curation.sources import list_sources
from data.dataset.buckets import Bucket
from data.dataset.clip import VIDEO_MEMBER
from data.dataset.shards import read_shard
from data.video.codec import encode_clip
from pipeline.ingest import shard, verify
from pipeline.ingest.commit import ShardCommit, commit_shard
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.plan import Plan, plan_shards
from pipeline.ingest.prepare import PrepareConfig, prepare_with_origin
from pipeline.ingest.spool import Clips
from pipeline.ingest.verify import NotAsPlannedError, verified_commits
from pipeline.run.commits import commit_path, read_commit
from pipeline.run.shared_files import SHARED

CONFIG = ShardConfig(buckets=(Bucket(num_frames=5, height=32, width=32, fps=8),), videos_per_shard=2)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """Five videos of noise, and three files that are rejected."""
    folder, random = tmp_path_factory.mktemp("drawn") / "a folder", np.random.default_rng(0)
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.mp4").write_bytes(encode_clip(random.integers(0, 255, (6, 32, 32, 3)).astype(np.uint8), 8))
    for name, content in (("empty", b""), ("text", b"text" * 99), ("cut", (folder / "0.mp4").read_bytes()[:300])):
        (folder / f"{name}.mp4").write_bytes(content)
    return folder


@pytest.fixture
def videos(drawn, tmp_path) -> Path:
    return shutil.copytree(drawn, tmp_path / "a folder")


def carry_out(plan: Plan, lost: tuple[Path, ...] = ()) -> None:
    """Cut and write what is missing, in this process; shards that are `lost` are not written."""
    for planned in plan.shards:
        new: dict[str, Clips] = {}
        if planned.stands:
            continue
        for source in planned.to_cut:
            report, new[source.name] = prepare_with_origin(plan.config, source)
            planned.add(report, source.name if report.has_clips else None)
        recipe, names = planned.give()
        if planned.path not in lost:
            commit_shard(SHARED, recipe, *(new[name] for name in names))


def planned(videos: Path, folder: Path, config: ShardConfig = CONFIG) -> tuple[list[Source], Plan]:
    folder.mkdir(exist_ok=True)
    sources = list_sources(str(videos))
    return sources, plan_shards(sources, folder, PrepareConfig(config.buckets, {}, config))


def captions(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("shard-*.tar"))
    return {record.source: record.caption for path in paths for record, _ in read_shard(path, VIDEO_MEMBER)}


def test_the_text_of_a_commit_is_that_of_its_record(videos, tmp_path):
    _, plan = planned(videos, tmp_path / "clips")
    carry_out(plan)
    paths = [planned_shard.path for planned_shard in plan.shards]
    for path in paths:
        commit = read_commit(ShardCommit, path)
        assert commit is not None
        assert commit_path(path).read_text() == commit.model_dump_json()


def test_a_plan_that_was_carried_out_is_verified_and_one_that_was_not_is_refused(videos, tmp_path):
    sources, plan = planned(videos, tmp_path / "clips")
    carry_out(plan)
    commits = list(verified_commits(plan, sources))
    assert [report.source for commit in commits for report in commit.reports] == [
        source.name for planned_shard in plan.shards for source in planned_shard.sources
    ]
    first = plan.shards[0].path
    kept = commit_path(first).read_text()
    commit_path(first).unlink()
    with pytest.raises(NotAsPlannedError, match=f"{first.name} could not be written"):
        list(verified_commits(plan, sources))
    commit_path(first).write_text(kept)
    assert list(verified_commits(plan, sources)) == commits


def test_the_commit_of_an_earlier_start_is_not_taken_for_the_one_that_was_lost(videos, tmp_path):
    folder = tmp_path / "clips"
    carry_out(planned(videos, folder)[1])
    changed = videos / "1.mp4"
    changed.write_bytes((videos / "2.mp4").read_bytes())
    sources, plan = planned(videos, folder)
    (path,) = (planned_shard.path for planned_shard in plan.shards if not planned_shard.stands)
    carry_out(plan, lost=(path,))
    with pytest.raises(NotAsPlannedError, match=path.name):
        list(verified_commits(plan, sources))


def test_clips_that_return_when_duplicates_may_stay_are_missed_where_their_shard_is_lost(videos, tmp_path):
    """What such a shard is made from does not change."""
    folder = tmp_path / "clips"
    (videos / "copy of 1.mp4").write_bytes((videos / "1.mp4").read_bytes())
    compared = CONFIG.model_copy(update={"filters": FilterConfig(duplicate_bits=0)})
    for _ in range(2):
        carry_out(planned(videos, folder, compared)[1])
    assert planned(videos, folder, compared)[1].is_done
    sources, plan = planned(videos, folder)
    (path,) = (planned_shard.path for planned_shard in plan.shards if not planned_shard.stands)
    carry_out(plan, lost=(path,))
    with pytest.raises(NotAsPlannedError, match=path.name):
        list(verified_commits(plan, sources))


@pytest.mark.parametrize("name", ["1.mp4", "empty.mp4"])
@pytest.mark.parametrize("before", [None, "one", "\1"])
@pytest.mark.parametrize("after", [None, "two", "\2"])
def test_a_sidecar_that_changes_while_shards_are_made_is_seen(videos, tmp_path, name, before, after):
    for other in ("0", "2", "3", "4", "text", "cut"):
        (videos / f"{other}.mp4").unlink()
    sidecar = (videos / name).with_suffix(".txt")
    if before is not None:
        sidecar.write_text(before)
    sources, plan = planned(videos, tmp_path / "clips")
    carry_out(plan)
    list(verified_commits(plan, look_again(sources)))
    sidecar.unlink(missing_ok=True)
    if after is not None:
        sidecar.write_text(after)
    if before == after or (name == "empty.mp4" and before != "\1" and after != "\2"):  # its report has no caption
        list(verified_commits(plan, look_again(sources)))
        return
    with pytest.raises(NotAsPlannedError, match=f"caption of {name} has changed"):
        list(verified_commits(plan, look_again(sources)))


def test_the_stage_goes_on_until_all_is_as_planned(videos, tmp_path, monkeypatch, caplog):
    """A shard is lost in the first round, and a sidecar appears in it; each commit is read once at the end."""
    folder, rounds = tmp_path / "clips", []

    def prepare_and_commit(plan: Plan, *_: object) -> None:
        rounds.append(sorted(source.name for source in plan.to_cut))
        carry_out(plan, lost=(plan.shards[0].path,) if len(rounds) == 1 else ())
        (videos / "3.txt").write_text("it appears")

    monkeypatch.setattr(shard, "_prepare_and_commit", prepare_and_commit)
    sources = list_sources(str(videos))
    with caplog.at_level(logging.INFO):
        manifest = shard.make_shards(sources, folder, CONFIG, num_workers=1)
    lost = sorted(source.name for source in planned(videos, tmp_path / "other")[1].shards[0].sources)
    assert rounds == [sorted(source.name for source in sources), lost]
    assert "could not be written; it is planned again" in caplog.text
    assert manifest.ledger is not None
    assert manifest.ledger.model_dump() == {"sources": 8, "shards": 5, "filtered": 0, "quarantine": 3}
    assert captions(folder) == {f"{number}.mp4": "it appears" if number == 3 else "a folder" for number in range(5)}


def test_each_commit_of_a_first_start_is_read_once(videos, tmp_path, monkeypatch):
    read, real = list[str](), verify.read_commit
    monkeypatch.setattr(shard, "_prepare_and_commit", lambda plan, *_: carry_out(plan))
    monkeypatch.setattr(verify, "read_commit", lambda kind, path: read.append(path.name) or real(kind, path))
    monkeypatch.setattr(
        "pipeline.ingest.plan.read_commit", lambda kind, path: read.append(path.name) or real(kind, path)
    )
    shard.make_shards(list_sources(str(videos)), tmp_path / "clips", CONFIG, num_workers=1)
    assert sorted(read) == sorted(path.name for path in (tmp_path / "clips").glob("shard-*.tar"))
