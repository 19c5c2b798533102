"""The draw stage: synthetic source videos, as a folder of mp4 files with caption sidecars."""

from pathlib import Path

import numpy as np
import ray

from data.files.publish import publish_bytes, publish_text
from data.synthetic import Scene, random_scene, render, training_combinations
from data.synthetic_captions import varied_caption
from data.video.codec import encode_clip
from pipeline.distributed.actor_pool import results_of_tasks
from pipeline.ingest.config import SyntheticConfig
from pipeline.run.progress import bar
from pipeline.run.shared_files import SHARED, RunFiles

CLIPS_PER_TASK = 16


def video_path(output_dir: Path, index: int) -> Path:
    """Path of video number `index`; a folder contains 100 videos."""
    return output_dir / f"{index // 100:03d}" / f"shapes-{index:06d}.mp4"


def _caption(scene: Scene, config: SyntheticConfig, seed: int, index: int) -> str:
    """The caption of a video; a random stream of its own, so that the kind of captions changes no pixel."""
    if config.captions == "templates":
        return scene.caption
    return varied_caption(scene, np.random.default_rng([seed, index, 1]))


def draw(output_dir: Path, config: SyntheticConfig, seed: int, files: RunFiles, indices: range) -> int:
    """Draw the videos that do not exist yet. Runs in a worker.

    Returns:
        The number of indices.
    """
    allowed = training_combinations()
    paths = [video_path(output_dir, index) for index in indices]
    files.fetch(*paths)
    for index, path in zip(indices, paths, strict=True):
        if path.exists():
            continue
        scene = random_scene(seed, index, allowed)
        frames = render(scene, round(config.seconds * config.fps), config.pixels)
        publish_text(path.with_suffix(".txt"), _caption(scene, config, seed, index) + "\n")
        publish_bytes(path, encode_clip(frames, config.fps))
        files.publish(path.with_suffix(".txt"), record=path)
    return len(indices)


def make_videos(output_dir: Path, config: SyntheticConfig, seed: int, files: RunFiles = SHARED) -> int:
    """Run the stage on the connected Ray cluster and return the number of videos."""
    task = ray.remote(draw).options(num_cpus=1)
    batches = [
        range(at, min(at + CLIPS_PER_TASK, config.num_videos)) for at in range(0, config.num_videos, CLIPS_PER_TASK)
    ]
    num_done = 0
    with bar("draw", config.num_videos, "videos") as progress:
        for _, num_drawn in results_of_tasks(
            lambda indices: task.remote(output_dir.resolve(), config, seed, files, indices), batches
        ):
            num_done += num_drawn
            progress.update(num_done)
    return num_done
