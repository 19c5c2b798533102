"""The files beside the MP4 file of a clip: frames, animated pictures, and shards that networks are trained on."""

import io
import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from safetensors.torch import load_file

from data.dataset.clip import LATENT_MEMBER, SETTINGS_MEMBER, VIDEO_MEMBER
from data.dataset.index import read_index
from data.dataset.latents import read_latents
from data.dataset.manifest import LatentStats, read_manifest
from data.dataset.reader import PayloadReader
from data.dataset.shards import read_shard
from data.dataset.webdataset_pipeline import open_as_webdataset
from data.errors import DatasetError
from data.files.checksums import file_sha256
from data.stream.loader import Sample, Stream, subsets_of
from data.video.codec import decode_clip, encode_clip
from data.video.config import VideoConfig
from data.video.picture_zip import read_picture_zip
from data.video.previews import PreviewEncoder
from models.flow.spec import FlowSpec
from pipeline.distributed.torchrun import train_here
from pipeline.encode.captions import byte_captions
from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import load_autoencoder
from pipeline.run.stage_record import read_stage_record
from pipeline.sample.config import OutputsConfig
from pipeline.sample.given import ImageFile
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.sample.manifest import Manifest
from pipeline.sample.model import open_model
from pipeline.sample.outputs import read_samples
from pipeline.sample.prompts import Prompt
from pipeline.sample.provenance import Provenance, read_provenance
from pipeline.sample.reuse import reused_clips
from pipeline.sample.sampler import ClipSampler
from pipeline.sample.shards import Shard
from pipeline.sample.training_set import write_training_set
from pipeline.train.loop import train
from pipeline.train.tasks.flow import FlowTask
from pipeline.train.tasks.flow_batch import FlowBatch
from testing.clips import moving_shapes
from testing.in_process import SETTINGS, Sampled, sample
from testing.tiny import CONFIG, losses, make_task

ALL = OutputsConfig(outputs=("mp4", "frames", "gif", "webp", "webdataset"), clips_per_shard=2)
PROMPTS = [Prompt(prompt=f"dot {number}", seed=number) for number in range(5)]


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file but the manifest, which says where things are, and copies of indices."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".jsonl", ".mmap"))
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


@pytest.fixture(scope="module")
def sampled(model_dir, tmp_path_factory) -> Sampled:
    """Five clips with every kind of file."""
    made = sample(tmp_path_factory.mktemp("sampled"), model_dir, PROMPTS, ALL)
    assert write_training_set(made.folder, made.model, SETTINGS, ALL).num_clips == 5
    return made


@pytest.fixture(scope="module")
def made_alone(sampled) -> tuple[list[np.ndarray], list[torch.Tensor]]:
    """The frames and the latents of the same requests, from the sampler itself."""
    sampler = ClipSampler(sampled.model, SETTINGS, torch.device("cpu"))
    parts = [next(iter(sampler.stream_group([clip.request]))) for clip in sampled.clips]
    for part in parts:
        with torch.inference_mode():
            (decoded,) = decode_clips(sampler.autoencoder, part.latents[0][None])
        assert np.abs(decoded.astype(int) - part.frames[0]).max() <= 1  # they are what the frames were decoded from
    return [part.frames[0] for part in parts], [part.latents[0] for part in parts]


def test_frames_are_those_of_the_decoder_bit_for_bit(sampled, made_alone):
    for clip, frames in zip(sampled.clips, made_alone[0], strict=True):
        (other,) = (other for other in clip.others if other.kind == "frames")
        content = (sampled.folder / other.file).read_bytes()
        assert np.array_equal(read_picture_zip(content), frames)
        assert (other.num_bytes, other.sha256) == (len(content), file_sha256(sampled.folder / other.file))


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animated_pictures_have_the_length_of_the_clip(sampled, kind):
    """Frames that are equal are shown longer, and stored once."""
    for clip in sampled.clips:
        (other,) = (other for other in clip.others if other.kind == kind)
        with Image.open(sampled.folder / other.file) as picture:
            assert (picture.size, picture.info["loop"]) == ((32, 32), 0)
            assert sum(durations_of(picture)) == pytest.approx(5 / 8 * 1000, abs=5)


