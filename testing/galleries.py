"""Large folders of sampled clips."""

from hashlib import sha256
from pathlib import Path

from data.video.codec import encode_clip
from pipeline.sample.config import SampleConfig
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.requests import PromptRequest
from testing.clips import moving_shapes

SIDE, NUM_FRAMES, FPS = 32, 9, 8
BUCKET = f"{NUM_FRAMES}x{SIDE}x{SIDE}@{FPS}"
WORDS = ("red", "green", "blue", "yellow"), ("circle", "square", "star"), ("left", "right", "up", "down")


def write_many_samples(folder: Path, number: int, *, steps: tuple[int, ...] = (4, 8)) -> Path:
    """A samples folder of `number` clips whose files are copies of four, each with its own prompt and seed."""
    folder.mkdir(parents=True)
    contents = [encode_clip(moving_shapes(NUM_FRAMES, SIDE, kind), FPS) for kind in range(4)]
    originals = [folder / f".clip-{kind}" for kind in range(len(contents))]
    for path, content in zip(originals, contents, strict=True):
        path.write_bytes(content)
    with (folder / SAMPLES_NAME).open("w", encoding="utf-8") as file:
        for place in range(number):
            clip = _sampled(place, steps[place % len(steps)], contents[place % len(contents)])
            (folder / clip.file).hardlink_to(originals[place % len(contents)])
            file.write(clip.model_dump_json() + "\n")
    return folder


def _sampled(place: int, steps: int, content: bytes) -> SampledClip:
    colours, shapes, directions = WORDS
    colour, shape = colours[place % len(colours)], shapes[place // 4 % len(shapes)]
    request = PromptRequest(
        id=f"{place:012x}",
        prompt=f"a {colour} {shape} moves {directions[place // 12 % len(directions)]}, number {place}",
        seed=place * 7919 % 10007,
        guidance_scale=1.0 + 2.0 * (place % 2),
        bucket=BUCKET,
        settings=SampleConfig(steps=steps),
    )
    return SampledClip(
        file=request.file_name,
        request=request,
        num_network_calls=2 * steps,
        sha256=sha256(content).hexdigest(),
        model="0123456789abcdef",
    )
