"""The columns by which rows of a prompts file give more than text."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data.dataset.buckets import Bucket
from data.video.codec import encode_clip
from models.flow.spec import FlowSpec, GivenFrames
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import Given, LaterPrompt
from pipeline.sample.plan import Plan
from pipeline.sample.prompt_files import PromptsFile
from pipeline.sample.prompts import Prompt, PromptError, format_prompts
from pipeline.sample.requests import PromptRequest, prompt_settings
from testing.sampled import Untrained, model_of

MODEL = Untrained(
    **vars(
        model_of(
            buckets=[Bucket(num_frames=9, height=32, width=32, fps=8).model_dump()],
            flow=FlowSpec(given=GivenFrames(subset=1.0)).model_dump(),
        )
    )
)


@pytest.fixture
def folder(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)
    (tmp_path / "a.mp4").write_bytes(encode_clip(frames, 8))
    (tmp_path / "b.mp4").write_bytes(encode_clip(frames[::-1], 8))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    return tmp_path


def written(folder, *rows):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a dot"} | row) + "\n" for row in rows))
    return path


def planned(folder, *rows) -> list[PromptRequest]:
    return list(Plan(MODEL, SampleConfig(), PromptsFile(str(written(folder, *rows))), 0))


ROWS = [
    {},
    {"clip": "a.mp4"},
    {"clip": "b.mp4"},
    {"clip": "a.mp4", "context": 5},
    {"image": "red.png"},
    {"last_image": "red.png"},
    {"image": "red.png", "last_image": "red.png"},
    {"clip": "a.mp4", "last_clip": "b.mp4"},
    {"source": "a.mp4", "strength": 0.5},
    {"source": "a.mp4", "strength": 0.6},
    {"source": "a.mp4", "mask": "red.png"},
    {"total_frames": 17},
    {"total_frames": 25},
    {"total_frames": 25, "later_prompts": [[1, "a box"]]},
    {"total_frames": 25, "later_prompts": [[1, "a ball"]]},
]


def test_every_column_is_part_of_the_address_and_is_read_back_from_the_manifest(folder):
    requests = planned(folder, *({"seed": 1} | row for row in ROWS))
    assert len({request.id for request in requests}) == len(ROWS)
    for request in requests:
        assert PromptRequest.model_validate_json(request.model_dump_json()) == request
    assert "given" not in requests[0].model_dump_json()
    assert "given" not in requests[4].model_dump_json()  # the address of clips from an image is what it was
    assert len({request.layout for request in requests}) == len(ROWS) - 3  # files and prompts are no matter of layout


def test_the_address_has_what_a_file_holds_and_not_where_it_is(folder):
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    rows = [{"seed": 1, "clip": name} for name in ("a.mp4", "copy.mp4", "b.mp4")]
    ids = [planned(folder, row)[0].id for row in rows]
    assert ids[0] == ids[1] != ids[2]
    settings = list(prompt_settings(PromptsFile(str(written(folder, *rows)))))
    assert settings[0] == settings[1] != settings[2]


def test_equal_rows_without_a_seed_get_seeds_of_their_own_by_what_they_are_given(folder):
    seeds = [request.seed for request in planned(folder, {"clip": "a.mp4"}, {"clip": "a.mp4"}, {"clip": "b.mp4"}, {})]
    assert len(set(seeds)) == 4
    assert planned(folder, {"clip": "b.mp4"})[0].seed == seeds[2]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"clip": "a.mp4", "image": "red.png"}, "image and clip both say how the clip starts"),
        ({"last_clip": "a.mp4", "last_image": "red.png"}, "last_image and last_clip both say how the clip ends"),
        ({"source": "a.mp4"}, "source needs strength"),
        ({"strength": 0.5}, "strength is of a source: name the video in source"),
        ({"mask": "red.png"}, "mask is of a source"),
        ({"source": "a.mp4", "strength": 0.5, "clip": "a.mp4"}, "source gives all frames, so clip cannot be given"),
        (
            {"source": "a.mp4", "strength": 0.5, "total_frames": 25},
            "source gives all frames, so total_frames cannot be given",
        ),
        ({"source": "a.mp4", "strength": 0.0}, "strength: Input should be greater than 0"),
        ({"source": "a.mp4", "strength": 1.5}, "strength: Input should be less than or equal to 1"),
        ({"source": "a.mp4", "strength": True}, "strength: Value error, true and false are no numbers"),
        ({"context": 5}, "context is of clip or last_clip"),
        ({"later_prompts": [[1, "b"]]}, "later_prompts take over in later windows, so total_frames has to say"),
        ({"total_frames": 25, "later_prompts": [[2, "b"], [1, "c"]]}, "in the order of their seconds"),
        ({"total_frames": 25, "later_prompts": [[0, "b"]]}, "later_prompts.0.seconds: Input should be greater than 0"),
        ({"total_frames": 25, "later_prompts": "b"}, "later_prompts: Input should be a valid tuple"),
        ({"clip": "gone.mp4"}, r"clip gone.mp4 cannot be read \(No such file or directory\)"),
        ({"clip": "red.txt"}, r"clip red.txt: .*; save it anew, as MP4"),
        ({"last_image": "a.mp4"}, r"last_image a.mp4: it cannot be decoded .*; save it anew, as PNG or JPEG"),
        ({"mask": "a.mp4", "source": "a.mp4"}, r"mask a.mp4: it cannot be decoded"),
    ],
    ids=str,
)
def test_rows_that_do_not_say_one_thing_are_refused_by_line_and_column(folder, row, said):
    (folder / "red.txt").write_text("no video")
    with pytest.raises(PromptError, match=rf"prompts\.jsonl: line 2.*{said}"):
        list(PromptsFile(str(written(folder, {}, row))))


def test_later_prompts_are_pairs_or_records():
    pairs = Prompt(prompt="a", total_frames=25, later_prompts=[[1.5, "b"], [2, "c"]])  # type: ignore[arg-type]
    assert pairs.later_prompts == (LaterPrompt(seconds=1.5, prompt="b"), LaterPrompt(seconds=2, prompt="c"))
    records = [each.model_dump() for each in pairs.later_prompts or ()]
    assert Prompt(prompt="a", total_frames=25, later_prompts=records) == pairs  # type: ignore[arg-type]
    request = PromptRequest(
        id="0",
        prompt="a",
        seed=1,
        guidance_scale=1.0,
        bucket="9x32x32@8",
        given=Given(later_prompts=pairs.later_prompts),
    )
    assert [request.prompt_at(seconds) for seconds in (0.0, 1.4, 1.5, 1.9, 2.0, 9.0)] == ["a", "a", "b", "b", "c", "c"]
    with pytest.raises(ValidationError, match="later_prompts"):
        Prompt(prompt="a", total_frames=25, later_prompts=[[1.5]])  # type: ignore[arg-type]


def test_rows_are_written_and_read_back(folder):
    prompts = [placed.prompt for placed in PromptsFile(str(written(folder, *ROWS)))]
    path = folder / "again.jsonl"
    path.write_text("".join(format_prompts(prompts)))
    assert [placed.prompt for placed in PromptsFile(str(path))] == prompts


def test_masks_are_told_to_be_the_biased_fallback(folder):
    rows = PromptsFile(str(written(folder, {}, {"source": "a.mp4", "mask": "red.png"})))
    (warning,) = Plan(MODEL, SampleConfig(), rows, 0).check().warnings
    assert warning.startswith("1 rows have a mask, the first in ")
    assert "line 2: what a mask keeps is held on its path while the rest is sampled, the biased fallback" in warning
