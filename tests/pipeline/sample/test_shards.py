"""Jobs on parts of the prompts: who may share a folder, and that their lines come together."""

import pytest

from pipeline.run.lock import LockedError
from pipeline.sample import shards
from pipeline.sample.manifest import Manifest
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, read_samples
from pipeline.sample.requests import PromptRequest
from pipeline.sample.shards import Shard, ShardError, held_folder


def clips(*seeds: int) -> list[SampledClip]:
    requests = [
        PromptRequest(id=f"{seed:012x}", prompt="a", seed=seed, guidance_scale=1.0, bucket="9x32x32@8")
        for seed in seeds
    ]
    return [SampledClip(file=r.file_name, request=r, num_network_calls=2) for r in requests]


def test_every_clip_is_of_one_part():
    for count in (1, 2, 3, 7):
        parts = [Shard(number, count) for number in range(1, count + 1)]
        for seed in range(50):
            assert sum(part.owns(f"{seed * 7919:012x}") for part in parts) == 1


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_part_that_there_is_not_is_refused(text):
    with pytest.raises(ShardError, match="write NUMBER/COUNT"):
        Shard.of_text(text)
    assert Shard.of_text("2/8") == Shard(2, 8)


def test_only_parts_of_one_count_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "PATIENCE_SECONDS", 0.1)
    with held_folder(tmp_path, Shard(1, 2)):
        with held_folder(tmp_path, Shard(2, 2)):
            pass
        for other in (Shard(1, 2), Shard(1, 3), None):
            with pytest.raises(LockedError, match="is in use by process"), held_folder(tmp_path, other):
                pass
    with held_folder(tmp_path):
        for other in (Shard(1, 2), None):
            with pytest.raises(LockedError, match="is in use by process"), held_folder(tmp_path, other):
                pass
    with held_folder(tmp_path, Shard(1, 3)):
        pass


def test_lines_of_parts_are_read_together_and_join_the_manifest(tmp_path):
    one, two, three, four = clips(1, 2, 3, 4)
    with Manifest(tmp_path) as manifest:
        manifest.append([one])
    for part, lines in ((Shard(1, 2), [two, one]), (Shard(2, 2), [three])):
        with Manifest(tmp_path, part) as manifest:
            manifest.append(lines)
            assert list(manifest.own_lines()) == lines
    assert read_samples(tmp_path) == [two, one, three]  # each once
    with Manifest(tmp_path, Shard(2, 2)) as manifest:
        assert manifest.line(two.request.id) == two  # of the other part
        manifest.append([four])
        manifest.reorder(clip.request for clip in (four, three))
        assert list(manifest.own_lines()) == [four, three]
    assert read_samples(tmp_path) == [two, one, four, three]
    with Manifest(tmp_path) as manifest:
        manifest.reorder(clip.request for clip in (three, one))
    assert [path.name for path in tmp_path.glob("*.jsonl")] == [SAMPLES_NAME]
    lines = read_samples(tmp_path)
    assert lines[:2] == [three, one]
    assert {clip.request.seed for clip in lines[2:]} == {2, 4}


def test_a_part_makes_a_clip_anew_whose_line_is_in_the_manifest(tmp_path):
    old, other = clips(2, 3)
    new = old.model_copy(update={"sha256": "0" * 64})
    with Manifest(tmp_path) as manifest:
        manifest.append([old, other])
    with Manifest(tmp_path, Shard(1, 2)) as manifest:
        assert old.request.id in manifest
        manifest.forget(old.request.id)
        assert old.request.id not in manifest
        manifest.append([new])
        assert manifest.line(old.request.id) == new
        assert list(manifest.own_lines()) == [new]
    assert read_samples(tmp_path) == [other, new]  # the newer line counts
    with Manifest(tmp_path, Shard(2, 2)) as manifest:
        assert manifest.line(old.request.id) == new
    with Manifest(tmp_path) as manifest:
        assert manifest.line(old.request.id) == new
        manifest.reorder(clip.request for clip in (old, other))
    assert read_samples(tmp_path) == [new, other]


def test_a_line_that_was_cut_short_is_left_out_and_the_next_one_stands_alone(tmp_path):
    one, two = clips(1, 2)
    with Manifest(tmp_path) as manifest:
        manifest.append([one, two])
    path = tmp_path / SAMPLES_NAME
    path.write_bytes(path.read_bytes()[:-20])
    with Manifest(tmp_path) as manifest:
        assert (one.request.id in manifest, two.request.id in manifest, len(manifest)) == (True, False, 1)
        manifest.rewrite(manifest.own_lines())
        manifest.append([two])
    assert read_samples(tmp_path) == [one, two]
