"""Which clips of a folder are compared, and which folders are refused."""

import shutil

import numpy as np
import pytest

from data.video.codec import encode_clip
from pipeline.evaluate.clip_sets import ClipSetError, open_clips
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.requests import PromptRequest
from testing.clips import moving_shapes
from testing.galleries import write_many_samples


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
    clips = open_clips(mixed_dataset, 100, None)
    assert len(clips.names) == 40
    assert clips.read(0).shape[-1] == 3
    train = open_clips(mixed_dataset, 100, "train")
    assert len(train.names) == 30
    assert {name.key for name in train.names} < {name.key for name in clips.names}
    some = open_clips(mixed_dataset, 7, None)
    assert [name.key for name in some.names] == [clips.names[40 * number // 7].key for number in range(7)]
    assert len({each.fingerprint for each in (clips, train, some)}) == 3


def test_samples_are_ordered_in_rounds_of_all_prompts_and_paired_by_prompt_and_seed(tmp_path):
    folder = write_samples(tmp_path / "samples", ("b", 1, 3.0), ("a", 2, 3.0), ("a", 1, 3.0))
    clips = open_clips(folder, 100, None)
    shape = "\x005x32x32@8"
    assert [(name.text, name.pair.removesuffix(shape)) for name in clips.names] == [
        *(("a", "a\x001"), ("b", "b\x001"), ("a", "a\x002"))
    ]
    before = clips.fingerprint
    assert np.abs(clips.read(1).astype(int) - moving_shapes(5, 32, 0)).mean() < 8
    (folder / clips.names[0].key).write_bytes(b"")
    assert open_clips(folder, 100, None).fingerprint != before


def test_one_of_several_clips_of_a_prompt_and_seed_is_compared(tmp_path):
    folder = write_samples(tmp_path / "samples", ("a", 1, 1.0), ("a", 1, 3.0), ("b", 1, 3.0))
    with pytest.raises(ClipSetError, match=r"differ in guidance_scale \(1.0, 3.0\): .* --where guidance_scale=VALUE"):
        open_clips(folder, 9, None)
    with pytest.raises(ClipSetError, match=r"no clips of guidance_scale 2, but of 1.0, 3.0"):
        open_clips(folder, 9, None, {"guidance_scale": 2})
    assert len(open_clips(folder, 9, None, {"guidance_scale": 3}).names) == 2
    alone = write_samples(tmp_path / "alone", ("a", 1, 1.0), ("b", 1, 3.0))  # rows may have settings of their own
    assert len(open_clips(alone, 9, None).names) == 2


def test_clips_are_chosen_by_any_setting(tmp_path):
    folder = write_many_samples(tmp_path / "samples", 8)
    lines = (folder / SAMPLES_NAME).read_text()
    (folder / SAMPLES_NAME).write_text(lines + lines.replace('"steps":4', '"steps":16').replace('"id":"0', '"id":"1'))
    with pytest.raises(ClipSetError, match=r"differ in steps \(16, 4\): .*--where steps=VALUE$"):
        open_clips(folder, 99, None)
    assert len(open_clips(folder, 99, None, {"steps": 16}).names) == 4
    assert len(open_clips(folder, 99, None, {"steps": 4, "guidance_scale": 1}).names) == 4
    with pytest.raises(ClipSetError, match=r"no clips of guidance_scale 3, but of 1.0"):
        open_clips(folder, 99, None, {"steps": 4, "guidance_scale": 3})
    with pytest.raises(ClipSetError, match="that say their stepz; known are solver, steps"):
        open_clips(folder, 99, None, {"stepz": 4})


def test_other_folders_are_refused_by_name(tmp_path, mixed_dataset):
    with pytest.raises(ClipSetError, match="holds neither a finished dataset nor sampled clips"):
        open_clips(tmp_path, 9, None)
    with pytest.raises(ClipSetError, match="a dataset, whose clips have no steps: leave that out"):
        open_clips(mixed_dataset, 9, None, {"steps": 4})
    samples = write_samples(tmp_path / "samples")
    with pytest.raises(ClipSetError, match="samples holds no clips"):
        open_clips(samples, 9, None)
    with pytest.raises(ClipSetError, match="leave --split out"):
        open_clips(samples, 9, "train")
    latents = tmp_path / "latents"
    shutil.copytree(mixed_dataset, latents)
    manifest = latents / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"kind":"clips"', '"kind":"latents"'))
    with pytest.raises(ClipSetError, match="holds latents, and clips are compared"):
        open_clips(latents, 9, None)
