"""Describe a folder in text: a run, a dataset, a checkpoint, or sampled clips."""

from collections import Counter
from math import prod
from pathlib import Path

import yaml

from data.curation.listing import ListingCounts, describe_listing
from data.dataset.index_places import INDEX_NAME
from data.dataset.manifest import MANIFEST_NAME, Manifest
from data.dataset.survey import Histogram, Survey, survey_dataset
from launch.overrides import ConfigError
from pipeline.checkpoint.published import is_published
from pipeline.checkpoint.published_networks import open_transformer, transformer_shapes
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import CHECKPOINT_RECORD_NAME, LATEST_NAME
from pipeline.ingest.measured import measured_spans
from pipeline.report.dataset_page import clips_dir_of, write_dataset_page
from pipeline.report.gallery import GALLERY_NAME
from pipeline.report.pages import visible
from pipeline.run.run_files import CONFIG_NAME
from pipeline.run.stage_record import read_stage_record
from pipeline.sample.outputs import CLIP_SUFFIX, SAMPLES_NAME, read_samples
from pipeline.sample.provenance import read_provenance

BAR_WIDTH, MAX_BUCKETS = 40, 20


def describe_folder(path: Path) -> str:
    """Describe a folder that reelflow wrote, or a clip that was sampled, in a few lines.

    Raises:
        ConfigError: the folder does not exist or holds nothing that reelflow wrote.
        DatasetError: it is an unfinished or damaged dataset.
        PublishedError: it is a published model that cannot be used.
        ProvenanceError: it is an MP4 file that does not say how it was made.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist; name a run, a dataset, a checkpoint or a folder of samples")
    if _is_dataset(path):
        return _dataset(path)
    if (path / CHECKPOINT_RECORD_NAME).is_file() or (path / LATEST_NAME).is_file():
        return _checkpoint(path)
    if path.suffix == CLIP_SUFFIX and path.is_file():
        return _clip(path)
    if (path / SAMPLES_NAME).is_file():
        clips = read_samples(path)
        scales = Counter(f"{clip.request.guidance_scale:g}" for clip in clips)
        counts = ", ".join(f"{number} at guidance {scale}" for scale, number in scales.items())
        return f"{path}: {len(clips)} sampled clips ({counts})\n  {path / GALLERY_NAME}"
    if is_published(path):
        return _published(path)
    if (path / CONFIG_NAME).is_file():
        return _run(path)
    raise ConfigError(f"{path} is not a run, a dataset, a checkpoint, a published model or a folder of samples")


def _clip(path: Path) -> str:
    made = read_provenance(path)
    lines = yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    shown = "\n".join(f"  {visible(line)}" for line in lines.splitlines())
    return f"{path}: a sampled clip, made from\n{shown}"


def show_folder(path: Path, page_dir: Path, num_clips: int) -> list[Path]:
    """Write the page of the dataset at `path` into `page_dir`; returns the files that were written.

    Raises:
        ConfigError: the folder holds no dataset.
        DatasetError: it is an unfinished or damaged one.
    """
    if not _is_dataset(path):
        raise ConfigError(
            f"{path} is no dataset, and a page shows only datasets; name a folder such as runs/NAME/clips"
        )
    return write_dataset_page(survey_dataset(path), page_dir, num_clips, measured_spans(path))


def _is_dataset(path: Path) -> bool:
    """Whether a folder holds a dataset, finished or not."""
    return any((path / name).is_file() for name in (MANIFEST_NAME, INDEX_NAME)) or any(path.glob("shard-*.tar"))


def _run(path: Path) -> str:
    lines = [f"{path}: a run"]
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and (record := read_stage_record(folder)) is not None:
            state = "complete" if record.complete else "unfinished"
            facts = ", ".join(f"{name} {value}" for name, value in record.summary.items())
            lines.append(f"  {folder.name:24} {state:10} {record.wall_seconds:7.1f} s  {facts}")
    return "\n".join(lines)


def _dataset(path: Path) -> str:
    survey = survey_dataset(path)
    manifest = survey.manifest
    examples = ", ".join(repr(caption) for caption in survey.captions)
    lines = [
        f"{path}: {manifest.kind}, {manifest.num_samples} samples in {len(manifest.shards)} shards, "
        f"{survey.num_bytes / 1e6:.1f} MB",
        f"  splits      {_counts(survey.splits)}",
        f"  decoders    {_counts(survey.decoders)}",
        f"  captions    {survey.num_captions} different, for example {examples}",
        *_ledger(survey),
    ]
    if manifest.latent_stats is not None:
        lines.append(f"  clips       {clips_dir_of(path) or 'in the folder clips of the run that encoded them'}")
        for name, values in (("mean", manifest.latent_stats.mean), ("std", manifest.latent_stats.std)):
            lines.append(f"  {name:11} {' '.join(f'{value:.3f}' for value in values)}")
    if manifest.text_encoder is not None:
        encoder = manifest.text_encoder
        lines.append(
            f"  text        {encoder.max_tokens} x {encoder.width} embeddings by {encoder.folder} "
            f"({manifest.num_truncated_captions} captions were truncated)"
        )
    bars = [bar for histogram in survey.histograms for bar in histogram.bars]
    names = [record.bucket.name for record in manifest.buckets[:MAX_BUCKETS]] + [bar.label for bar in bars]
    width = max(map(len, names), default=0)
    lines += [
        *_buckets(manifest, width),
        *(line for histogram in survey.histograms for line in _bars(histogram, width)),
    ]
    return "\n".join(visible(line) for line in lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _buckets(manifest: Manifest, width: int) -> list[str]:
    """A table of the shapes, that with most clips first."""
    lines = [f"  {'buckets':{width + 2}} {'clips':>11} {'share':>8} {'train':>11} {'validation':>11}"]
    for record in manifest.buckets[:MAX_BUCKETS]:
        share = f"{100 * record.num_samples / manifest.num_samples:.1f} %"
        splits = f"{record.num_train:11,} {record.num_validation:11,}"
        lines.append(f"    {record.bucket.name:{width}} {record.num_samples:11,} {share:>8} {splits}")
    rest = manifest.buckets[MAX_BUCKETS:]
    if rest:
        lines.append(f"    and {len(rest)} more buckets with {sum(record.num_samples for record in rest):,} clips")
    return lines


def _bars(histogram: Histogram, width: int) -> list[str]:
    """A histogram as lines of text."""
    longest = max((bar.count for bar in histogram.bars), default=0)
    lines = [f"  {histogram.name:11} {histogram.measure}"]
    for bar in histogram.bars:
        blocks = "█" * round(BAR_WIDTH * bar.count / longest) or ("▏" if bar.count else "")
        lines.append(f"    {bar.label:{width}} {bar.count:11,} {blocks}".rstrip())
    return lines


def _ledger(survey: Survey) -> list[str]:
    """How many sources were used, and a table of those left out, by reason."""
    counts = survey.manifest.ledger
    if counts is None:
        return []
    return [
        f"  sources     {counts.sources} = {counts.shards} in shards + {counts.filtered} filtered "
        f"+ {counts.quarantine} in quarantine",
        *([f"  beside them {told}"] if (told := describe_listing(survey.manifest.listing or ListingCounts())) else []),
        *(
            f"    {entry.file:16} {entry.count:6} {entry.example.reason:14} "
            f"such as {entry.example.source}: {entry.example.detail}"
            for entry in survey.left_out
        ),
    ]


def _checkpoint(path: Path) -> str:
    checkpoint = open_checkpoint(path)
    record = checkpoint.record
    num_parameters = sum(prod(shape) for shape in record.parameters.values())
    num_bytes = sum(file.num_bytes for file in record.files.values())
    return "\n".join(
        [
            f"{checkpoint.folder}: {record.kind}, after step {record.step} ({record.cursor} samples)",
            f"  parameters  {num_parameters:,} in {len(record.parameters)} tensors",
            f"  saved by    {record.world_size} workers, ZeRO stage {record.zero_stage}",
            f"  files       {len(record.files)}, {num_bytes / 1e6:.1f} MB, checksums verified",
            *(f"  {name:11} {value}" for name, value in record.trained.items()),
        ]
    )


def _published(path: Path) -> str:
    """A published transformer: its size, and the section of a configuration to fine-tune it, where that is possible."""
    found, described = open_transformer(path)
    num_parameters = sum(map(prod, transformer_shapes(described).values()))
    section = yaml.safe_dump({"dit": {"model": described.config.model_dump(mode="json")}}, sort_keys=False)
    tuning = ["  to fine-tune it, a configuration has:", *(f"    {line}" for line in section.splitlines())]
    image = [f"  image       {described.config.condition_channels} channels; it can be sampled, but not trained"]
    return "\n".join(
        [
            f"{found.folder}: a published transformer",
            f"  parameters  {num_parameters:,}",
            f"  latents     {described.channels} channels",
            f"  captions    embeddings of {described.embedding_width} channels",
            *(image if described.config.needs_image else tuning),
        ]
    )
