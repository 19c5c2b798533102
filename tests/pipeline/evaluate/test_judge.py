"""The judge recognises the attributes of generated shapes and says when it cannot."""

from collections import Counter

import numpy as np
import pytest

from data.synthetic import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    Combination,
    combinations,
    random_scene,
    render,
)
from data.video.codec import decode_clip, encode_clip
from data.video.resize import resize_and_crop
from pipeline.evaluate.judge import Judgement, judge_clip


@pytest.mark.slow
def test_the_judge_is_right_on_fresh_clips():
    """At least 99 % on each attribute, after the resizing and encoding that every clip goes through."""
    right: Counter[str] = Counter()
    num_clips = 288
    for index in range(num_clips):
        scene = random_scene(424_242, index, combinations())
        frames = resize_and_crop(render(scene, 36, 96)[::2][:17], 64, 64)
        right.update(judge_clip(decode_clip(encode_clip(frames, 8))).agrees(scene.combination))
    for attribute in ("colour", "direction", "shape"):
        assert right[attribute] >= 0.99 * num_clips, right


def test_the_judge_cannot_tell_where_there_is_nothing_to_tell():
    assert judge_clip(np.full((17, 64, 64, 3), 128, np.uint8)) == Judgement(None, None, None)
    still = np.repeat(render(random_scene(0, 0, combinations()), 1, 64), 17, axis=0)
    judgement = judge_clip(still)
    assert judgement.direction is None
    assert judgement.colour is not None


@pytest.mark.parametrize("wrong", ["colour", "direction", "shape"])
def test_a_wrong_attribute_is_noticed(wrong):
    scene = random_scene(0, 5, combinations())
    seen = judge_clip(render(scene, 17, 64))
    assert seen.agrees(scene.combination)["all"]
    others = {"colour": COLOURS, "direction": DIRECTIONS, "shape": SHAPES}[wrong]
    other = next(name for name in others if name != getattr(scene.combination, wrong))
    verdict = seen.agrees(Combination(**{**vars(scene.combination), wrong: other}))
    assert not verdict[wrong]
    assert not verdict["all"]
