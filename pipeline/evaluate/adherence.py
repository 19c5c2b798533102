"""Prompt adherence: whether sampled clips show what their prompts say, for prompts of the synthetic world."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from data.dataset.buckets import Bucket
from data.synthetic import Combination, combinations, random_scene, render
from data.video.codec import decode_clip, encode_clip
from data.video.extract import read_spans
from pipeline.distributed.actor_pool import results_of_tasks
from pipeline.evaluate.judge import judge_clip
from pipeline.evaluate.measure import Measured
from pipeline.ingest.config import SyntheticConfig
from pipeline.report.figures import ATTRIBUTES, Share, count
from pipeline.run.progress import bar

VALIDATION_SEED_OFFSET = 1_000_003  # so that the judge's clips are other scenes than the training videos


def judge_fresh_clip(index: int, seed: int, config: SyntheticConfig, bucket: Bucket, scratch: Path) -> dict[str, bool]:
    """Draw a scene, encode, cut and decode it as ingestion does, and judge the result.

    Returns:
        Whether the judge is right, by attribute and for `all` together.
    """
    scene = random_scene(seed, index, combinations())
    scratch.mkdir(parents=True, exist_ok=True)  # on this machine
    path = scratch / f"fresh-{index}.mp4"
    path.write_bytes(encode_clip(render(scene, round(config.seconds * config.fps), config.pixels), config.fps))
    span = read_spans(path, [bucket], 1)[0]
    path.unlink()
    return judge_clip(decode_clip(encode_clip(span.frames, bucket.fps))).agrees(scene.combination)


def validate_judge(num_clips: int, seed: int, config: SyntheticConfig, bucket: Bucket, scratch: Path) -> Share:
    """How often the judge is right about scenes that are known, on the connected Ray cluster.

    Args:
        scratch: a folder for temporary videos; created if need be.
    """
    task = ray.remote(judge_fresh_clip).options(num_cpus=1)
    fresh_seed = seed + VALIDATION_SEED_OFFSET
    return count(
        _judge_all(
            "judge (fresh)",
            lambda index: task.remote(index, fresh_seed, config, bucket, scratch.resolve()),
            num_clips,
        )
    )


def judge_file(path: Path, expected: Combination) -> dict[str, bool]:
    """Whether a clip shows what is expected, by attribute and for `all` together."""
    return judge_clip(decode_clip(path.read_bytes())).agrees(expected)


def adherence_of(measured: Measured) -> Share | None:
    """How often each attribute was right, of the clips that were judged; None where none was."""
    judged = measured.right[~np.isnan(measured.right).any(1)]
    verdicts = [{str(name): bool(right) for name, right in zip(ATTRIBUTES, row, strict=True)} for row in judged]
    return count(verdicts) if verdicts else None


def _judge_all(name: str, submit: Callable[[int], Any], num_clips: int) -> list[dict[str, bool]]:
    """Run one task per clip, under a progress bar.

    Returns:
        The verdicts, in the order of the clips.
    """
    verdicts: dict[int, dict[str, bool]] = {}
    with bar(name, num_clips, "clips") as progress:
        for index, verdict in results_of_tasks(submit, range(num_clips)):
            verdicts[index] = verdict
            progress.update(len(verdicts))
    return [verdicts[index] for index in range(num_clips)]
