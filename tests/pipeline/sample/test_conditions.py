"""Every way to condition a clip: what is refused, and what comes out, with networks and autoencoders as they are."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset.buckets import Bucket
from data.dataset.manifest import LatentStats
from data.files.checksums import file_sha256
from data.video.codec import decode_clip, encode_clip
from models.flow.spec import FlowSpec, GivenFrames
from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import to_pixels
from pipeline.encode.statistics import denormalize, normalize
from pipeline.sample.clips import read_frames
from pipeline.sample.conditions import check_given
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import Given, ImageFile, LaterPrompt
from pipeline.sample.images import ImageError, check_image
from pipeline.sample.prompts import PlacedPrompt, Prompt, PromptError
from pipeline.sample.requests import PromptRequest
from pipeline.sample.sampler import ClipSampler
from pipeline.sample.truncation import truncation_warnings
from pipeline.sample.windows import WHOLE
from testing.sampled import NETWORK, Untrained, model_of

BUCKET, STILL = Bucket(num_frames=17, height=16, width=32, fps=8), Bucket(num_frames=1, height=16, width=32, fps=8)
STATS = LatentStats(mean=[0.3], std=[0.7])
ANY = {"given": GivenFrames(prefix=0.3, ends=0.3, subset=0.4)}


def untrained(flow: dict[str, Any] | None = None, **network: Any) -> Untrained:
    model = model_of(
        model=NETWORK.model_copy(update=network).model_dump(),
        flow=FlowSpec.model_validate(ANY if flow is None else flow).model_dump(),
        buckets=[BUCKET.model_dump(), STILL.model_dump()],
        latent_stats=STATS.model_dump(),
    )
    return Untrained(**vars(model))


def sampler_of(model: Untrained | None = None, **settings: Any) -> ClipSampler:
    config = SampleConfig(**{"steps": 2, "solver": "euler", "precision": "fp32", **settings})
    return ClipSampler(model or untrained(), config, torch.device("cpu"))


@pytest.fixture
def files(tmp_path) -> dict[str, ImageFile]:
    """Two videos of 40 frames and of 9, at the clips' rate but another shape, two pictures and two masks."""
    found = {}
    for seed, (name, num_frames) in enumerate((("long.mp4", 40), ("short.mp4", 9), ("other.mp4", 40))):
        coarse = np.random.default_rng(seed).integers(0, 256, (num_frames, 4, 5, 3), dtype=np.uint8)
        frames = np.stack([np.asarray(Image.fromarray(frame).resize((50, 40))) for frame in coarse])
        (tmp_path / name).write_bytes(encode_clip(frames, 8))
    for name, colour in (("red.png", "red"), ("blue.png", "blue"), ("black.png", "black")):
        Image.new("RGB", (50, 40), colour).save(tmp_path / name)
    half = np.zeros((16, 32, 3), np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "right.png")
    for path in tmp_path.iterdir():
        found[path.stem] = ImageFile(path=str(path), sha256=file_sha256(path))
    return found


def request_of(seed: int = 1, image: ImageFile | None = None, **given: Any) -> PromptRequest:
    what = Given(**given) if given else None
    return PromptRequest(
        id=f"{seed:012}", prompt="a dot", seed=seed, guidance_scale=2.0, bucket=BUCKET.name, image=image, given=what
    )


def checked(model: Untrained, files: dict[str, ImageFile], **columns: Any) -> None:
    """Check a row with these columns, where names of files stand for their paths."""
    paths = {name: files[value].path if str(value) in files else value for name, value in columns.items()}
    prompt, bucket = Prompt.model_validate({"prompt": "a box"} | paths), BUCKET
    if prompt.bucket is not None:
        bucket = model.bucket(prompt.bucket)
    check_image(model, prompt, bucket, "heun")
    check_given(model, prompt, bucket, SampleConfig())


FIRST = {"first_frame_share": 0.5}
PER_FRAME = {"times_per": "frame"}


