"""Sweeps: what is refused before anything starts, what is planned, and the command from clips to pages."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.overrides import ConfigError
from launch.sample_settings import SamplingConfig
from launch.sweep_plan import Requests, plan_sweep, read_varied
from pipeline.sample.config import SampleSection
from pipeline.sample.outputs import read_samples
from pipeline.sample.prompts import PromptError
from testing.commands import launch_here
from testing.html_page import Page
from testing.sample_faults import write_model
from testing.sampled import model_of

ROWS = [{"prompt": "a"}, {"prompt": "a"}, {"prompt": "b", "seed": 7}, {"prompt": "c", "solver": "euler"}]


def config(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> SamplingConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SamplingConfig(sample=SampleSection(prompts=str(path), **settings))


def test_every_combination_has_the_same_prompts_and_seeds(tmp_path):
    varied = read_varied(["steps=4,8", "sample.guidance_scale=1,3.5", "negative_prompt=null,'dark, red'"])
    assert varied == {"steps": [4, 8], "guidance_scale": [1, 3.5], "negative_prompt": [None, "dark, red"]}
    del varied["negative_prompt"]
    combinations, _ = plan_sweep(model_of(), config(tmp_path, ROWS, shift=2.0), varied)
    assert [each.name for each in combinations] == [
        "steps 4, guidance_scale 1",
        "steps 4, guidance_scale 3.5",
        "steps 8, guidance_scale 1",
        "steps 8, guidance_scale 3.5",
    ]
    found = [list(each.plan) for each in combinations]
    assert len({tuple((request.prompt, request.seed) for request in requests) for requests in found}) == 1
    assert len({request.seed for request in found[0]}) == 4
    requests = list(Requests([each.plan for each in combinations]))
    assert requests == [request for each in found for request in each]
    assert len({request.id for request in requests}) == 16
    assert [(request.settings.steps, request.guidance_scale) for request in requests[::4] if request.settings] == [
        *((4, 1), (4, 3.5), (8, 1), (8, 3.5))
    ]
    assert {(request.settings.shift, request.settings.solver) for request in requests if request.settings} == {
        *((2.0, "heun"), (2.0, "euler"))
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["steps"], "write SETTING=VALUE,VALUE"),
        (["stps=4"], "did you mean steps?"),
        (["batch=4,8"], "no setting batch that can be varied"),
        (["steps=4", "sample.steps=8"], "steps is varied twice"),
        (["steps=4,8,4"], "a value is there twice"),
        (["solver=[heun"], "quote text that has commas"),
        ([f"steps={','.join(map(str, range(1, 41)))}", f"shift={','.join(map(str, range(1, 41)))}"], "1600 combi"),
        ([], "nothing is varied"),
    ],
)
def test_options_that_are_no_settings_are_refused(options: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        read_varied(options)


def test_all_combinations_that_cannot_work_are_named(tmp_path):
    varied = read_varied(["solver=heun,dopri5", "steps=0,4", "schedule=full_sequence,pyramid"])
    with pytest.raises(ConfigError) as refused:
        plan_sweep(model_of(), config(tmp_path, ROWS[:3]), varied)
    message = str(refused.value)
    assert "7 of 8 combinations cannot be sampled" in message
    assert "solver heun, steps 0, schedule full_sequence: it cannot be used: steps: input should be greater" in message
    assert "solver heun, steps 4, schedule pyramid: sample.schedule is 'pyramid', but" in message
    assert "solver dopri5, steps 4, schedule full_sequence: steps: the solver dopri5 chooses its own steps" in message
    with pytest.raises(ConfigError, match=r"guidance plain, apg_eta 0: apg_eta: only the rule apg reads it"):
        plan_sweep(model_of(), config(tmp_path, ROWS[:3]), read_varied(["guidance=plain,apg", "apg_eta=0,1"]))


def test_rows_that_set_what_is_varied_and_too_few_are_refused(tmp_path):
    with pytest.raises(PromptError, match="line 4: solver is varied by the sweep; leave the column out"):
        plan_sweep(model_of(), config(tmp_path, ROWS), {"solver": ["heun"]})
    with pytest.raises(ConfigError, match="asks for 3 clips, and a combination needs at least 4"):
        plan_sweep(model_of(), config(tmp_path, ROWS[:3]), {"solver": ["heun"]})
    with pytest.raises(ConfigError, match="vary guidance_scale"):
        plan_sweep(model_of(), config(tmp_path, ROWS, compare_unguided=True), {"steps": [4]})
    with pytest.raises(ConfigError, match=r"sample\.outputs: webdataset has no place in a sweep"):
        plan_sweep(model_of(), config(tmp_path, ROWS, outputs=["mp4", "webdataset"]), {"steps": [4]})


@pytest.mark.slow
def test_the_command_writes_figures_and_pages_and_makes_nothing_twice(cluster, mixed_dataset, tmp_path):
    rows = tmp_path / "rows.jsonl"
    expect = {"colour": "red", "shape": "circle", "direction": "left"}
    rows.write_text("".join(json.dumps({"prompt": f"prompt {n}", "expect": expect}) + "\n" for n in range(5)))
    output = tmp_path / "sweep"
    command = ("sweep", str(write_model(tmp_path)), str(rows), "--output", str(output), "--reference")
    command += (str(mixed_dataset), "--vary", "guidance_scale=1,3", "--vary", "solver=euler,heun", "--set")
    made = launch_here(*command, "sample.steps=2")
    assert made.returncode == 0, made.stderr + made.stdout
    result = json.loads((output / "sweep.json").read_text())
    assert result["settings"]["steps"] == 2
    assert [(each["network_calls"], each["network_evaluations"]) for each in result["combinations"]] == [
        *((2, 2), (4, 4), (2, 4), (4, 8))
    ]
    assert all(each["num_clips"] == 5 and each["adherence"]["all"]["value"] == 0 for each in result["combinations"])
    assert set(result["fronts"]) == {"adherence", "frechet_video", "kernel_video", "frechet_frames"}
    assert result["fronts"]["adherence"] == [0]  # none is right, so the cheapest is not beaten
    page = Page(output / "index.html")
    assert len(page.all("video")) == 16
    assert [cell for cell in page.text_in("td") if "solver" in cell] == [
        *("guidance_scale 1, solver euler", "guidance_scale 1, solver heun"),
        *("guidance_scale 3, solver euler", "guidance_scale 3, solver heun"),
    ]
    assert str(tmp_path) not in (output / "index.html").read_text()
    before = {path: path.stat().st_mtime_ns for path in [*output.glob("clips/*.mp4"), *output.glob("measured/*")]}
    assert len(before) == 20 + 5
    again = launch_here(*command, "sample.steps=2")
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((output / "sweep.json").read_text()) == result
    (victim, *_) = sorted(output.glob("clips/*.mp4"))
    victim.unlink()
    assert launch_here(*command, "sample.steps=2").returncode == 0
    assert len(read_samples(output / "clips")) == 20
    assert json.loads((output / "sweep.json").read_text()) == result
