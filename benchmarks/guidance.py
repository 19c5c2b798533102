"""Guidance rules at small and large scales, and solvers at few calls: what clips show, and how they look.

    python -m benchmarks.guidance runs/demo/dit --sheets sheets

Each row samples the same prompts from the same noise. `right` are the shares of clips that show what the prompt says.
The others are ratios to drawn scenes of these prompts after the autoencoder: the area of the shape, its luma and
saturation, the luma of the whole frame and the deviation of the background. 1 is training; a shape that grows, darkens
or becomes gaudy is what a rule does to it.
"""

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.records import Frames
from data.synthetic import held_out_combinations, random_scene, render
from pipeline.encode.chunks import decode_clips, encode_pixels
from pipeline.encode.codec import to_pixels
from pipeline.evaluate.judge import MIN_SATURATION, judge_clip
from pipeline.report.contact_sheet import SheetClip, SheetLayout, contact_sheet
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler

RESULT = Path(__file__).parent / "results" / "guidance.json"
NUM_CLIPS, SHOWN, SEED = 16, (0, 5, 9, 14), 779
SCALES = (3.0, 6.0, 12.0)
BASE = SampleConfig(solver="heun", steps=12, shift=3.0, precision="auto")
LUMA = np.array([0.299, 0.587, 0.114])
PROPERTIES = ("area", "shape_luma", "shape_saturation", "luma", "background_deviation")


def rows() -> dict[str, dict[str, Any]]:
    """What is sampled, by name: settings beside `BASE`."""
    found: dict[str, dict[str, Any]] = {"no guidance": {"guidance_scale": 1.0}}
    for scale in SCALES:
        for rule in ("plain", "cfg-zero-star", "rescaled", "apg"):
            found[f"{rule} {scale:g}"] = {"guidance": rule, "guidance_scale": scale}
        found[f"plain {scale:g} in 0.2 to 0.9"] = {"guidance_scale": scale, "guidance_interval": (0.2, 0.9)}
    for calls in (4, 8, 12):
        for solver in ("euler", "ab2", "dpmpp_2m", "unipc", "ddim", "heun", "midpoint"):
            steps = calls // 2 if solver in ("heun", "midpoint") else calls
            found[f"{solver} {calls} calls"] = {"solver": solver, "steps": steps, "guidance_scale": 3.0}
    return found


def properties(frames: Frames) -> list[float]:
    """`PROPERTIES` of a clip, in shares and levels; NaN where there is no shape."""
    levels = frames.astype(np.float64)
    luma, saturation = levels @ LUMA, levels.max(-1) - levels.min(-1)
    shape = saturation > MIN_SATURATION
    inside = [luma[shape].mean(), saturation[shape].mean()] if shape.any() else [np.nan, np.nan]
    return [shape.mean(), *inside, luma.mean(), luma[~shape].std()]


def drawn(sampler: ClipSampler, size: int) -> np.ndarray:
    """The mean properties of drawn scenes after the autoencoder."""
    (bucket, *_) = sampler.model.trained_buckets
    scenes = [random_scene(SEED, number, held_out_combinations()) for number in range(size)]
    pixels = torch.stack([to_pixels(render(scene, bucket.num_frames, bucket.height)) for scene in scenes])
    with torch.inference_mode():
        clips = decode_clips(sampler.autoencoder, encode_pixels(sampler.autoencoder, pixels))
    return np.array([properties(clip) for clip in clips]).mean(0)


def sampled(sampler: ClipSampler, settings: dict[str, Any]) -> tuple[list[Frames], int]:
    """Clips of the prompts with these settings, and the calls of the network."""
    config = BASE.model_copy(update=settings)
    (bucket, *_) = sampler.model.trained_buckets
    requests = [
        PromptRequest(
            id=f"{number:012}",
            prompt=f"a {wanted.colour} {wanted.shape} moves {wanted.direction}",
            seed=number,
            guidance_scale=config.guidance_scale,
            bucket=bucket.name,
            settings=config,
        )
        for number, wanted in enumerate(held_out_combinations()[:NUM_CLIPS])
    ]
    return sampler.sample(requests)


def figures(clips: Sequence[Frames], like: np.ndarray) -> dict[str, Any]:
    """How many clips are right, and their properties beside those of drawn scenes."""
    judged = [judge_clip(c).agrees(w) for c, w in zip(clips, held_out_combinations(), strict=False)]
    right = {name: round(float(np.mean([each[name] for each in judged])), 3) for name in judged[0]}
    ratios = np.nanmean([properties(clip) for clip in clips], 0) / like
    return {"right": right} | {name: round(float(x), 3) for name, x in zip(PROPERTIES, ratios, strict=True)}


def main() -> None:
    """Measure the rows whose names are given or contain one of the words given, or all."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the training")
    parser.add_argument("--sheets", type=Path, help="folder for a contact sheet")
    parser.add_argument("--only", nargs="*", default=[""], help="words of the names of rows")
    parser.add_argument("--exact", nargs="*", help="names of rows")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sampler = ClipSampler(open_model(asked.folder), BASE, torch.device("cpu"))
    like, cells = drawn(sampler, 32), []
    for name, settings in rows().items():
        if (name not in asked.exact) if asked.exact else not any(word in name for word in asked.only):
            continue
        clips, calls = sampled(sampler, settings)
        found = {"network_calls": calls, **figures(clips, like)}
        sys.stdout.write(f"{name:34} {json.dumps(found)}\n")
        sys.stdout.flush()
        before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"rows": {}}
        kept = {"model": str(sampler.model).rpartition("/")[2], "num_clips": NUM_CLIPS}
        RESULT.write_text(json.dumps(kept | {"rows": before["rows"] | {name: found}}, indent=1) + "\n")
        cells += [SheetClip(clips[number], name) for number in SHOWN]
        if asked.sheets is not None:
            asked.sheets.mkdir(parents=True, exist_ok=True)
            label = "_".join(asked.exact or [word for word in asked.only if word]) or "all"
            (asked.sheets / f"{label}.png").write_bytes(contact_sheet(cells, SheetLayout(2, len(SHOWN))))


if __name__ == "__main__":
    main()
