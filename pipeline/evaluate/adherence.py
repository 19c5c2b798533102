"""Do the clips show what their prompts say? Judged on the drawn world, where it is known."""

from pathlib import Path

import ray

from data.dataset.buckets import Bucket
from data.synthetic import Combination, combinations, random_scene, render
from data.video.codec import decode_clip, encode_clip
from data.video.extract import read_spans
from pipeline.evaluate.judge import judge_clip
from pipeline.ingest.config import SyntheticConfig
from pipeline.report.figures import Share, count
from pipeline.run.progress import bar
from pipeline.sample.outputs import SampledClip


def judge_fresh_clip(index: int, seed: int, config: SyntheticConfig, bucket: Bucket, scratch: Path) -> dict[str, bool]:
    """Draw a clip nobody has seen, send it down the same road as any source, and judge what comes out."""
    scene = random_scene(seed, index, combinations())
    path = scratch / f"fresh-{index}.mp4"
    path.write_bytes(encode_clip(render(scene, round(config.seconds * config.fps), config.pixels), config.fps))
    span = read_spans(path, [bucket], 1)[0]
    path.unlink()
    return judge_clip(decode_clip(encode_clip(span.frames, bucket.fps))).agrees(scene.combination)


def validate_judge(num_clips: int, seed: int, config: SyntheticConfig, bucket: Bucket, scratch: Path) -> Share:
    """How often the judge is right where the truth is known. Runs on the connected Ray cluster."""
    scratch.mkdir(parents=True, exist_ok=True)
    task = ray.remote(judge_fresh_clip).options(num_cpus=1)
    fresh_seed = seed + 1_000_003  # another world than the training videos'
    tasks = [task.remote(index, fresh_seed, config, bucket, scratch.resolve()) for index in range(num_clips)]
    return count(_collect(tasks, "judge (fresh)"))


def judge_file(path: Path, wanted: Combination) -> dict[str, bool]:
    """Judge one sampled clip against what its prompt asked for."""
    return judge_clip(decode_clip(path.read_bytes())).agrees(wanted)


def measure_adherence(samples_dir: Path, clips: list[SampledClip]) -> tuple[dict[float, Share], dict[str, bool]]:
    """Adherence by guidance scale, and whether each clip (by file) was right in everything."""
    judged = [(clip, clip.request.expect) for clip in clips if clip.request.expect]
    task = ray.remote(judge_file).options(num_cpus=1)
    tasks = [task.remote((samples_dir / clip.file).resolve(), Combination(**wanted)) for clip, wanted in judged]
    verdicts = _collect(tasks, "judge")
    by_scale: dict[float, list[dict[str, bool]]] = {}
    for (clip, _), verdict in zip(judged, verdicts, strict=True):
        by_scale.setdefault(clip.request.guidance_scale, []).append(verdict)
    right = {clip.file: verdict["all"] for (clip, _), verdict in zip(judged, verdicts, strict=True)}
    return {scale: count(verdicts) for scale, verdicts in by_scale.items()}, right


def _collect(tasks: list, name: str) -> list[dict[str, bool]]:
    """Wait for tasks with a bar; results in the tasks' order."""
    waiting = tasks
    with bar(name, len(tasks), "clips") as progress:
        while waiting:
            _, waiting = ray.wait(waiting, timeout=1.0)
            progress.update(len(tasks) - len(waiting))
    return ray.get(tasks)
