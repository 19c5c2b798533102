"""Clips that start from pictures of scenes that training never showed: how the picture is kept and the prompt obeyed.

cp -r runs/demo runs/images && rm -r runs/images/dit
python -m launch train dit runs/images/config.yaml --set name=images --set dit.train.start_from=runs/demo/dit \
    --set dit.flow.first_frame_share=0.5 --set dit.train.steps=400 --set dit.train.learning_rate=0.001
python -m benchmarks.image_to_video runs/images/dit

Prompts, noise and judge are the same with and without the pictures. The first frame can be no better than what the
autoencoder makes of the picture alone, which is measured beside it.
"""

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.files.checksums import file_sha256
from data.records import Frames
from data.synthetic import Scene, held_out_combinations, random_scene, render
from pipeline.encode.chunks import decode_clips, encode_pixels
from pipeline.encode.codec import to_pixels
from pipeline.evaluate.judge import judge_clip
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import open_model
from pipeline.sample.requests import ImageFile, PromptRequest
from pipeline.sample.sampler import ClipSampler

RESULT = Path(__file__).parent / "results" / "image_to_video.json"
NUM_CLIPS, BATCH, SEED = 48, 12, 777
SETTINGS = SampleConfig(solver="heun", steps=12, shift=3.0, guidance_scale=3.0, precision="fp32")


def request_of(number: int, scene: Scene, bucket: str, picture: Frames, folder: Path, *, given: bool) -> PromptRequest:
    """A clip that shows what the scene shows, and starts with the picture if that is given."""
    path = folder / f"{number}.png"
    Image.fromarray(picture[0]).save(path)
    wanted = scene.combination
    return PromptRequest(
        id=f"{number:012}",
        prompt=f"a {wanted.colour} {wanted.shape} moves {wanted.direction}",
        seed=number,
        guidance_scale=SETTINGS.guidance_scale,
        bucket=bucket,
        image=ImageFile(path=str(path), sha256=file_sha256(path)) if given else None,
    )


def figures_of(clips: Sequence[Frames], scenes: Sequence[Scene], pictures: Sequence[Frames]) -> dict[str, object]:
    """How close first frames are to the pictures, in dB, and how many clips show what their prompts say."""
    right: Counter[str] = Counter()
    for clip, scene in zip(clips, scenes, strict=True):
        right.update({name: int(value) for name, value in judge_clip(clip).agrees(scene.combination).items()})
    return {"first_frame_psnr_db": psnr([clip[:1] for clip in clips], pictures), "right": dict(right)}


def psnr(shown: Sequence[Frames], pictures: Sequence[Frames]) -> dict[str, float]:
    """The mean and the least of all pictures."""
    errors = [np.square(a.astype(float) - b).mean() for a, b in zip(shown, pictures, strict=True)]
    each = 10 * np.log10(255**2 / np.array(errors))
    return {"mean": round(float(each.mean()), 2), "least": round(float(each.min()), 2)}


def main() -> None:
    """Measure, print and write."""
    model = open_model(Path(sys.argv[1]))
    bucket = model.trained_buckets[0]
    sampler = ClipSampler(model, SETTINGS, torch.device("cpu"))
    scenes = [random_scene(SEED, number, held_out_combinations()) for number in range(NUM_CLIPS)]
    pictures = [render(scene, bucket.num_frames, bucket.height)[:1] for scene in scenes]
    pixels = torch.stack([to_pixels(picture) for picture in pictures])
    alone = decode_clips(sampler.autoencoder, encode_pixels(sampler.autoencoder, pixels))
    figures: dict[str, object] = {"num_clips": NUM_CLIPS, "autoencoder_psnr_db": psnr(alone, pictures)}
    with tempfile.TemporaryDirectory(prefix="reelflow-") as folder:
        for label, given in (("with_image", True), ("without_image", False)):
            requests = [
                request_of(number, scene, bucket.name, picture, Path(folder), given=given)
                for number, (scene, picture) in enumerate(zip(scenes, pictures, strict=True))
            ]
            clips: list[Frames] = []
            for first in range(0, NUM_CLIPS, BATCH):
                clips += sampler.sample(requests[first : first + BATCH])[0]
            figures[label] = figures_of(clips, scenes, pictures)
            sys.stdout.write(f"{label}: {figures[label]}\n")
    RESULT.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
