"""The manifest of sampled clips, and which files are whole."""

import json
from pathlib import Path

import pytest

from data.files.jsonl import publish_jsonl
from data.video.codec import encode_clip
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import ImageFile
from pipeline.sample.outputs import SAMPLES_NAME, SampledClip, SamplesError, is_whole_clip, read_samples
from pipeline.sample.requests import PlacedModel, PromptRequest
from testing.clips import moving_shapes

REQUEST = PromptRequest(id="00", prompt="a\u2028b", seed=1, guidance_scale=3.0, bucket="9x32x32@8")
CLIP = SampledClip(file="a-b-00.mp4", request=REQUEST, num_network_calls=2)


def test_a_manifest_is_read_back_and_empty_lines_are_skipped(tmp_path):
    assert read_samples(tmp_path) == []
    publish_jsonl(tmp_path / SAMPLES_NAME, [CLIP])
    path = tmp_path / SAMPLES_NAME
    path.write_bytes(b"\n" + path.read_bytes() + b"\n")
    assert read_samples(tmp_path) == [CLIP]


@pytest.mark.parametrize("file", ["../../etc/passwd", "/etc/passwd", "a/../b.mp4", "..", ".", "", "a\\b", "a\0"])
def test_a_file_outside_the_folder_is_refused_with_its_line(tmp_path, file):
    lines = [CLIP.model_dump_json(), json.dumps(CLIP.model_dump() | {"file": file})]
    (tmp_path / SAMPLES_NAME).write_text("\n".join(lines))
    with pytest.raises(
        SamplesError, match=r"manifest\.jsonl: line 2 is damaged \(file: .*is not the name of a file in"
    ):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (CLIP.model_dump_json()[:40], "line 2 is damaged"),
        (
            json.dumps(CLIP.model_dump() | {"colour": 1}),
            r"line 2 is damaged \(colour: Extra inputs are not permitted\)",
        ),
        ("[" * 100_000, "line 2 is damaged"),
    ],
    ids=["half a line", "unknown key", "brackets"],
)
def test_a_damaged_line_is_named_with_a_way_out(tmp_path, line, told):
    (tmp_path / SAMPLES_NAME).write_text(f"{CLIP.model_dump_json()}\n{line}\n")
    with pytest.raises(SamplesError, match=rf"{told}.*; correct that line, or delete it and sample again"):
        read_samples(tmp_path)


def test_a_last_line_that_ends_in_the_middle_is_left_out(tmp_path):
    line = CLIP.model_dump_json()
    for length in range(1, len(line), 7):
        (tmp_path / SAMPLES_NAME).write_text(f"{line}\n{line[:length]}")
        assert read_samples(tmp_path) == [CLIP], length
    (tmp_path / SAMPLES_NAME).write_text(f"{line}\n{line}")  # whole, but for its line feed
    assert read_samples(tmp_path) == [CLIP, CLIP]
    (tmp_path / SAMPLES_NAME).write_text(f"{line[:30]}\n{line}")
    with pytest.raises(SamplesError, match="line 1 is damaged"):
        read_samples(tmp_path)


def test_only_a_clip_of_full_length_is_whole(tmp_path):
    path, content = tmp_path / "a.mp4", encode_clip(moving_shapes(9, 32), 8)
    assert not is_whole_clip(path)
    path.write_bytes(content)
    assert is_whole_clip(path)
    for length in (*range(0, len(content), 37), len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_whole_clip(path), length
    path.write_bytes(content + b"more")
    assert not is_whole_clip(path)


def test_pages_show_what_a_clip_came_from_without_paths_of_the_machine():
    request = PromptRequest(
        id="0" * 12,
        prompt="a",
        seed=0,
        guidance_scale=1.0,
        bucket="5x32x32@8",
        image=ImageFile(path="/home/me/first.png", sha256="ab"),
        weaker=PlacedModel(folder="/home/me/runs/dit", fingerprint="cd"),
        settings=SampleConfig(steps=4, guidance_checkpoint=Path("/home/me/runs/dit")),
        metadata={"source": ["x", 1]},
    )
    shown = SampledClip(file="a.mp4", request=request, num_network_calls=8, sha256="ef", model="12").shown()
    assert shown.settings["steps"] == 4
    assert shown.provenance == {
        "checkpoint": "12",
        "network calls": "8",
        "sha256": "ef",
        "image": '{"path": "first.png", "sha256": "ab"}',
        "weaker": '{"fingerprint": "cd"}',
        "metadata": '{"source": ["x", 1]}',
    }
    assert "/home/me" not in f"{shown}"
