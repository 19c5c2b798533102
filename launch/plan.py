"""What a run is going to do, and what it has done, in a few lines."""

import json

from launch.config import SYNTHETIC, RunConfig
from models.autoencoder import latent_shape

STAGES = ("draw", "shard", "train autoencoder", "encode", "train dit", "sample", "evaluate")


def describe_plan(config: RunConfig, stages: tuple[str, ...]) -> str:
    """The stages, what each makes, and the sizes that follow from the configuration."""
    bucket, workers = config.data.bucket, config.cluster.workers
    shape = latent_shape(config.autoencoder.model, bucket.num_frames, bucket.height, bucket.width)
    patch = config.dit.model.patch_size
    num_tokens = shape[1] * (shape[2] // patch) * (shape[3] // patch)
    source = (
        f"{config.data.synthetic.num_videos} drawn videos" if config.data.source == SYNTHETIC else config.data.source
    )
    shape_of_clips = f"{bucket.num_frames} frames, {bucket.height} x {bucket.width}, {bucket.fps:g} fps"
    lines = {
        "draw": "draw the videos" if config.data.source == SYNTHETIC else "nothing: the videos are there",
        "shard": f"{source} -> clips of {shape_of_clips}",
        "train autoencoder": f"{config.autoencoder.train.steps} steps of {config.autoencoder.train.global_batch} clips",
        "encode": f"latents of (c, t, h, w) = {shape}",
        "train dit": f"{config.dit.train.steps} steps of {config.dit.train.global_batch} clips of {num_tokens} tokens",
        "sample": f"{config.sample.solver}, {config.sample.steps} steps, guidance {config.sample.guidance_scale:g}",
        "evaluate": "reconstruction, adherence, report",
    }
    plan = "\n".join(f"  {name:18} {lines[name]}" for name in STAGES if name in stages)
    each = f"{workers.cpus_per_worker} CPU, {workers.gpus_per_worker:g} GPU"
    where = config.cluster.address or "a Ray cluster of its own on this machine"
    return f"plan, in {config.run_dir}, on {where},\n{workers.num_workers} workers, each with {each}:\n{plan}"


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
        f"report        {(config.run_dir / 'report.html').resolve()}",
    ]
    return "\n" + "\n".join(lines)
