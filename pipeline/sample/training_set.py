"""Sampled clips as WebDataset shards that networks are trained on: for distillation, or on one's own samples.

    dataset/clips/     a dataset of clips: shards, index and manifest, as `shard` makes them
    dataset/latents/   a dataset of latents: the same shards, another index, and the autoencoder

A sample has the members `<id>.mp4`, `<id>.latent.safetensors`, `<id>.txt` (the prompt), `<id>.settings.json` (how it
was made, as in the MP4 file) and `<id>.json` (its record as a clip). Both folders hold the same shards by hard links,
which take their space once; where the file system has no such links, they are copies.

A clip's shard follows from its id alone, so the order of prompts, the workers and the history of the folder change no
byte. A shard is written anew if one of its clips is new or has changed.
"""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.dataset.clip import LATENT_MEMBER, SETTINGS_MEMBER, VIDEO_MEMBER, ClipRecord, split_of
from data.dataset.index import write_index
from data.dataset.manifest import MANIFEST_NAME, BucketCounts, Manifest, ShardRecord, content_fingerprint
from data.dataset.rows import IndexRow
from data.dataset.shards import write_members
from data.files.checksums import file_sha256
from data.files.publish import publish_text, temporary_sibling
from pipeline.encode.captions import store_null_caption
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.encode.config import TextEncoderConfig
from pipeline.ingest.layout import grouped
from pipeline.run.commits import Commit, publish_commit, read_commit, remove_commit, remove_other_shards, writing
from pipeline.run.fingerprints import fingerprint
from pipeline.run.stage_record import STAGE_RECORD_NAME, StageRecord
from pipeline.sample.checks import text_encoder_folder
from pipeline.sample.config import OutputsConfig, SampleConfig
from pipeline.sample.manifest import Manifest as Lines
from pipeline.sample.model import SampledModel
from pipeline.sample.outputs import SampledClip
from pipeline.sample.writers import provenance_of

logger = logging.getLogger(__name__)

DATASET_DIR, CLIPS_DIR, LATENTS_DIR = "dataset", "clips", "latents"
VALIDATION_FRACTION = 0.05  # of the prompts, as of the sources of other datasets
STAGES = {CLIPS_DIR: "shard", LATENTS_DIR: "encode"}
"""The stages that make such folders in a run."""


class SampledShard(Commit):
    """The commit of a shard of sampled clips; its rows are those of the dataset of clips."""

    latent_rows: list[IndexRow]


@dataclass(frozen=True)
class TrainingSet:
    """What `write_training_set` made."""

    folder: Path
    num_clips: int
    num_left_out: int
    """Clips of the folder that have no latent of this model."""

    @property
    def files(self) -> list[Path]:
        """That must be there for it to be whole."""
        if not self.num_clips:
            return []
        folders = [self.folder / CLIPS_DIR, self.folder / LATENTS_DIR]
        return [path for each in folders for path in sorted(each.iterdir()) if path.name != STAGE_RECORD_NAME]


def write_training_set(
    samples_dir: Path, model: SampledModel, config: SampleConfig, outputs: OutputsConfig
) -> TrainingSet:
    """Write the shards of all clips of a samples folder that have a latent of this model.

    Raises:
        SamplesError: the manifest is damaged.
        ShardWriteError: a shard cannot be written.
        TextEncoderError: the text encoder cannot be used.
    """
    folder = samples_dir / DATASET_DIR
    with Lines(samples_dir) as lines:
        chosen = [
            clip.request.id for clip in lines.own_lines() if clip.latent is not None and clip.model == model.fingerprint
        ]
        num_left_out = len(lines) - len(chosen)
        if not chosen:
            return TrainingSet(folder, 0, num_left_out)
        groups = grouped(chosen, str, outputs.clips_per_shard)
        clips_dir, latents_dir = folder / CLIPS_DIR, folder / LATENTS_DIR
        for each in (clips_dir, latents_dir):
            each.mkdir(parents=True, exist_ok=True)
            (each / MANIFEST_NAME).unlink(missing_ok=True)  # while shards are replaced, it is no finished dataset
        for group in groups:
            clips = [clip for name in group.sources if (clip := lines.line(name)) is not None]
            _write_shard(clips_dir / group.shard, samples_dir, clips, model)
            _link(clips_dir / group.shard, latents_dir / group.shard)
    names = [group.shard for group in groups]
    for each in (clips_dir, latents_dir):
        remove_other_shards(each, names)
    (latents_dir / AUTOENCODER_NAME).unlink(missing_ok=True)
    model.export_autoencoder(latents_dir / AUTOENCODER_NAME)
    text_encoder = model.text_encoder
    if text_encoder is not None:
        text = TextEncoderConfig(folder=text_encoder_folder(model, config), max_tokens=text_encoder.max_tokens)
        text_encoder = store_null_caption(latents_dir, text, model.flow.null_caption)
    for kind, each in ((CLIPS_DIR, clips_dir), (LATENTS_DIR, latents_dir)):
        counts, shards = BucketCounts(), list[ShardRecord]()
        write_index(each, _rows(clips_dir, names, kind, counts, shards))
        is_latents = kind == LATENTS_DIR
        manifest = Manifest(
            kind=kind,
            fingerprint=content_fingerprint(shards),
            buckets=counts.records(),
            num_samples=counts.num_samples,
            shards=shards,
            latent_stats=model.stats if is_latents else None,
            text_encoder=text_encoder if is_latents else None,
        )
        publish_text(each / MANIFEST_NAME, manifest.model_dump_json(indent=1))
        record = StageRecord(stage=STAGES[kind], complete=True, build=f"sampled-{manifest.fingerprint}", inputs={})
        publish_text(each / STAGE_RECORD_NAME, record.model_dump_json(indent=1))
    return TrainingSet(folder, len(chosen), num_left_out)


