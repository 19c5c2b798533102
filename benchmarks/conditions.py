"""Clips made around given frames, and clips longer than those of training, on scenes that training never showed.

cp -r runs/demo runs/given && rm -r runs/given/dit
python -m launch train dit runs/given/config.yaml --set name=given --set dit.flow.first_frame_share=0.2 \
    --set "dit.flow.given={prefix: 0.2, ends: 0.2, subset: 0.2}"
python -m benchmarks.conditions runs/given/dit

What is given is compared with what is shown, beside what the autoencoder alone makes of it; the judge sees only frames
that were made. Seams are the frames that two windows share, and one more at each side.
"""

import json
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.image_to_video import SETTINGS, psnr
from data.files.checksums import file_sha256
from data.records import Frames
from data.synthetic import Scene, held_out_combinations, random_scene, render
from data.video.codec import encode_clip
from models.flow.beginning import Beginning
from models.networks.protocol import Conditions
from pipeline.encode.chunks import decode_clips, encode_pixels
from pipeline.encode.codec import to_frames, to_pixels
from pipeline.encode.statistics import denormalize
from pipeline.evaluate.judge import judge_clip
from pipeline.sample.clips import read_frames
from pipeline.sample.given import Given, ImageFile, LaterPrompt
from pipeline.sample.latents import PromptSeed, sample_latents
from pipeline.sample.model import open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler

RESULT = Path(__file__).parent / "results" / "conditions.json"
NUM_CLIPS, NUM_LONG, SEED = 24, 6, 778
LONG, CONTEXT = 65, 9
LENGTHS = (17, 65, 129, 257)
BACK = {"left": "right", "right": "left", "up": "down", "down": "up"}


class Scenes:
    """Scenes as files: a clip, its beginning, its end, and its first and last frames as pictures."""

    def __init__(self, folder: Path, sampler: ClipSampler) -> None:
        self.folder, self.sampler = folder, sampler
        (self.bucket, *_) = sampler.model.trained_buckets
        self.scenes = [random_scene(SEED, number, held_out_combinations()) for number in range(NUM_CLIPS)]
        self.clips = [render(scene, self.bucket.num_frames, self.bucket.height) for scene in self.scenes]

    def picture(self, number: int, at: int) -> ImageFile:
        """A frame of a scene as a file."""
        path = self.folder / f"{number}-{at}.png"
        Image.fromarray(self.clips[number][at]).save(path)
        return ImageFile(path=str(path), sha256=file_sha256(path))

    def clip(self, number: int, begin: int, end: int) -> ImageFile:
        """A part of a scene as a video."""
        path = self.folder / f"{number}-{begin}-{end}.mp4"
        path.write_bytes(encode_clip(self.clips[number][begin:end], self.bucket.fps, crf=4))
        return ImageFile(path=str(path), sha256=file_sha256(path))

    def request(self, number: int, image: ImageFile | None = None, given: Given | None = None) -> PromptRequest:
        """A clip that shows what the scene shows."""
        return PromptRequest(
            id=f"{number:012}",
            prompt=prompt_of(self.scenes[number]),
            seed=number,
            guidance_scale=SETTINGS.guidance_scale,
            bucket=self.bucket.name,
            image=image,
            given=given,
        )

    def alone(self, frames: Sequence[Frames]) -> list[Frames]:
        """What the autoencoder makes of frames by themselves."""
        network = self.sampler.autoencoder
        return decode_clips(network, encode_pixels(network, torch.stack([to_pixels(part) for part in frames])))

    def shown(self, frames: Sequence[Frames], parts: Sequence[Frames]) -> dict[str, object]:
        """How close what is shown of given frames is to them, in dB, and what the autoencoder makes of them alone."""
        return {"shown_psnr_db": psnr(parts, frames), "autoencoder_psnr_db": psnr(self.alone(frames), frames)}

    def made(self, requests: Sequence[PromptRequest]) -> list[Frames]:
        """The clips of requests."""
        return self.sampler.sample(requests)[0]

    def right(self, clips: Sequence[Frames]) -> dict[str, int]:
        """How many clips show what their prompts say."""
        right: Counter[str] = Counter()
        for clip, scene in zip(clips, self.scenes, strict=False):
            right.update({name: int(value) for name, value in judge_clip(clip).agrees(scene.combination).items()})
        return dict(right)