@pytest.mark.parametrize(("kind", "step"), [("gif", 10), ("webp", 1)])
@pytest.mark.parametrize("fps", [8.0, 30000 / 1001, 60.0])
def test_animated_pictures_have_every_frame_at_its_time(kind, step, fps):
    encoder, frames = PreviewEncoder(kind, fps, 48), moving_shapes(17, 64)
    for part in (frames[:5], frames[5:]):
        encoder.add(part)
    with Image.open(io.BytesIO(encoder.finish())) as picture:
        durations = durations_of(picture)
        assert picture.size == (48, 48)
    ends = np.cumsum(durations)
    assert len(durations) == 17
    assert np.abs(ends - np.arange(1, 18) * 1000 / fps).max() <= step / 2 + 1e-9


def durations_of(picture: Image.Image) -> list[int]:
    """Of each frame, in milliseconds."""
    durations = []
    for number in range(getattr(picture, "n_frames", 1)):
        picture.seek(number)
        picture.load()
        durations.append(picture.info["duration"])
    return durations


def test_a_stream_of_training_reads_the_latents_that_were_sampled(sampled, made_alone):
    folder = sampled.folder / "dataset" / "latents"
    manifest = read_manifest(folder)
    assert (manifest.kind, manifest.num_samples, manifest.latent_stats) == ("latents", 5, sampled.model.stats)
    rows = [row for split in ("train", "validation") for row in read_index(folder, split)]
    assert len(rows) == 5
    stream = Stream(subsets_of(folder, rows, {}), {"5x32x32@8": 5}, seed=0, rank=0, world_size=1)
    (batch,) = (next(stream.batches(0, list, readers=0)),)
    wanted = {clip.request.prompt: latent for clip, latent in zip(sampled.clips, made_alone[1], strict=True)}
    found = dict(zip((each.caption for each in batch), read_latents([each.payload for each in batch]), strict=True))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[caption], wanted[caption]) for caption in wanted)
    record = read_stage_record(folder)
    assert record is not None
    assert (record.stage, record.complete, record.content("latents")) == ("encode", True, record.build)
    autoencoder = load_file(folder / "autoencoder.safetensors")
    assert autoencoder.keys() == load_file(sampled.model.folder / "autoencoder.safetensors").keys()
    load_autoencoder(folder / "autoencoder.safetensors")


def task_of_pairs(folder: Path) -> FlowTask:
    task = make_task(folder)
    return replace(task, flow=FlowSpec(noise="paired"), latent_stats=LatentStats(mean=[0.5] * 4, std=[2.0] * 4))


def collated(task: FlowTask) -> FlowBatch:
    rows = read_index(task.dataset_dir)
    reader = PayloadReader(task.dataset_dir)
    samples = [Sample(number, rows, number, reader.read(rows[number])) for number in range(len(rows))]
    reader.close()
    return task.collate(samples)


def test_training_pairs_a_sampled_clip_with_the_noise_that_it_was_made_from(sampled, made_alone):
    """A network whose velocity is zero leaves the sampler where it starts."""
    folder = sampled.folder / "dataset" / "latents"
    batch, rows = collated(task_of_pairs(folder)), list(read_index(folder))
    known = {clip.request.prompt: number for number, clip in enumerate(sampled.clips)}
    seeds = [sampled.clips[known[row.caption]].request.seed for row in rows]
    start = sample_latents(
        lambda x_t, t, caption: torch.zeros_like(x_t),
        sampled.model.flow,
        SETTINGS,
        [PromptSeed("", seed) for seed in seeds],
        guidance_scale=1.0,
        shape=tuple(batch.x_1.shape[1:]),
        read_captions=byte_captions(sampled.model.network.caption_text),
        device=torch.device("cpu"),
    )
    assert torch.equal(batch.x_0, start)
    latents = torch.stack([made_alone[1][known[row.caption]] for row in rows])
    torch.testing.assert_close(batch.x_1, (latents - 0.5) / 2)


@pytest.mark.slow
def test_a_flow_is_trained_on_pairs(sampled, tmp_path):
    task = task_of_pairs(sampled.folder / "dataset" / "latents")
    train_here(partial(train, task, CONFIG, tmp_path), 1)
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert open_model(tmp_path).flow.noise == "paired"