def _write_shard(path: Path, samples_dir: Path, clips: Sequence[SampledClip], model: SampledModel) -> None:
    """Write and commit a shard, unless it is there and made from the same files."""
    made_from = fingerprint([[_record(clip, model).model_dump(), clip.sha256, _latent_sha256(clip)] for clip in clips])
    commit = read_commit(SampledShard, path)
    if commit is not None and commit.input_fingerprint == made_from and _is_as_committed(path, commit):
        return
    members = _members(samples_dir, clips, model)
    with writing(path):
        shard, rows = write_members(path, members, (VIDEO_MEMBER, LATENT_MEMBER), partial(remove_commit, path))
        publish_commit(
            path,
            SampledShard(
                input_fingerprint=made_from, shard=shard, rows=rows[VIDEO_MEMBER], latent_rows=rows[LATENT_MEMBER]
            ),
        )


def _members(
    samples_dir: Path, clips: Iterable[SampledClip], model: SampledModel
) -> Iterator[tuple[ClipRecord, dict[str, bytes]]]:
    """Record and members of each clip, one at a time in memory."""
    for clip in clips:
        assert clip.latent is not None
        assert clip.video is not None  # clips of older versions have no latents
        settings = provenance_of(clip.request, model.named, clip.video).text()
        yield (
            _record(clip, model),
            {
                VIDEO_MEMBER: (samples_dir / clip.file).read_bytes(),
                LATENT_MEMBER: (samples_dir / clip.latent.file).read_bytes(),
                SETTINGS_MEMBER: settings.encode(),
            },
        )


def _latent_sha256(clip: SampledClip) -> str | None:
    return None if clip.latent is None else clip.latent.sha256


def _record(clip: SampledClip, model: SampledModel) -> ClipRecord:
    """A sampled clip as a clip of a dataset; all clips of a prompt are in one split."""
    request, bucket = clip.request, model.bucket(clip.request.bucket)
    return ClipRecord(
        key=request.id,
        source=clip.file,
        start_seconds=0.0,
        caption=request.prompt,
        dataset="",
        split=split_of(request.prompt, VALIDATION_FRACTION),
        decoder="sampled",
        variant="",
        num_frames=bucket.num_frames,
        height=bucket.height,
        width=bucket.width,
        fps=bucket.fps,
        source_height=bucket.height,
        source_width=bucket.width,
    )


def _is_as_committed(path: Path, commit: SampledShard) -> bool:
    """Whether a shard is the one that was committed; reads it whole."""
    return path.is_file() and path.stat().st_size == commit.shard.num_bytes and file_sha256(path) == commit.shard.sha256


def _link(source: Path, target: Path) -> None:
    """Let another name stand for a file; copy it where the file system has no hard links."""
    if target.exists() and target.samefile(source):
        return
    temporary = temporary_sibling(target)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    temporary.replace(target)


def _rows(
    clips_dir: Path, names: Iterable[str], kind: str, counts: BucketCounts, shards: list[ShardRecord]
) -> Iterator[IndexRow]:
    """The rows of all shards, of which those of one are in memory; counts them, and adds the shards."""
    for name in names:
        commit = read_commit(SampledShard, clips_dir / name)
        assert commit is not None, name  # it was written a moment ago
        rows = commit.rows if kind == CLIPS_DIR else commit.latent_rows
        counts.add(rows)
        shards.append(commit.shard)
        yield from rows
