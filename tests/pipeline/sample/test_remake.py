"""The files of a clip, and that what they record makes the same bytes again."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset.index import read_index
from data.dataset.manifest import read_manifest
from data.dataset.reader import PayloadReader
from data.files.checksums import file_sha256
from data.files.jsonl import publish_jsonl, read_jsonl
from data.video.codec import decode_clip, encode_clip, read_tags
from data.video.config import VideoConfig
from data.video.picture_zip import read_picture_zip
from launch.remake import Asked, remake_clip
from models.text.pretrained import PretrainedTextEncoder
from pipeline.encode.captions import StoredCaptions, read_embeddings
from pipeline.encode.codec import load_autoencoder
from pipeline.sample.config import OutputsConfig
from pipeline.sample.manifest import Manifest
from pipeline.sample.model import open_model
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip
from pipeline.sample.plan import Plan
from pipeline.sample.prompts import PlacedPrompt, Prompt, PromptError
from pipeline.sample.provenance import ProvenanceError, read_provenance
from pipeline.sample.recorded import RemakeError
from pipeline.sample.remake import Places
from pipeline.sample.reuse import reused_clips
from pipeline.sample.training_set import write_training_set
from testing.clips import moving_shapes
from testing.in_process import SETTINGS, Sampled, sample
from testing.published import write_pipeline

PROMPT = 'a red "dot" \u2028 moves <left> \U0001f534 \\n é'


def remade(target: Path, output: Path, **places: Any) -> list[str]:
    """What the command says."""
    name, inputs = places.pop("name", None), places.pop("inputs", ())
    return list(remake_clip(Asked(target, Places(**places), name, inputs, output)))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """An image and a video to begin with."""
    folder = tmp_path_factory.mktemp("given")
    frames = moving_shapes(9, 48)
    Image.fromarray(frames[0]).save(folder / "start.png")
    (folder / "start.mp4").write_bytes(encode_clip(frames, 8))
    return {"image": folder / "start.png", "clip": folder / "start.mp4"}


@pytest.fixture(scope="module")
def sampled(model_dir, files, tmp_path_factory) -> Sampled:
    """A clip of each way to condition, and of settings of rows."""
    weaker = sorted((model_dir / "checkpoints").iterdir())[0]
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPT, "metadata": {"mine": 1}, "expect": {"colour": "red"}},
        {"prompt": "from an image", "image": str(files["image"])},
        {"prompt": "from a clip", "clip": str(files["clip"]), "context": 1},
        {"prompt": "in windows", "total_frames": 13, "later_prompts": [[0.9, "then another"]]},
        {"prompt": "settings", "settings": {"steps": 3, "solver": "heun", "negative_prompt": "blue", "shift": 2.0}},
        {"prompt": "weights", "settings": {"weights": "power-0.10", "sde_sigma": 0.5}},
        {"prompt": "autoguidance", "settings": {"guidance_checkpoint": str(weaker), "guidance_weights": "master"}},
        {"prompt": "another checkpoint", "checkpoint": str(weaker), "settings": {"weights": "master"}},
    ]
    return sample(tmp_path_factory.mktemp("sampled") / "clips", model_dir, [Prompt(**row) for row in rows])


@pytest.mark.parametrize(
    "number", [0, 1, 3, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 4, 5, 6, 7))]
)
def test_each_clip_is_made_again_with_the_same_bytes(sampled, tmp_path, number):
    clip = sampled.clips[number]
    (said, told) = remade(sampled.folder / clip.file, tmp_path / "again.mp4")
    assert said == f"wrote {tmp_path / 'again.mp4'}"
    assert told.startswith("the clip made again has the bytes of")
    assert file_sha256(tmp_path / "again.mp4") == clip.sha256 == file_sha256(sampled.folder / clip.file)


def test_a_file_says_what_it_was_made_from_and_nothing_of_places(sampled):
    clip = sampled.clips[0]
    made = read_provenance(sampled.folder / clip.file)
    assert (made.checkpoint.fingerprint, made.checkpoint.name) == (sampled.model.fingerprint, "dit, step 8")
    assert made.request == clip.request.model_copy(update={"metadata": None, "expect": None})
    assert made.video == VideoConfig(codec="h264", crf=14, preset="veryfast")
    assert decode_clip((sampled.folder / clip.file).read_bytes()).shape == (5, 32, 32, 3)
    for each in sampled.clips:
        text = json.dumps(read_tags(sampled.folder / each.file))
        assert str(sampled.folder.parent.parent) not in text  # of images, checkpoints and clips
        assert each.num_bytes == (sampled.folder / each.file).stat().st_size
        folder = sampled.model.folder if each.request.checkpoint is None else Path(each.request.checkpoint.folder)
        assert each.model_folder == str(folder.resolve())


def test_a_row_with_a_checkpoint_of_its_own_has_the_bytes_of_a_job_of_that_checkpoint(sampled, model_dir, tmp_path):
    clip = sampled.clips[-1]
    assert clip.request.checkpoint is not None
    row = Prompt(prompt=clip.request.prompt, settings={"weights": "master"})
    (alone,) = sample(tmp_path / "alone", Path(clip.request.checkpoint.folder), [row]).clips
    assert (alone.file, alone.sha256) == (clip.file, clip.sha256)
    assert alone.model == clip.model == clip.request.checkpoint.fingerprint != sampled.model.fingerprint
    shutil.copytree(sampled.folder, tmp_path / "clips")
    with Manifest(tmp_path / "clips") as manifest:
        found = reused_clips(manifest, lambda: (each.request for each in sampled.clips), sampled.model.fingerprint)
        line = manifest.line(clip.request.id)
    assert (found.num_made, found.num_damaged) == (len(sampled.clips), 0)
    assert line is not None
    assert line.model == clip.model


def test_places_and_the_users_own_metadata_change_no_byte(sampled, model_dir, files, tmp_path):
    other_model, other_image = tmp_path / "moved", tmp_path / "copy.png"
    shutil.copytree(model_dir, other_model)
    shutil.copyfile(files["image"], other_image)
    rows = [Prompt(prompt="from an image", image=str(other_image), metadata={"other": 2}), Prompt(prompt=PROMPT)]
    again = sample(tmp_path / "again", other_model, rows)
    expected = {clip.request.id: clip.sha256 for clip in sampled.clips}
    assert [expected[clip.request.id] for clip in again.clips] == [clip.sha256 for clip in again.clips]


def test_a_clip_alone_is_made_again_where_its_checkpoint_and_inputs_are_named(sampled, files, tmp_path):
    text, image = (shutil.copy(sampled.folder / clip.file, tmp_path) for clip in sampled.clips[:2])
    with pytest.raises(RemakeError, match=r"by dit, step 8 with the fingerprint \w+-8, and no manifest .*--checkpoint"):
        remade(Path(text), tmp_path / "again.mp4")
    training = sampled.model.folder.parent.parent  # in which it is found among others
    remade(Path(text), tmp_path / "again.mp4", checkpoint=training)
    assert file_sha256(tmp_path / "again.mp4") == sampled.clips[0].sha256
    with pytest.raises(RemakeError, match=r"column image whose SHA-256 is .*, and no manifest says .*--input FILE"):
        remade(Path(image), tmp_path / "image.mp4", checkpoint=training)
    remade(Path(image), tmp_path / "image.mp4", checkpoint=training, inputs=[files["image"]])
    assert file_sha256(tmp_path / "image.mp4") == sampled.clips[1].sha256


def test_another_checkpoint_and_a_changed_input_are_refused(sampled, files, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(sampled.folder, folder)
    text, image = (folder / clip.file for clip in sampled.clips[:2])
    other = sorted(sampled.model.folder.parent.iterdir())[0]
    with pytest.raises(RemakeError, match=rf"-8, but {other} holds \w+-4: it was trained further, or is another one"):
        remade(text, tmp_path / "again.mp4", checkpoint=other)
    with pytest.raises(RemakeError, match=r"gone is not there: name the folder where it is now with --checkpoint"):
        remade(text, tmp_path / "again.mp4", checkpoint=tmp_path / "gone")
    changed = tmp_path / "changed.png"
    Image.fromarray(moving_shapes(1, 32)[0]).save(changed)
    line = sampled.clips[1]
    assert line.request.image is not None
    moved = line.request.model_copy(update={"image": line.request.image.model_copy(update={"path": str(changed)})})
    publish_jsonl(folder / SAMPLES_NAME, [line.model_copy(update={"request": moved})])
    with pytest.raises(RemakeError, match=r"changed\.png has changed since .*--input FILE"):
        remade(image, tmp_path / "again.mp4")
    assert not (tmp_path / "again.mp4").exists()


def test_a_line_of_a_manifest_is_enough(sampled, tmp_path):
    folder = tmp_path / "clips"
    shutil.copytree(sampled.folder, folder)
    clip = sampled.clips[3]
    path = folder / clip.file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ProvenanceError, match=r"is cut short or damaged.*remake FOLDER/manifest\.jsonl --name"):
        remade(path, tmp_path / "again.mp4")
    (_, told) = remade(folder / SAMPLES_NAME, tmp_path / "again.mp4", name=clip.file)
    assert "it is damaged or was edited: replace it" in told
    assert file_sha256(tmp_path / "again.mp4") == clip.sha256
    path.unlink()
    list(remake_clip(Asked(folder / SAMPLES_NAME, Places(), clip.request.id)))  # where it belongs
    assert file_sha256(path) == clip.sha256
    with pytest.raises(RemakeError, match="no line of a clip 'b'"):
        remade(folder / SAMPLES_NAME, tmp_path / "b.mp4", name="b")
    with pytest.raises(RemakeError, match="say which one with --name"):
        remade(folder / SAMPLES_NAME, tmp_path / "b.mp4")


def test_what_was_edited_is_told(sampled, tmp_path):
    path = Path(shutil.copy(sampled.folder / sampled.clips[0].file, tmp_path))
    content = path.read_bytes()
    assert content.count(b'"seed":') == 1
    at = content.index(b'"seed":') + len(b'"seed":')
    path.write_bytes(content[:at] + (b"8" if content[at : at + 1] != b"8" else b"7") + content[at + 1 :])
    with pytest.raises(RemakeError, match="the clip has another SHA-256"):
        remade(path, tmp_path / "again.mp4", checkpoint=sampled.model.folder)
    path.write_bytes(encode_clip(moving_shapes(5, 32), 8))
    with pytest.raises(ProvenanceError, match="does not say how it was made"):
        remade(path, tmp_path / "b.mp4")


@pytest.mark.slow
def test_clips_of_older_versions_are_made_again_as_they_were(sampled, tmp_path):
    """Their files say nothing, and their lines not how they are compressed."""
    clip = sampled.clips[0]
    frames = decode_of(sampled, clip, tmp_path)
    content = encode_clip(frames, 8)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / clip.file).write_bytes(content)
    fields = json.loads(clip.model_dump_json(exclude={"video", "num_bytes", "model_folder", "others"}))
    (tmp_path / "old" / SAMPLES_NAME).write_text(json.dumps(fields | {"sha256": None}) + "\n")
    (line,) = read_jsonl(tmp_path / "old" / SAMPLES_NAME, SampledClip)
    assert line.video is None
    manifest = tmp_path / "old" / SAMPLES_NAME
    (_, told) = remade(manifest, tmp_path / "again.mp4", name=clip.file, checkpoint=sampled.model.folder)
    assert "has the bytes of" in told
    assert (tmp_path / "again.mp4").read_bytes() == content


def decode_of(sampled: Sampled, clip: SampledClip, folder: Path) -> np.ndarray:
    """The frames of a clip, without loss."""
    remade(sampled.folder / clip.file, folder / "frames.zip")
    return read_picture_zip((folder / "frames.zip").read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("video", [VideoConfig(codec="hevc", pixel_format="yuv444p"), VideoConfig(codec="av1")])
def test_other_codecs_are_made_again(model_dir, tmp_path, video):
    made = sample(tmp_path / "clips", model_dir, [Prompt(prompt="a")], OutputsConfig(video=video))
    (clip,) = made.clips
    assert clip.video == video.resolved()
    frames = decode_clip((made.folder / clip.file).read_bytes())
    assert frames.shape == (5, 32, 32, 3)
    (_, told) = remade(made.folder / clip.file, tmp_path / "again.mp4")
    assert "has the bytes of" in told


def test_a_prompt_of_the_largest_size_is_recorded_whole(model_dir, tmp_path):
    prompt = "\u6f22\U0001f534" * 2**15  # 2^16 characters, 224 KiB
    made = sample(tmp_path / "clips", model_dir, [Prompt(prompt=prompt)])
    assert read_provenance(made.folder / made.clips[0].file).request.prompt == prompt


def test_outputs_that_cannot_be_written_are_refused_before_anything_starts(model_dir):
    model = open_model(model_dir)
    prompts = [PlacedPrompt("row 1", Prompt(prompt="a", height=16)), PlacedPrompt("row 2", Prompt(prompt="a"))]
    hevc = OutputsConfig(video=VideoConfig(codec="hevc"))
    with pytest.raises(PromptError, match=r"row 1: sample\.video: codec hevc takes frames of at least 32 pixels"):
        Plan(model, SETTINGS, prompts, 0, outputs=hevc).check()
    long = [PlacedPrompt("row 3", Prompt(prompt="a", total_frames=13))]
    with pytest.raises(PromptError, match="row 3: total_frames 13: a clip of several windows has no latent"):
        Plan(model, SETTINGS, long, 0, outputs=OutputsConfig(outputs=("mp4", "webdataset"))).check()
    with pytest.raises(ValueError, match="mp4 has to be among them"):
        OutputsConfig(outputs=("webp",))


@pytest.mark.slow
def test_clips_of_a_published_pipeline_are_made_again_and_trained_on(tmp_path):
    write_pipeline(tmp_path / "pipeline")
    outputs = OutputsConfig(outputs=("mp4", "webdataset"))
    made = sample(tmp_path / "clips", tmp_path / "pipeline", [Prompt(prompt="a star", bucket="9x32x48@8")], outputs)
    (clip,) = made.clips
    assert read_provenance(made.folder / clip.file).checkpoint.name == "published pipeline"
    (tmp_path / "pipeline").rename(tmp_path / "moved")
    with pytest.raises(RemakeError, match="pipeline is not there: name the folder where it is now with --checkpoint"):
        remade(made.folder / clip.file, tmp_path / "again.mp4")
    (_, told) = remade(made.folder / clip.file, tmp_path / "again.mp4", checkpoint=tmp_path / "moved")
    assert "has the bytes of" in told
    model = open_model(tmp_path / "moved")
    write_training_set(made.folder, model, SETTINGS, outputs)
    latents = made.folder / "dataset" / "latents"
    assert read_manifest(latents).text_encoder == model.text_encoder
    (row,) = [row for split in ("train", "validation") for row in read_index(latents, split)]
    stored = read_embeddings([PayloadReader(latents, verify=True).read(row)])
    assert model.text_encoder is not None
    read = PretrainedTextEncoder(Path(model.text_encoder.folder), model.text_encoder.max_tokens, torch.device("cpu"))
    expected = read(["a star"])
    assert torch.equal(stored.mask, expected.mask)
    assert torch.allclose(stored.values, expected.values, atol=1e-2)  # stored in 16 bits
    assert StoredCaptions(latents, "").null().values.shape == expected.values.shape
    assert load_autoencoder(latents / "autoencoder.safetensors").config.latent_channels == model.stats.num_channels
