"""What a run is going to do, and what it has done, in a few lines."""

import json
from collections.abc import Collection, Sequence

from data.dataset.buckets import Bucket, batch_sizes
from data.stream.loader import Subset
from launch.config import SYNTHETIC, ConfigError, RunConfig
from pipeline.distributed.config import taking_part
from pipeline.train.config import TrainConfig

STAGES = ("draw", "shard", "train autoencoder", "encode", "train dit", "sample", "evaluate")


def describe_plan(config: RunConfig, stages: tuple[str, ...]) -> str:
    """The stages, what each makes, and the sizes that follow from the configuration."""
    workers, choice = config.cluster.workers, config.data.choose_buckets
    drawn = SYNTHETIC in config.data.places.values()
    source = " and ".join(
        f"{config.data.synthetic.num_videos} drawn videos" if place == SYNTHETIC else place
        for place in config.data.places.values()
    )
    if choice is None:
        cut = f"clips of {describe_buckets(config.data.buckets)}"
    else:
        lengths = " or ".join(str(length) for length in choice.num_frames)
        cut = f"clips of {lengths} frames in up to {choice.max_aspects} aspect ratios, chosen from the videos"
    lines = {
        "draw": "draw the videos" if drawn else "nothing: the videos are there",
        "shard": f"{source} -> {cut}",
        "train autoencoder": _training(config, config.autoencoder.train),
        "encode": f"latents of {config.autoencoder.model.latent_channels} channels",
        "train dit": _training(config, config.dit.train),
        "sample": f"{config.sample.solver}, {config.sample.steps} steps, guidance {config.sample.guidance_scale:g}",
        "evaluate": "reconstruction, adherence, report",
    }
    plan = "\n".join(f"  {name:18} {lines[name]}" for name in STAGES if name in stages)
    each = f"{workers.cpus_per_worker} CPU, {workers.gpus_per_worker:g} GPU"
    where = config.cluster.address or "a Ray cluster of its own on this machine"
    return f"plan, in {config.run_dir}, on {where},\n{workers.num_workers} workers, each with {each}:\n{plan}"


def describe_buckets(buckets: Sequence[Bucket]) -> str:
    """Such as "17 frames, 64 x 64, 8 fps", for each."""
    return " and ".join(f"{b.num_frames} frames, {b.height} x {b.width}, {b.fps:g} fps" for b in buckets)


def describe_batches(subsets: Sequence[Subset], train: TrainConfig) -> list[str]:
    """What each bucket of a dataset holds, and its part of the training; nothing where there is one of weight 1.

    An epoch leaves no clip and repeats none but by its weight: batches go on across the ends of epochs.
    """
    if len(subsets) == 1:
        return []
    sizes = batch_sizes([subset.bucket for subset in subsets], train.global_batch, train.batch_multiple)
    steps = [subset.part().share / sizes[subset.bucket.name] for subset in subsets]
    return [
        f"  {subset.bucket.name:16} {subset.rows[0].dataset:12} {len(subset.rows):9,} clips, each {subset.weight:g} x "
        f"an epoch, {sizes[subset.bucket.name]:5} a batch, {share / sum(steps):6.1%} of the steps"
        for subset, share in zip(subsets, steps, strict=True)
    ]


def describe_elastic(name: str, fewest: int, most: int, fitting: Collection[int]) -> str:
    """How many workers take part where the cluster has between `fewest` and `most`.

    Raises:
        ConfigError: so few as are allowed cannot share every batch; names the nearest number that can.
    """
    if fewest not in fitting:
        nearest = min(fitting, key=lambda number: abs(number - fewest), default=most)
        raise ConfigError(
            f"cluster.workers.min_workers is {fewest}, but the batches of {name} do not divide over so many: "
            f"use {nearest}"
        )
    parts = []
    for number in range(fewest, most + 1):
        used = taking_part(number, fitting)
        parts.append(f"{number}" if used == number else f"{number} ({used} work, {number - used} wait)")
    return f"  elastic: {name} goes on with {', '.join(parts)} workers, whatever the cluster has room for"


def _training(config: RunConfig, train: TrainConfig) -> str:
    """How many steps, of how many clips and tokens."""
    if config.data.choose_buckets is not None:
        return f"{train.steps} steps of {train.global_batch} clips of the largest bucket, or as many tokens of another"
    patch = config.dit.model.patch_size
    tokens = {bucket.name: bucket.num_latents // patch**2 for bucket in config.data.buckets}
    sizes = batch_sizes(config.data.buckets, train.global_batch, train.batch_multiple)
    batches = [
        f"{size} clips of {tokens[name]} tokens" + (f" ({name})" if len(sizes) > 1 else "")
        for name, size in sizes.items()
    ]
    return f"{train.steps} steps of {' or '.join(batches)}"


def closing_summary(config: RunConfig) -> str:
    """Where everything is, and the figures."""
    figures = json.loads((config.run_dir / "report.json").read_text(encoding="utf-8"))
    autoencoder = figures["autoencoder"]
    lines = [f"autoencoder   {autoencoder['psnr_db']:.1f} dB on {autoencoder['num_clips']} clips never seen"]
    if "adherence" in figures:
        guided = figures["adherence"]
        rows = [(f"guidance {guided['guidance_scale']:g}", guided)]
        if "without_guidance" in guided:
            rows.append(("no guidance", guided["without_guidance"]))
        for name, row in rows:
            shares = "  ".join(f"{key} {100 * row[key]:.1f} %" for key in ("colour", "direction", "shape", "all"))
            lines.append(f"{name:13} {shares}  ({row['num_clips']} clips)")
    lines += [
        f"time          {figures['wall_seconds']['total'] / 60:.1f} min",
        f"memory        {figures['peak_rss_bytes'] / 2**30:.1f} GiB at most",
        f"clips         {config.run_dir / 'samples' / 'index.html'}",
        f"report        {config.run_dir / 'report.html'}",
    ]
    return "\n" + "\n".join(lines)
