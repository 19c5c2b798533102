"""The form of the page: rows of what differs from the defaults, and clips whose settings are taken again."""

import json
from typing import Any

import pytest

from launch.serve.form import OF_FILES, OF_ROWS, changed_in, controls_of, form_of, is_of_form, row_of_form
from models.flow.spec import FlowSpec, GivenFrames
from pipeline.sample.config import SampleConfig
from pipeline.sample.given import Given, ImageFile
from pipeline.sample.plan import Plan
from pipeline.sample.prompts import SETTINGS, PlacedPrompt, prompt_of
from pipeline.sample.requests import PromptRequest
from testing.sampled import TRAINED, Untrained, model_of

BUCKETS = [*TRAINED["buckets"], {**TRAINED["buckets"][0], "num_frames": 5}]
FLOW = FlowSpec(first_frame_share=0.3, given=GivenFrames(prefix=0.3)).model_dump()
MODEL = Untrained(**vars(model_of(buckets=BUCKETS, flow=FLOW)))
CONFIG = SampleConfig(steps=8, shift=0.1, negative_prompt="blue")
CONTROLS = controls_of(MODEL, CONFIG)
DEFAULTS = {control.name: control.default for control in CONTROLS} | {"prompt": "a"}


def requests_of(row: dict[str, Any]) -> list[PromptRequest]:
    return list(Plan(MODEL, CONFIG, [PlacedPrompt("row 1", prompt_of("row 1", row))], 0))


def test_every_setting_of_a_row_has_a_control_but_those_that_name_files():
    names = [control.name for control in CONTROLS]
    assert sorted(names) == sorted({*SETTINGS, *OF_ROWS} - {*OF_FILES})
    assert all(control.help for control in CONTROLS)


def test_controls_begin_with_what_the_checkpoint_is_sampled_with():
    assert DEFAULTS["steps"] == "8"
    assert DEFAULTS["shift"] == "0.1"
    assert DEFAULTS["guidance_interval"] == "0, 1"
    assert DEFAULTS["tolerance"] == "1e-05"
    assert DEFAULTS["flow_path"] == ""
    assert DEFAULTS["bucket"] == MODEL.buckets[0].name
    choices = {control.name: control.choices for control in CONTROLS}
    assert choices["bucket"] == tuple(bucket.name for bucket in MODEL.buckets)
    assert choices["guidance"] == ("plain", "cfg-zero-star", "apg", "rescaled")
    assert choices["flow_path"][0] == ""
    assert not {"flow_map", "renoise"} & set(choices["solver"])  # this one is no student
    assert choices["steps"] == ()


def test_a_row_has_what_differs_alone():
    assert row_of_form(DEFAULTS, CONTROLS) == {"prompt": "a"}
    values = DEFAULTS | {"prompt": " a \n red  dot ", "steps": " 9", "solver": "euler", "seed": "7", "shift": "0.10"}
    assert row_of_form(values, CONTROLS, "/start.png") == {
        "prompt": "a red dot",
        "image": "/start.png",
        "steps": "9",
        "solver": "euler",
        "seed": "7",
        "shift": "0.10",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 7, "steps": 3, "solver": "unipc", "grid": "karras"},
        {"guidance": "apg", "guidance_scale": 4.5, "apg_threshold": 0.1, "negative_prompt": "green"},
        {"guidance_interval": [0.1, 0.3], "flow_path": "vp", "weights": "master"},
        {"bucket": MODEL.buckets[1].name, "num_seeds": 2, "total_frames": 9},
    ],
    ids=str,
)
def test_what_a_clip_was_made_with_asks_for_the_same_clip(changes):
    for request in requests_of({"prompt": "a red dot", **changes}):
        row = row_of_form(form_of(request, CONTROLS), CONTROLS)
        assert all(isinstance(value, str) for value in row.values())
        assert [again.id for again in requests_of(json.loads(json.dumps(row)))] == [request.id]
        assert len(changed_in(request, CONTROLS)) == len(changes.keys() - {*OF_ROWS})


def test_a_clip_of_an_older_version_has_no_settings_to_take():
    (request,) = requests_of({"prompt": "a"})
    old = request.model_copy(update={"settings": None})
    assert changed_in(old, CONTROLS) == {}
    assert (is_of_form(request), is_of_form(old)) == (True, False)
    given = request.model_copy(update={"given": Given(total_frames=9)})
    other = request.model_copy(update={"given": Given(total_frames=9, clip=ImageFile(path="a.mp4", sha256="0"))})
    assert (is_of_form(given), is_of_form(other)) == (True, False)
