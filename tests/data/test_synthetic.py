"""The world of shapes, and the judge that measures every figure the demo reports."""

import numpy as np

from data.synthetic import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZES,
    SPEEDS,
    combinations,
    held_out_combinations,
    random_scene,
    render,
    training_combinations,
)


def test_scenes_are_pure_functions_of_seed_and_index():
    allowed = training_combinations()
    assert random_scene(1, 7, allowed) == random_scene(1, 7, allowed)
    assert random_scene(1, 7, allowed) != random_scene(2, 7, allowed)
    scene = random_scene(1, 7, allowed)
    np.testing.assert_array_equal(render(scene, 5, 48), render(scene, 5, 48))


def test_held_out_combinations_are_new_triples_of_known_pairs():
    held_out, training = set(held_out_combinations()), set(training_combinations())
    assert held_out | training == set(combinations())
    assert not held_out & training
    assert len(held_out) == len(combinations()) // 4
    for first, second in (("colour", "shape"), ("colour", "direction"), ("shape", "direction")):
        known = {(getattr(c, first), getattr(c, second)) for c in training}
        assert all((getattr(c, first), getattr(c, second)) in known for c in held_out)
    assert {c.colour for c in held_out} == set(COLOURS)
    assert {c.shape for c in held_out} == set(SHAPES)
    assert {c.direction for c in held_out} == set(DIRECTIONS)


def test_captions_say_what_is_shown():
    allowed, phrasings = training_combinations(), set()
    for index in range(200):
        scene = random_scene(0, index, allowed)
        phrasings.add(scene.phrasing)
        words = scene.caption
        assert scene.combination.colour in words
        assert scene.combination.shape in words
        side = {"up": "top", "down": "bottom"}.get(scene.combination.direction, scene.combination.direction)
        assert scene.combination.direction in words or side in words
    assert len(phrasings) == 7


def test_shapes_stay_in_the_picture():
    """At both ends of its path, no shape reaches over the edge."""
    for index in range(200):
        scene = random_scene(3, index, combinations())
        radius, step = SIZES[scene.size], DIRECTIONS[scene.combination.direction]
        for progress in (-0.5, 0.5):
            for axis in (0, 1):
                centre = 0.5 + scene.offset[axis] + step[axis] * progress * SPEEDS[scene.speed]
                assert radius - 1e-9 <= centre <= 1 - radius + 1e-9, scene
