"""Which clips of a folder are compared, and which folders are refused."""

import shutil

import numpy as np
import pytest

from data.video.codec import encode_clip
from pipeline.evaluate.clip_sets import ClipSetError, open_clips
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.requests import PromptRequest
from testing.clips import moving_shapes


def write_samples(folder, *clips: tuple[str, int, float]):
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (prompt, seed, scale) in enumerate(clips):
        request = PromptRequest(id=f"{number:012}", prompt=prompt, seed=seed, guidance_scale=scale, bucket="5x32x32@8")
        lines.append(SampledClip(file=request.file_name, request=request, num_network_calls=1).model_dump_json() + "\n")
        (folder / request.file_name).write_bytes(encode_clip(moving_shapes(5, 32, number), 8))
    (folder / SAMPLES_NAME).write_text("".join(lines))
    return folder


def test_a_dataset_gives_its_clips_by_source(mixed_dataset):
    clips = open_clips(mixed_dataset, 100, None, None)
    assert len(clips.names) == 40
    assert clips.read(0).shape[-1] == 3
    train = open_clips(mixed_dataset, 100, "train", None)
    assert len(train.names) == 30
    assert {name.key for name in train.names} < {name.key for name in clips.names}
    some = open_clips(mixed_dataset, 7, None, None)
    assert [name.key for name in some.names] == [clips.names[40 * number // 7].key for number in range(7)]
    assert len({each.fingerprint for each in (clips, train, some)}) == 3


def test_samples_are_ordered_in_rounds_of_all_prompts_and_paired_by_prompt_and_seed(tmp_path):
    folder = write_samples(tmp_path / "samples", ("b", 1, 3.0), ("a", 2, 3.0), ("a", 1, 3.0))
    clips = open_clips(folder, 100, None, None)
    assert [(name.text, name.pair) for name in clips.names] == [("a", "a\x001"), ("b", "b\x001"), ("a", "a\x002")]
    before = clips.fingerprint
    assert np.abs(clips.read(1).astype(int) - moving_shapes(5, 32, 0)).mean() < 8
    (folder / clips.names[0].key).write_bytes(b"")
    assert open_clips(folder, 100, None, None).fingerprint != before


def test_one_guidance_scale_is_compared(tmp_path):
    folder = write_samples(tmp_path / "samples", ("a", 1, 1.0), ("a", 1, 3.0))
    with pytest.raises(ClipSetError, match="guidance scales 1, 3; name one with --guidance-scale"):
        open_clips(folder, 9, None, None)
    with pytest.raises(ClipSetError, match="no clips of guidance scale 2, but of 1, 3"):
        open_clips(folder, 9, None, 2.0)
    assert len(open_clips(folder, 9, None, 3.0).names) == 1


def test_other_folders_are_refused_by_name(tmp_path, mixed_dataset):
    with pytest.raises(ClipSetError, match="holds neither a finished dataset nor sampled clips"):
        open_clips(tmp_path, 9, None, None)
    samples = write_samples(tmp_path / "samples")
    with pytest.raises(ClipSetError, match="samples holds no clips"):
        open_clips(samples, 9, None, None)
    with pytest.raises(ClipSetError, match="leave --split out"):
        open_clips(samples, 9, "train", None)
    latents = tmp_path / "latents"
    shutil.copytree(mixed_dataset, latents)
    manifest = latents / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind":"clips"', '"kind":"latents"'))
    with pytest.raises(ClipSetError, match="holds latents, and clips are compared"):
        open_clips(latents, 9, None, None)
