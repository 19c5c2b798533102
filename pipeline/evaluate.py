"""Stage 6: how good is it? Reconstruction of clips never seen, validity of the judge, prompt adherence."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from pydantic import BaseModel, ConfigDict, Field

from data.buckets import Bucket
from data.shards import IndexRow, PayloadReader, read_index
from data.synthetic import Combination, combinations, random_scene, render
from data.video import Frames, decode_clip, encode_clip, read_spans
from models.autoencoder import psnr_db, squared_error
from pipeline.chunks import pixel_chunks, reconstructed
from pipeline.judge import judge_clip
from pipeline.progress import bar
from pipeline.sample import SampledClip
from pipeline.synthesize import SyntheticConfig
from pipeline.train import autocast
from pipeline.train_autoencoder import load_autoencoder, to_frames

ATTRIBUTES = ("colour", "direction", "shape", "all")


class EvaluateConfig(BaseModel):
    """What is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_reconstructions: int = Field(default=64, ge=1)  # held-out clips the autoencoder's figure is averaged over
    judge_clips: int = Field(default=192, ge=1)  # freshly drawn clips the judge is validated on
    prompts_per_combination: int = Field(default=6, ge=1)  # held-out combinations of the demo


class Share(BaseModel):
    """How often each attribute was right."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_clips: int
    right: dict[str, int]

    def share(self, attribute: str) -> float:
        """Right clips over all clips."""
        return self.right[attribute] / self.num_clips


class Reconstructions(BaseModel):
    """The autoencoder on clips it never saw."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_clips: int
    psnr_db: float  # mean over clips
    psnr_db_min: float


@dataclass(frozen=True)
class Shown:
    """A clip and what the autoencoder makes of it."""

    caption: str
    fps: float
    original: Frames
    reconstruction: Frames


def count(verdicts: list[dict[str, bool]]) -> Share:
    """Add up verdicts."""
    return Share(num_clips=len(verdicts), right={name: sum(v[name] for v in verdicts) for name in ATTRIBUTES})


def held_out_rows(dataset_dir: Path, limit: int) -> list[IndexRow]:
    """Clips of the validation split, or of the training split of a dataset too small to have one."""
    rows = read_index(dataset_dir, "validation") or read_index(dataset_dir)
    return list(rows[:limit])


def measure_reconstruction(
    clips_dir: Path, autoencoder_path: Path, limit: int, num_shown: int
) -> tuple[Reconstructions, list[Shown]]:
    """PSNR on held-out clips, and a few of them to look at."""
    network = load_autoencoder(autoencoder_path)
    rows = held_out_rows(clips_dir, limit)
    reader = PayloadReader(clips_dir)
    values, shown = [], []
    with bar("reconstruct", len(rows), "clips") as progress, torch.inference_mode():
        for number, row in enumerate(rows, 1):
            content, errors, frames = reader.read(row), 0.0, []
            with autocast("auto", torch.device("cpu")):
                for pixels, reconstruction in reconstructed(network, pixel_chunks([content], row.num_frames)):
                    errors += pixels.shape[2] * float(squared_error(pixels, reconstruction))
                    if len(shown) < num_shown:
                        frames.append(to_frames(reconstruction[0]))
            values.append(float(psnr_db(torch.tensor(errors / row.num_frames))))
            if frames:
                shown.append(Shown(row.caption, row.fps, decode_clip(content), np.concatenate(frames)))
            progress.update(number)
    reader.close()
    result = Reconstructions(num_clips=len(values), psnr_db=float(np.mean(values)), psnr_db_min=min(values))
    return result, shown


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
