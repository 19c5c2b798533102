"""The plan that is printed before a run starts."""

from pathlib import Path

import pytest

from launch.config import load_config
from launch.plan import describe_plan
from launch.stages import NAMES as STAGES
from pipeline.distributed.config import WorldSizeError
from pipeline.train.plan import describe_elastic


def test_the_plan_names_every_stage_and_the_sizes():
    plan = describe_plan(load_config(Path("demo")), STAGES)
    assert all(stage in plan for stage in STAGES)
    assert "of 80 tokens" in plan
    assert "17 frames, 64 x 64, 8 fps" in plan
    several = "[{num_frames: 17, height: 64, width: 64, fps: 8}, {num_frames: 1, height: 64, width: 64, fps: 8}]"
    plan = describe_plan(load_config(Path("demo"), [f"data.buckets={several}"]), STAGES)
    assert "1500 steps of 32 clips of 80 tokens (17x64x64@8) or 160 clips of 16 tokens (1x64x64@8)" in plan
    plan = describe_plan(load_config(Path("demo"), ["data.choose_buckets={max_aspects: 2}"]), STAGES)
    assert "clips of 17 frames in up to 2 aspect ratios, chosen from the videos" in plan


def test_it_is_said_before_the_start():
    said = describe_elastic("train dit", 2, 4, [1, 2, 4])
    assert said == (
        "  elastic: train dit continues with 2, 3 (2 work, 1 wait), 4 workers, whatever the cluster has room for"
    )
    with pytest.raises(WorldSizeError, match=r"min_workers is 3, but the batches of train dit do not .* use 2"):
        describe_elastic("train dit", 3, 4, [1, 2, 4])