@pytest.mark.parametrize(
    ("flow", "columns", "said"),
    [
        ({}, {"image": "red"}, "names an image, but .*first_frame_share above 0"),
        (
            {},
            {"clip": "long"},
            r"has clip, but .*first frames that are given: train with dit\.flow\.given\.prefix above",
        ),
        (FIRST, {"clip": "long", "context": 5}, "has clip, but .*given.prefix above 0, or leave clip out"),
        (FIRST, {"last_image": "red"}, "has last_image, but .*last frames that are given: .*given.subset above 0"),
        (FIRST, {"image": "red", "last_image": "blue"}, "has last_image, but .*both ends given: .*given.ends above 0"),
        ({}, {"total_frames": 33}, "has total_frames, but .*given.prefix above 0, or leave total_frames out"),
        (ANY, {"clip": "short", "context": 13}, "names a clip of 9 frames at 8 fps, but 13 are needed"),
        ({"matching": {}}, {"source": "long", "strength": 0.5}, "has strength 0.5, but .* from noise alone at first"),
        (ANY, {"source": "short", "strength": 0.5}, "names a source of 9 frames at 8 fps, but 17 are needed"),
        (ANY, {"clip": "long", "context": 6}, "has context 6, but clips have 4k . 1 frames: use 5 or 9"),
        (ANY, {"total_frames": 32}, "has total_frames 32, but clips have 4k . 1 frames: use 29 or 33"),
        (ANY, {"total_frames": 13}, "has total_frames 13, but its bucket is 17x16x32@8: use 17 or more"),
        (
            ANY,
            {"clip": "long", "last_clip": "long", "context": 13},
            "by which 7 of the 5 latent frames .* none is left",
        ),
        (ANY, {"clip": "long", "context": 17}, "by which 5 of the 5 latent frames"),
        (ANY, {"source": "long", "mask": "black"}, "has a mask that is black everywhere, so nothing is made anew"),
        (
            ANY,
            {"total_frames": 33, "later_prompts": [[9, "x"]]},
            "later prompt at 9 s that no window takes",
        ),
        (ANY, {"total_frames": 17, "later_prompts": [[1, "x"]]}, "later prompt at 1 s that no window takes"),
        (ANY, {"settings": {"window_overlap": 5}}, "has window_overlap, which is of clips of several windows"),
        (ANY, {"last_image": "red", "bucket": STILL.name}, "its bucket is 1x16x32@8, a single frame"),
    ],
    ids=str,
)
def test_what_a_model_cannot_do_is_refused_by_row_and_column(files, flow, columns, said):
    with pytest.raises(PromptError, match=rf"prompt 'a box' .*{said}"):
        checked(untrained(flow), files, **columns)


@pytest.mark.parametrize(
    ("flow", "columns"),
    [
        (FIRST, {"image": "red"}),
        (FIRST, {"clip": "long"}),  # its last frame
        (FIRST, {"total_frames": 65}),
        ({"given": GivenFrames(prefix=0.5)}, {"clip": "long", "context": 9, "total_frames": 65}),
        ({"given": GivenFrames(ends=0.5)}, {"clip": "long", "last_clip": "other"}),
        ({"given": GivenFrames(ends=0.5)}, {"image": "red", "last_image": "blue"}),
        ({"given": GivenFrames(subset=0.5)}, {"last_image": "red"}),
        (PER_FRAME, {"clip": "long", "last_image": "red", "context": 5}),
        ({}, {"source": "long", "strength": 0.5}),
        ({"matching": {}}, {"source": "long", "strength": 1.0}),
    ],
    ids=str,
)
def test_what_a_model_was_trained_for_is_taken(files, flow, columns):
    checked(untrained(flow), files, **columns)


@pytest.mark.parametrize(("overlap", "use"), [(4, 5), (17, 13), (100, 13)])
def test_an_overlap_that_does_not_fit_is_refused_with_one_that_does(overlap, use):
    config = SampleConfig(window_overlap=overlap)
    check_given(untrained(), Prompt(prompt="a dot"), BUCKET, config)
    with pytest.raises(PromptError, match=rf"window_overlap is {overlap}, and windows of 17x16x32@8 .*use {use}$"):
        check_given(untrained(), Prompt(prompt="a box", total_frames=33), BUCKET, config)