def prompt_of(scene: Scene, direction: str | None = None) -> str:
    """The prompt of a scene, or of one that moves elsewhere."""
    wanted = scene.combination
    return f"a {wanted.colour} {wanted.shape} moves {direction or wanted.direction}"


Measured = tuple[dict[str, object], list[Frames]]


def first_frame(scenes: Scenes) -> Measured:
    """Image to video."""
    clips = scenes.made([scenes.request(n, image=scenes.picture(n, 0)) for n in range(NUM_CLIPS)])
    figures = scenes.shown([clip[:1] for clip in scenes.clips], [clip[:1] for clip in clips])
    return figures | {"right": scenes.right(clips)}, clips


def extension(scenes: Scenes, context: int) -> Measured:
    """From the last frames of a clip; the judge sees the frames after them."""
    given = [Given(clip=scenes.clip(n, 0, CONTEXT), context=context) for n in range(NUM_CLIPS)]
    read = [read_frames(each.clip, scenes.bucket, context, at_end=True) for each in given if each.clip]
    clips = scenes.made([scenes.request(number, given=each) for number, each in enumerate(given)])
    figures = scenes.shown(read, [clip[:context] for clip in clips])
    return figures | {"right": scenes.right([clip[context:] for clip in clips])}, clips


def between_images(scenes: Scenes) -> Measured:
    """Interpolation between the first and the last frame of a scene."""
    last = scenes.bucket.num_frames - 1
    given = [Given(last_image=scenes.picture(number, last)) for number in range(NUM_CLIPS)]
    requests = [scenes.request(n, image=scenes.picture(n, 0), given=each) for n, each in enumerate(given)]
    clips, ends = scenes.made(requests), [clip[-1:] for clip in scenes.clips]
    figures = scenes.shown([clip[:1] for clip in scenes.clips], [clip[:1] for clip in clips])
    figures["last_frame"] = scenes.shown(ends, [clip[-1:] for clip in clips])
    figures["last_four_frames_psnr_db"] = psnr([clip[-4:] for clip in clips], [np.repeat(end, 4, 0) for end in ends])
    return figures | {"right": scenes.right([clip[1:-4] for clip in clips])}, clips


def between_clips(scenes: Scenes) -> Measured:
    """Interpolation between the first and the last five frames of a scene, of which the last four are shown."""
    last = scenes.bucket.num_frames
    given = [
        Given(clip=scenes.clip(n, 0, 5), last_clip=scenes.clip(n, last - 5, last), context=5) for n in range(NUM_CLIPS)
    ]
    clips = scenes.made([scenes.request(number, given=each) for number, each in enumerate(given)])
    figures = scenes.shown([clip[:5] for clip in scenes.clips], [clip[:5] for clip in clips])
    ends, whole = [clip[-4:] for clip in scenes.clips], scenes.alone(scenes.clips)
    figures["last_four_frames"] = {
        "shown_psnr_db": psnr([clip[-4:] for clip in clips], ends),
        "autoencoder_psnr_db": psnr([clip[-4:] for clip in whole], ends),
    }
    return figures | {"right": scenes.right([clip[5:-4] for clip in clips])}, clips


def to_last_image(scenes: Scenes) -> Measured:
    """The last frame alone."""
    last = scenes.bucket.num_frames - 1
    given = [Given(last_image=scenes.picture(number, last)) for number in range(NUM_CLIPS)]
    clips = scenes.made([scenes.request(number, given=each) for number, each in enumerate(given)])
    figures = scenes.shown([clip[-1:] for clip in scenes.clips], [clip[-1:] for clip in clips])
    return figures | {"right": scenes.right([clip[:-4] for clip in clips])}, clips


def varied(scenes: Scenes, strength: float) -> Measured:
    """From the clip of another scene."""
    last = scenes.bucket.num_frames
    given = [Given(source=scenes.clip((n + 1) % NUM_CLIPS, 0, last), strength=strength) for n in range(NUM_CLIPS)]
    clips = scenes.made([scenes.request(number, given=each) for number, each in enumerate(given)])
    sources = [scenes.clips[(number + 1) % NUM_CLIPS] for number in range(NUM_CLIPS)]
    return {"source_psnr_db": psnr(clips, sources), "right": scenes.right(clips)}, clips


