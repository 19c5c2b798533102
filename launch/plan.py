"""What a run is going to do, and what it has done, in a few lines."""

import json
from collections.abc import Collection

from launch.config import RunConfig
from launch.stages import NAMES, stages_of


def describe_plan(config: RunConfig, names: Collection[str] = NAMES) -> str:
    """The stages, what each makes, and the sizes that follow from the configuration."""
    workers = config.cluster.workers
    plan = "\n".join(f"  {stage.name:18} {stage.describe()}" for stage in stages_of(config, names))
    each = f"{workers.cpus_per_worker} CPU, {workers.gpus_per_worker:g} GPU"
    where = config.cluster.address or "a Ray cluster of its own on this machine"
    place = f"{config.place}, which works in {config.run_dir}" if config.is_stored_run else config.run_dir
    return f"plan, in {place}, on {where},\n{workers.num_workers} workers, each with {each}:\n{plan}"


def closing_summary(config: RunConfig) -> str:
    """The figures of a finished run, and where its clips and its report are."""
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
        *([f"stored in     {config.place}"] if config.place else []),
    ]
    return "\n" + "\n".join(lines)