def test_an_adaptive_solver_has_no_times_for_given_frames(files):
    config = SampleConfig(solver="dopri5")
    check_given(untrained(), Prompt(prompt="a box", source=files["long"].path, strength=0.5), BUCKET, config)
    with pytest.raises(PromptError, match=r"has clip, .* the solver dopri5 takes one time for all frames"):
        check_given(untrained(), Prompt(prompt="a box", clip=files["long"].path), BUCKET, config)


def given_latents(sampler: ClipSampler, frames: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return normalize(sampler.autoencoder.encode(to_pixels(frames)[None]).mean, STATS)[0]


WAYS: dict[str, dict[str, Any]] = {
    "extended": {"clip": "long"},
    "extended by less": {"clip": "long", "context": 9},
    "to a last image": {"last_image": "red"},
    "between images": {"image": "red", "last_image": "blue"},
    "between clips": {"clip": "long", "last_clip": "other"},
    "between image and clip": {"image": "red", "last_clip": "other", "context": 9},
}


def request_for(files: dict[str, ImageFile], way: dict[str, Any], seed: int = 1) -> PromptRequest:
    return request_of(
        seed, **{name: files.get(value, value) if value in files else value for name, value in way.items()}
    )


@pytest.mark.parametrize("known_frames", ["time", "channels"])
@pytest.mark.parametrize("schedule", ["full_sequence", "pyramid"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_given_frames_are_in_the_latents_bit_for_bit(files, way, schedule, known_frames):
    sampler = sampler_of(untrained(known_frames=known_frames), schedule=schedule)
    request = request_for(files, way)
    conditions, beginning = sampler.conditions.read([request], sampler.shape(request_of()))
    assert beginning is not None
    assert conditions.known is not None
    known = conditions.known[0, 0]
    latents, _ = sampler._latents([request])
    assert torch.equal(latents[:, :, known], beginning.latents[:, :, known])
    assert 0 < int(known.sum()) < 5
    first = 3 if way.get("context") == 9 and "clip" in way else 2 if "clip" in way else int("image" in way)
    last = 2 if way.get("context") == 9 and "last_clip" in way else int("last_image" in way or "last_clip" in way)
    assert known.tolist() == [True] * first + [False] * (5 - first - last) + [True] * last
    if "clip" in way:  # the encoding of the frames alone, which begin the clip
        frames = read_frames(files["long"], BUCKET, 4 * first - 3, at_end=True)
        torch.testing.assert_close(latents[0, :, :first], given_latents(sampler, frames))
        (shown,) = decode_clips(sampler.autoencoder, denormalize(latents[:, :, :first], STATS))
        ((clip,), _) = sampler.sample([request])
        assert abs(clip[: len(frames)].astype(int) - shown).max() <= 1
    if "last_image" in way:
        picture = np.asarray(Image.open(files[way["last_image"]].path).resize((32, 16)))
        still = given_latents(sampler, np.stack([picture] * 5))
        torch.testing.assert_close(latents[0, :, -1:], still[:, 1:])


def test_the_last_frames_of_a_clip_are_those_at_its_end(files):
    whole = decode_clip(Path(files["long"].path).read_bytes())
    last = read_frames(files["long"], Bucket(num_frames=9, height=32, width=48, fps=8), 9, at_end=True)
    first = read_frames(files["long"], Bucket(num_frames=9, height=32, width=48, fps=8), 9, at_end=False)
    for frames, expected in ((last, whole[-9:]), (first, whole[:9])):
        assert abs(frames.mean((1, 2)) - expected.mean((1, 2))).max() < 20  # another crop of the same frames
        assert not np.allclose(frames[0].mean((0, 1)), expected[4].mean((0, 1)), atol=10)


EVERY: dict[str, dict[str, Any]] = {
    **WAYS,
    "varied": {"source": "long", "strength": 0.5},
    "in a mask": {"source": "long", "mask": "right"},
    "varied in a mask": {"source": "long", "mask": "right", "strength": 0.7},
    "in windows": {"total_frames": 41},
    "extended in windows to an image": {"clip": "short", "last_image": "red", "total_frames": 29},
}


@pytest.mark.parametrize("way", EVERY.values(), ids=EVERY)
def test_a_clip_is_the_same_bit_for_bit_alone_and_among_others(files, way):
    sampler = sampler_of()
    requests = [request_for(files, way, seed) for seed in range(3)]
    together, calls = sampler.sample(requests)
    ((alone,), alone_calls) = sampler.sample([requests[2]])
    assert np.array_equal(alone, together[2])
    assert calls == alone_calls
    assert not np.array_equal(together[0], together[1])
    plain = sampler.sample([request_of(2)])[0][0]
    assert len(alone) == way.get("total_frames", 17)
    assert not np.array_equal(alone[:17], plain) or way == EVERY["in windows"]


def test_windows_continue_one_another_and_the_first_is_the_clip_that_fits_one(files):
    sampler = sampler_of()
    plain = sampler.sample([request_of()])[0][0]
    fits = sampler.sample([request_of(total_frames=17)])[0][0]
    assert np.array_equal(fits, plain)
    group, parts = [request_of(total_frames=41)], []
    for frames, *_ in sampler.stream_group(group):
        parts.append(frames[0])
    assert [len(part) for part in parts] == [12, 12, 17]
    assert np.array_equal(parts[0], plain[:12])
    later = request_of(total_frames=41, later_prompts=(LaterPrompt(seconds=3, prompt="two"),))
    changed = sampler.sample([later])[0][0]
    whole = np.concatenate(parts)
    assert np.array_equal(changed[:24], whole[:24])
    assert not np.array_equal(changed[24:], whole[24:])


def test_windows_have_noise_of_their_own_also_while_sampling():
    for sigma in (0.0, 0.5):
        sampler, another = sampler_of(sde_sigma=sigma), replace(WHOLE, number=1)
        one, two = (sampler._latents([request_of()], window)[0] for window in (WHOLE, another))
        assert not torch.equal(one, two)


def test_strength_is_how_much_of_the_source_goes(files):
    sampler = sampler_of(steps=8)
    source = read_frames(files["long"], BUCKET, 17, at_end=False)
    latents = given_latents(sampler, source)
    kept = []
    for strength in (0.05, 0.3, 0.6, 1.0):
        varied, _ = sampler._latents([request_of(source=files["long"], strength=strength)])
        kept.append(float((varied[0] - latents).square().mean()))
    assert kept == sorted(kept)
    assert kept[0] < 0.1 * kept[-1]
    plain, _ = sampler._latents([request_of()])
    assert torch.equal(varied, plain)  # at strength 1 nothing of it is left


def test_what_a_mask_keeps_is_the_source(files):
    sampler = sampler_of()
    source = given_latents(sampler, read_frames(files["long"], BUCKET, 17, at_end=False))
    latents, _ = sampler._latents([request_of(source=files["long"], mask=files["right"])])
    assert torch.equal(latents[0, :, :, :, :2], source[:, :, :, :2])
    assert not torch.allclose(latents[0, :, :, :, 2:], source[:, :, :, 2:])


@pytest.mark.parametrize("way", [{"clip": "long"}, {"source": "long", "mask": "right"}], ids=str)
def test_a_file_that_changes_while_the_job_runs_is_named(files, way):
    for name in way.values():
        request = request_for(files, way)
        content = Path(files[name].path).read_bytes()
        Path(files[name].path).write_bytes(content + b"0")
        with pytest.raises(ImageError, match=rf"{name}\.\w+ has changed since the job began; start it again"):
            sampler_of().sample([request])
        Path(files[name].path).write_bytes(content)


def test_later_prompts_that_are_cut_are_told():
    later = (LaterPrompt(seconds=2.125, prompt="far too long for it"),)
    prompts = [Prompt(prompt="a dot"), Prompt(prompt="a dot", total_frames=33, later_prompts=later)]
    placed = [PlacedPrompt(f"row {number}", prompt) for number, prompt in enumerate(prompts, 1)]
    (warning,) = truncation_warnings(untrained(), SampleConfig(), placed)
    assert warning.startswith("1 of 1 later prompts have more than the 8 bytes")