def painted(scenes: Scenes) -> Measured:
    """The right half of another scene made anew, by the biased fallback."""
    last, path = scenes.bucket.num_frames, scenes.folder / "right.png"
    mask = np.zeros((scenes.bucket.height, scenes.bucket.width), np.uint8)
    mask[:, mask.shape[1] // 2 :] = 255
    Image.fromarray(mask).save(path)
    file, half = ImageFile(path=str(path), sha256=file_sha256(path)), mask.shape[1] // 2
    given = [Given(source=scenes.clip(n, 0, last), mask=file) for n in range(NUM_CLIPS)]
    clips = scenes.made([scenes.request(number, given=each) for number, each in enumerate(given)])
    kept: dict[str, object] = {
        "kept_psnr_db": psnr([clip[:, :, : half - 8] for clip in clips], [c[:, :, : half - 8] for c in scenes.clips]),
        "autoencoder_psnr_db": psnr(
            [clip[:, :, : half - 8] for clip in scenes.alone(scenes.clips)],
            [clip[:, :, : half - 8] for clip in scenes.clips],
        ),
    }
    return kept | {"right": scenes.right(clips)}, clips


WAYS: dict[str, Callable[[Scenes], Measured]] = {
    "first_frame": first_frame,
    "extension_by_5_frames": partial(extension, context=5),
    "extension_by_9_frames": partial(extension, context=CONTEXT),
    "between_images": between_images,
    "between_clips": between_clips,
    "to_a_last_image": to_last_image,
    "varied_0.3": partial(varied, strength=0.3),
    "varied_0.6": partial(varied, strength=0.6),
    "varied_0.8": partial(varied, strength=0.8),
    "painted": painted,
}


def jumps(clips: Sequence[Frames]) -> np.ndarray:
    """Of each frame but the first and last, how far its luma is from the mean of its neighbours', over all clips."""
    luma = np.stack([clip @ np.array([0.299, 0.587, 0.114]) for clip in clips])
    return np.abs(luma[:, 1:-1] - (luma[:, :-2] + luma[:, 2:]) / 2).mean((0, 2, 3))


def seams(num_frames: int, bounds: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Which frames are near a seam and which are not, as `jumps` counts them."""
    near = np.zeros(num_frames, bool)
    for begin, end in bounds:
        near[max(0, begin - 1) : end + 1] = True
    return {"near": near[1:-1], "elsewhere": ~near[1:-1]}


def figures_of_seams(clips: Sequence[Frames], bounds: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Flicker near seams and elsewhere, and the worst frame near one, in levels of 8 bits.

    Four frames are decoded from a latent frame, and the last and first of them differ most, at a seam and elsewhere:
    the ratio of equal places compares each frame near a seam with those elsewhere that have its place among the four.
    """
    found, where = jumps(clips), seams(len(clips[0]), bounds)
    near, elsewhere = found[where["near"]], found[where["elsewhere"]]
    place = np.arange(len(found)) % 4
    of_place = np.array([found[where["elsewhere"] & (place == each)].mean() for each in range(4)])
    return {
        "ratio_of_equal_places": round(float(near.mean() / of_place[place[where["near"]]].mean()), 3),
        "near": round(float(near.mean()), 4),
        "elsewhere": round(float(elsewhere.mean()), 4),
        "ratio": round(float(near.mean() / elsewhere.mean()), 3),
        "worst_near": round(float(near.max()), 4),
        "worst_elsewhere": round(float(elsewhere.max()), 4),
    }


def sharpness(clips: Sequence[Frames]) -> float:
    """Mean absolute difference of neighbouring pixels, in levels: what a drift to blur lowers."""
    return round(float(np.mean([np.abs(np.diff(clip.astype(float), axis=2)).mean() for clip in clips])), 3)


def drift(clips: Sequence[Frames], scenes: Scenes) -> dict[str, object]:
    """The first and the last 17 frames: sharpness, light, and whether colour and shape are still right."""
    n = scenes.bucket.num_frames
    parts = {"first": [clip[:n] for clip in clips], "last": [clip[-n:] for clip in clips]}
    return {
        name: {
            "sharpness": sharpness(part),
            "light": round(float(np.mean([clip.mean() for clip in part])), 2),
            "right": {key: value for key, value in scenes.right(part).items() if key in ("colour", "shape")},
        }
        for name, part in parts.items()
    }


def later(scene: Scene, seconds: Sequence[float]) -> tuple[LaterPrompt, ...]:
    """Back and forth, so that shapes stay in the picture."""
    there = scene.combination.direction
    ways = [BACK[there], there] * len(seconds)
    return tuple(LaterPrompt(seconds=s, prompt=prompt_of(scene, way)) for s, way in zip(seconds, ways, strict=False))


def windows(scenes: Scenes, overlap: int, *, turning: bool = False) -> Measured:
    """Clips of 65 frames with that overlap: seams, drift.

    Args:
        turning: each window is asked to move the other way, which is motion that changes at a seam.
    """
    config = SETTINGS.model_copy(update={"window_overlap": overlap})
    sampler = ClipSampler(scenes.sampler.model, config, torch.device("cpu"))
    shape = sampler.shape(scenes.request(0))
    plan = shape.windows(Given(total_frames=LONG))
    seconds = [window.first_new_seconds(shape.compression, scenes.bucket.fps) for window in plan[1:]]
    requests = []
    for number in range(NUM_LONG):
        prompts = later(scenes.scenes[number], seconds) if turning else None
        given = Given(total_frames=LONG, later_prompts=prompts)
        requests.append(scenes.request(number, given=given))
    clips, _ = sampler.sample(requests)
    bounds = []
    for window in plan[1:]:
        begin = 4 * window.first_latent
        bounds.append((begin, begin + shape.compression.num_frames(window.num_shared)))
    return {"windows": len(plan), "seams": figures_of_seams(clips, bounds), "drift": drift(clips, scenes)}, clips


def drawn_turns(scenes: Scenes) -> Measured:
    """Drawn clips that turn where those of `windows_turning` should: the flicker that a turn has without a seam."""
    last, new, place = scenes.bucket.num_frames - 1, scenes.bucket.num_frames - 5, np.arange(LONG)
    beyond = (place - last) % (2 * new)  # there and back
    path = np.where(place <= last, place, last - np.minimum(beyond, 2 * new - beyond))
    clips = [clip[path] for clip in scenes.clips[:NUM_LONG]]
    bounds = [(begin, begin + 5) for begin in range(new, LONG - 5, new)]
    return {"windows": len(bounds) + 1, "seams": figures_of_seams(clips, bounds)}, clips


@torch.inference_mode()
def windows_in_place(scenes: Scenes, overlap: int) -> Measured:
    """As `windows`, where latents stay as they are and one decoder goes through all of them, with its cache."""
    sampler, bucket = scenes.sampler, scenes.bucket
    config = SETTINGS.model_copy(update={"window_overlap": overlap})
    shape = ClipSampler(sampler.model, config, torch.device("cpu")).shape(scenes.request(0))
    plan = shape.windows(Given(total_frames=LONG))
    size = sampler.autoencoder.config.latent_shape(bucket.num_frames, bucket.height, bucket.width)
    prompts = [PromptSeed(prompt_of(scenes.scenes[number]), number) for number in range(NUM_LONG)]
    whole = torch.zeros(NUM_LONG, size[0], shape.compression.num_latent_frames(LONG), *size[2:])
    for window in plan:
        part = whole[:, :, window.first_latent :][:, :, : size[1]]
        times = (torch.arange(size[1]) < window.num_shared).double()
        beginning = None if window.is_first else Beginning(part.clone(), times)
        known = None if beginning is None else beginning.known
        latents = sample_latents(
            sampler.network.given(Conditions(torch.tensor([bucket.fps]), known)),
            sampler.model.flow,
            SETTINGS,
            prompts,
            guidance_scale=SETTINGS.guidance_scale,
            shape=size,
            read_captions=sampler.read_captions,
            device=torch.device("cpu"),
            beginning=beginning,
            window=window.number,
        )
        part.copy_(latents)
    latents = denormalize(whole, sampler.model.stats)
    pixels = torch.cat(list(sampler.autoencoder.decode_latents(latents.split(4, dim=2))), dim=2)
    clips = [to_frames(clip) for clip in pixels]
    begins = [4 * (window.first_latent + window.num_shared) - 3 for window in plan[1:]]
    bounds = [(begin, begin) for begin in begins]
    return {"windows": len(plan), "seams": figures_of_seams(clips, bounds), "drift": drift(clips, scenes)}, clips


MEMORY = """
import resource, sys, torch
from pathlib import Path
from data.video.codec import ClipEncoder
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import Given
from pipeline.sample.model import open_model
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
torch.set_num_threads(1)
model = open_model(Path(sys.argv[1]))
sampler = ClipSampler(model, SampleConfig(solver="euler", steps=2, precision="fp32"), torch.device("cpu"))
name = model.trained_buckets[0].name
given = Given(total_frames=int(sys.argv[2]))
request = PromptRequest(id="0", prompt="a red circle moves left", seed=1, guidance_scale=3.0, bucket=name, given=given)
encoder, frames = ClipEncoder(8), 0
for (clip, *_), *_ in sampler.stream_group([request]):
    encoder.add(clip)
    frames += len(clip)
print(frames, len(encoder.finish()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory(folder: str) -> dict[str, dict[str, float]]:
    """Peak memory of a process that samples one clip of each length and compresses it."""
    found = {}
    for length in LENGTHS:
        command = [sys.executable, "-c", MEMORY, folder, str(length)]
        frames, size, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-3:]
        found[frames] = {"peak_mib": round(int(peak) / 1024, 1), "mp4_kib": round(int(size) / 1024, 1)}
    return found


def contact_sheet(clips: Sequence[Frames], path: Path, every: int = 2, rows: int = 8) -> None:
    """Frames of clips side by side, a clip in each row."""
    lines = [
        np.concatenate([np.pad(frame, ((1, 1), (1, 1), (0, 0))) for frame in clip[::every]], 1) for clip in clips[:rows]
    ]
    Image.fromarray(np.concatenate(lines)).save(path)


def parts(scenes: Scenes, folder: str) -> Iterator[tuple[str, Callable[[], tuple[object, list[Frames]]]]]:
    """Everything that is measured, by name."""
    for name, measure in WAYS.items():
        yield name, partial(measure, scenes)
    for overlap in (1, 5, 9):
        yield f"windows_sharing_{overlap}_frames", partial(windows, scenes, overlap)
    yield "turning_windows_sharing_5_frames", partial(windows, scenes, 5, turning=True)
    yield "drawn_turning", partial(drawn_turns, scenes)
    yield "windows_of_latents_in_place_sharing_5_frames", partial(windows_in_place, scenes, 5)
    yield "memory", lambda: (memory(folder), [])


def main() -> None:
    """Measure, print and write the parts whose names contain one of the words given, or all."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of the training")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--only", nargs="*", default=[""], help="words of the names of parts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(Path(options.folder))
    sampler = ClipSampler(model, SETTINGS, torch.device("cpu"))
    with tempfile.TemporaryDirectory(prefix="reelflow-") as temporary:
        for name, measure in parts(Scenes(Path(temporary), sampler), options.folder):
            if not any(word in name for word in options.only):
                continue
            found, clips = measure()
            sys.stdout.write(f"{name}: {json.dumps(found)}\n")
            sys.stdout.flush()
            before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
            figures = before | {"model": str(model).rpartition("/")[2], "num_clips": NUM_CLIPS, name: found}
            RESULT.write_text(json.dumps(figures | {"num_long_clips": NUM_LONG}, indent=1) + "\n", encoding="utf-8")
            if options.sheets is not None and clips:
                options.sheets.mkdir(parents=True, exist_ok=True)
                contact_sheet(clips, options.sheets / f"{name}.png", every=4 if len(clips[0]) == LONG else 2)


if __name__ == "__main__":
    main()