def test_only_clips_of_noise_alone_are_pairs(sampled, model_dir):
    request = sampled.clips[0].request
    assert request.is_of_noise_alone
    for update in ({"sde_sigma": 0.5}, {"solver": "ddim", "ddim_eta": 0.5}):
        settings = request.settings.model_copy(update=update)
        assert not request.model_copy(update={"settings": settings}).is_of_noise_alone
    image = ImageFile(path="a.png", sha256="0" * 64)
    assert not request.model_copy(update={"image": image}).is_of_noise_alone
    with pytest.raises(DatasetError, match="holds clips that were not sampled from noise alone: use latents"):
        collated(task_of_pairs(model_dir.parent / "latents"))
    with pytest.raises(ValueError, match="noise is 'paired', so that every clip has its own, but coupled_clips is 4"):
        FlowSpec(noise="paired", coupled_clips=4)
    with pytest.raises(ValueError, match="made of noise alone, but frames are given"):
        FlowSpec(noise="paired", first_frame_share=0.5)


def test_shards_are_a_dataset_of_clips_too(sampled):
    folder = sampled.folder / "dataset" / "clips"
    assert read_manifest(folder).kind == "clips"
    contents = {clip.request.prompt: (sampled.folder / clip.file).read_bytes() for clip in sampled.clips}
    pipeline: Any = open_as_webdataset(folder)
    clips = list(pipeline)
    assert {clip.caption for clip in clips} == contents.keys()
    assert all(np.array_equal(clip.frames, decode_clip(contents[clip.caption])) for clip in clips)
    shards = read_manifest(folder).shards
    records = [record for shard in shards for record, _ in read_shard(folder / shard.name, VIDEO_MEMBER, shard)]
    again = [record for shard in shards for record, _ in read_shard(folder / shard.name, LATENT_MEMBER, shard)]
    assert records == again
    assert {record.key for record in records} == {clip.request.id for clip in sampled.clips}
    assert max(shard.num_samples for shard in shards) <= 2
    for shard in shards:
        assert (folder / shard.name).samefile(folder.parent / "latents" / shard.name)


def test_any_reader_of_webdataset_reads_all_that_belongs_to_a_clip(sampled):
    folder = sampled.folder / "dataset" / "clips"
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    made = {clip.request.id: clip for clip in sampled.clips}
    found = list(webdataset.compat.WebDataset(urls, shardshuffle=False))
    assert {each["__key__"] for each in found} == made.keys()
    for each in found:
        clip = made[each["__key__"]]
        assert each["mp4"] == (sampled.folder / clip.file).read_bytes()
        assert each["txt"].decode() == clip.request.prompt
        settings = Provenance.model_validate_json(each[SETTINGS_MEMBER])
        assert settings == read_provenance(sampled.folder / clip.file)


def test_no_byte_depends_on_order_batch_or_what_is_there(sampled, model_dir, tmp_path):
    rows = [*PROMPTS[3:], *PROMPTS[:3]]
    sample(tmp_path, model_dir, rows[:2], ALL, batch=1)
    write_training_set(tmp_path, open_model(model_dir), SETTINGS, ALL)  # of two clips
    again = sample(tmp_path, model_dir, rows, ALL, batch=2)
    write_training_set(tmp_path, again.model, SETTINGS, ALL)
    assert digests(tmp_path) == digests(sampled.folder)


def test_shards_are_kept_that_are_as_they_were_and_damaged_ones_made_again(sampled, model_dir, tmp_path):
    made = sample(tmp_path, model_dir, PROMPTS[:3], ALL)
    write_training_set(tmp_path, made.model, SETTINGS, ALL)
    before = digests(tmp_path)
    one, *others = sorted((tmp_path / "dataset" / "clips").glob("*.tar"))
    times = [path.stat().st_mtime_ns for path in others]
    content = bytearray(one.read_bytes())
    content[600] ^= 1
    one.write_bytes(content)
    write_training_set(tmp_path, made.model, SETTINGS, ALL)
    assert digests(tmp_path) == before
    assert [path.stat().st_mtime_ns for path in others] == times


