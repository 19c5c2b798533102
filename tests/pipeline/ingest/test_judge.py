"""Clips are judged by models while they are cut: scores are stored, thresholds filter by name."""

import asyncio
import json
import tarfile

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.curation.config import FilterConfig, ModelsConfig
from data.curation.ledger import read_rejections
from data.curation.source_folders import list_folder
from data.dataset.buckets import Bucket
from data.dataset.index import read_index
from data.video.codec import encode_clip
from models.curation.folders import CurationModelError
from pipeline.ingest.config import ShardConfig
from pipeline.ingest.judge import ClipModels, JudgeActor, Judgement, failed_judgement, model_fingerprints, started_judge
from pipeline.ingest.prepare import PrepareConfig, prepare_source
from pipeline.ingest.shard import make_shards
from testing.curation_models import write_brightness_score, write_captioner, write_clip

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 3, 40, 60, 3), np.uint8)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return ModelsConfig(
        captioner=write_captioner(folder / "captioner"),
        max_caption_tokens=6,
        similarity=write_clip(folder / "clip"),
        aesthetic=write_brightness_score(folder / "score.pt"),
        aesthetic_pixels=40,
        batch_size=3,
    )


def test_each_model_judges_each_clip(config):
    models = ClipModels(config, torch.device("cpu"))
    judgements = models.judge([(pictures, "a red circle") for pictures in PICTURES])
    for pictures, judgement in zip(PICTURES, judgements, strict=True):
        assert judgement.scores["aesthetic"] == pytest.approx(pictures[:, :, 10:50].mean() / 255, rel=1e-5)
        assert -1 <= judgement.scores["similarity"] <= 1
        assert models.judge([(pictures, "a red circle")])[0].caption == judgement.caption


def test_clips_that_wait_together_get_their_own_judgements(config):
    async def judged():
        actor = JudgeActor(config.model_copy(update={"captioner": None, "similarity": None}))
        await actor.load()
        return await asyncio.gather(*(actor.judge(pictures, "") for pictures in PICTURES))

    for pictures, judgement in zip(PICTURES, asyncio.run(judged()), strict=True):
        assert judgement.scores == {"aesthetic": pytest.approx(pictures[:, :, 10:50].mean() / 255, rel=1e-5)}


def test_thresholds_filter_by_name(config):
    (judgement,) = ClipModels(config, torch.device("cpu")).judge([(PICTURES[0], "blue")])
    strict = {"min_aesthetic": ("unaesthetic", 0.9), "min_similarity": ("caption_mismatch", 1.0)}
    for setting, (reason, limit) in strict.items():
        failed = failed_judgement(judgement, config.model_copy(update={setting: limit}))
        assert failed is not None
        assert failed[0] == reason
    assert failed_judgement(judgement, config) is None


def test_a_threshold_without_its_model_is_refused():
    with pytest.raises(ValidationError, match="min_aesthetic is given without aesthetic"):
        ModelsConfig(min_aesthetic=5)


def test_the_content_of_a_model_is_part_of_what_clips_are_made_from(config, tmp_path):
    before = model_fingerprints(config)
    assert len(before) == 3
    assert model_fingerprints(ModelsConfig()) == []
    copied = write_brightness_score(tmp_path / "copy.pt")
    assert model_fingerprints(config.model_copy(update={"aesthetic": copied}))[:2] == before[:2]


def test_a_source_is_judged_after_its_filters_and_before_it_is_stored(tmp_path):
    frames = np.random.default_rng(0).integers(180, 220, (9, 64, 64, 3), np.uint8)
    (tmp_path / "bright.mp4").write_bytes(encode_clip(frames, 8))
    (source,) = list_folder(tmp_path)
    asked = []

    def judge(pictures, caption):
        asked.append((pictures.shape, caption))
        return Judgement("a red star", {"aesthetic": 0.7})

    buckets = (Bucket(num_frames=9, height=32, width=32, fps=8),)
    settings = ShardConfig(buckets=buckets, models=ModelsConfig(aesthetic=tmp_path / "score.pt", min_aesthetic=0.5))
    report, clips = prepare_source(PrepareConfig(buckets, {}, settings, judge=judge), source)
    ((record, _),) = clips
    assert asked == [((3, 32, 32, 3), tmp_path.name.replace("_", " "))]
    assert (record.caption, record.caption_by, record.measures) == ("a red star", "captioner", {"aesthetic": 0.7})
    assert len(report.clips) == 1
    stricter = settings.model_copy(update={"models": settings.models.model_copy(update={"min_aesthetic": 0.8})})
    report, clips = prepare_source(PrepareConfig(buckets, {}, stricter, judge=judge), source)
    assert (report.filtered[0].reason, list(clips)) == ("unaesthetic", [])
    black = settings.model_copy(update={"filters": FilterConfig(black_luma=255)})
    report, clips = prepare_source(PrepareConfig(buckets, {}, black, judge=judge), source)
    assert (report.filtered[0].reason, len(asked)) == ("black", 2)


def test_shards_hold_the_scores_and_not_what_failed(cluster, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, level in (("bright", 200), ("dark", 60)):
        frames = np.random.default_rng(0).integers(level - 20, level + 20, (9, 64, 64, 3), np.uint8)
        (videos / f"{name}.mp4").write_bytes(encode_clip(frames, 8))
    models = ModelsConfig(aesthetic=write_brightness_score(tmp_path / "score.pt"), min_aesthetic=0.5)
    config = ShardConfig(buckets=(Bucket(num_frames=9, height=32, width=32, fps=8),), models=models)
    manifest = make_shards(list_folder(videos), tmp_path / "clips", config, 2)
    assert manifest.filtered == {"unaesthetic": 1}
    (rejection,) = read_rejections(tmp_path / "clips" / "filtered.jsonl")
    assert (rejection.source, rejection.reason) == ("dark.mp4", "unaesthetic")
    (row,) = read_index(tmp_path / "clips")
    assert row.source == "bright.mp4"
    with tarfile.open(tmp_path / "clips" / row.shard) as tar:
        member = tar.extractfile(f"{row.key}.json")
        assert member is not None
        record = json.load(member)
    assert record["measures"] == {"aesthetic": pytest.approx(200 / 255, abs=0.03)}


def test_a_model_that_cannot_be_used_is_refused_before_the_first_video(cluster, tmp_path):
    path = tmp_path / "flat.pt"
    torch.jit.save(torch.jit.script(torch.nn.Flatten()), path)
    with (
        pytest.raises(CurationModelError, match="must return one finite number"),
        started_judge(ModelsConfig(aesthetic=path)),
    ):
        pass
