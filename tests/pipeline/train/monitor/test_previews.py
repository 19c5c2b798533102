"""Previews are sampled with the chosen weights, alike on any number of workers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.video.codec import decode_clip, encode_clip
from pipeline.checkpoint.read import load_weights, open_checkpoint
from pipeline.run.weight_names import WeightsName
from pipeline.train.monitor.previews import fixed_prompts
from pipeline.train.tasks.flow_batch import FlowQuery
from testing.watched import STAGES, STILL, task_of


def sampling_module(task, run_dir: Path, which: WeightsName):
    """A checkpoint's network, which answers in the precision it was trained in."""
    module = task.build().eval()
    module.load_state_dict(load_weights(open_checkpoint(run_dir), which))

    def answer(query: FlowQuery):
        with torch.autocast("cpu", enabled=False):
            return module(query)

    return answer


@pytest.mark.slow
def test_clips_are_sampled_with_the_chosen_average(watched_runs):
    """Those after the last step, made again by a plain module from the checkpoint."""
    task = task_of(watched_runs / "data")
    average, other = (sampling_module(task, watched_runs / "alone", which) for which in ("power-0.10", "ema"))
    previewer = task.previewer(torch.device("cpu"))
    prompts = fixed_prompts(watched_runs / "data")
    assert prompts == ["clip 0", "clip 3", "clip 6", "clip 9"]
    for number, prompt in enumerate(prompts):
        frames = previewer.clip(average, prompt, number)
        assert frames.shape == (5, 32, 32, 3)
        name = f"clip-{prompt[5:]}-{number:02}.mp4"
        for run in ("alone", "watched-0"):
            for step in (4, 8):
                assert (watched_runs / run / "samples" / f"step_{step:07}" / name).is_file()
        written = (watched_runs / "alone" / "samples" / "step_0000008" / name).read_bytes()
        assert abs(decode_clip(written).astype(int) - decode_clip(encode_clip(frames, 8))).max() <= 1
        assert (frames != previewer.clip(other, prompt, number)).any()


@pytest.mark.slow
def test_clips_are_sampled_as_the_run_samples(watched_runs):
    sampling = {"solver": "rk4", "steps": 3, "guidance_scale": 1.0, "bucket": STILL.name}
    previewer = replace(task_of(watched_runs / "data"), sampling=tuple(sampling.items())).previewer(torch.device("cpu"))
    seen: list[FlowQuery] = []

    def network(query: FlowQuery) -> dict[str, torch.Tensor]:
        seen.append(query)
        return {"predicted": -query.x_t}

    assert previewer.clip(network, "clip 0", 0).shape[0] == STILL.num_frames
    assert len(seen) == 12


@pytest.mark.slow
@pytest.mark.parametrize("run", ["together", *(f"watched-{stage}" for stage in STAGES)])
def test_clips_on_two_workers_are_those_of_one(watched_runs, run):
    of_step = [watched_runs / name / "samples" / "step_0000004" for name in ("alone", run)]
    names = [sorted(path.name for path in folder.iterdir()) for folder in of_step]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = (decode_clip((folder / name).read_bytes()).astype(int) for folder in of_step)
        assert abs(one - two).max() <= 8  # of 255: the weights were summed in another order