def reused(made: Sampled, outputs: OutputsConfig) -> list[str]:
    """The names of the clips that a job with these outputs would keep."""
    with Manifest(made.folder) as manifest:
        found = reused_clips(
            manifest, lambda: (clip.request for clip in made.clips), made.model.fingerprint, None, outputs
        )
    return [clip.file for clip in read_samples(made.folder)[: found.num_made]]


def test_a_part_makes_clips_anew_that_the_manifest_lists(model_dir, tmp_path):
    """Of clips whose files are not as they are asked for, whatever file their line is in."""
    made = sample(tmp_path, model_dir, PROMPTS)
    part, webp = Shard(1, 2), OutputsConfig(outputs=("mp4", "webp"))
    own = [clip for clip in made.clips if part.owns(clip.request.id)]
    gone = made.clips[0]
    with Manifest(tmp_path, part) as manifest:
        reused_clips(manifest, lambda: (clip.request for clip in own), made.model.fingerprint, None, webp)
        assert [clip.request.id in manifest for clip in made.clips] == [clip not in own for clip in made.clips]
    (tmp_path / gone.file).unlink()
    with Manifest(tmp_path, part) as manifest:
        reused_clips(manifest, lambda: (clip.request for clip in made.clips), made.model.fingerprint)
        assert [clip.request.id in manifest for clip in made.clips] == [clip is not gone for clip in made.clips]


@pytest.mark.parametrize(
    ("changed", "is_kept"),
    [
        ({}, True),
        ({"outputs": ("mp4",)}, True),
        ({"video": {"crf": 14, "preset": "veryfast"}}, True),  # what is meant by nothing
        ({"video": {"crf": 15}}, False),
        ({"preview_side": 16}, False),
        ({"outputs": ("mp4", "webdataset")}, False),
    ],
)
def test_clips_are_kept_that_have_every_file_as_it_is_asked_for(model_dir, tmp_path, changed, is_kept, caplog):
    webp = OutputsConfig(outputs=("mp4", "webp"))
    made = sample(tmp_path, model_dir, PROMPTS[:1], webp)
    asked = OutputsConfig.model_validate(webp.model_dump() | changed)
    with caplog.at_level(logging.WARNING):
        assert len(reused(made, asked)) == is_kept
    assert ("1 clips lack a file that is asked for, or were written with other settings" in caplog.text) != is_kept


def test_a_damaged_or_missing_file_makes_its_clip_anew(sampled, model_dir, tmp_path):
    made = sample(tmp_path, model_dir, PROMPTS, ALL)
    chosen = zip(made.clips[:3], ("frames", "webdataset", "gif"), strict=True)
    files = [next(other.file for other in clip.others if other.kind == kind) for clip, kind in chosen]
    damaged, cut, gone = (tmp_path / file for file in files)
    content = damaged.read_bytes()
    damaged.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    cut.write_bytes(cut.read_bytes()[:-1])
    gone.unlink()
    assert reused(made, ALL) == [clip.file for clip in made.clips[3:]]


def test_clips_without_lines_are_known_by_what_they_say(model_dir, tmp_path):
    made = sample(tmp_path, model_dir, PROMPTS[:3], OutputsConfig(video=VideoConfig(crf=20)))
    one, two, three = made.clips
    (tmp_path / "manifest.jsonl").unlink()
    (tmp_path / three.file).write_bytes((tmp_path / two.file).read_bytes())
    assert reused(made, OutputsConfig(video=VideoConfig(crf=20))) == [one.file, two.file]
    (tmp_path / "manifest.jsonl").unlink()
    assert reused(made, OutputsConfig()) == []  # they are compressed otherwise


def test_a_folder_of_an_older_version_is_complete(model_dir, tmp_path):
    made = sample(tmp_path, model_dir, PROMPTS[:1])
    (clip,) = made.clips
    (tmp_path / clip.file).write_bytes(encode_clip(decode_clip((tmp_path / clip.file).read_bytes()), 8))
    line = clip.model_dump(mode="json", exclude={"video", "num_bytes", "model_folder", "others"})
    line["sha256"] = file_sha256(tmp_path / clip.file)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    assert reused(made, OutputsConfig()) == [clip.file]
    assert reused(made, OutputsConfig(outputs=("mp4", "gif"))) == []
