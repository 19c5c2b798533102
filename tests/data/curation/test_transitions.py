"""Cuts, fades and cross-fades of drawn films are found; flashes, fast pans and zooms are none."""

import numpy as np
import pytest

from data.curation.transitions import block_means, edge_energy, find_transitions, merged
from data.video.spans import Transition
from testing.edits import MOTIONS, add_flash, draw_shot, join

FPS = 24


def transitions_of(frames):
    edges = np.array([edge_energy(frame) for frame in frames])
    return find_transitions(np.stack([block_means(frame) for frame in frames]), edges, FPS)


@pytest.fixture(scope="module")
def shots():
    generator = np.random.default_rng(77)
    return {motion: [draw_shot(generator, 90, motion) for _ in range(2)] for motion in MOTIONS}


def test_block_means_are_the_means_of_the_blocks():
    frame = np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)
    means = frame.reshape(12, 2, 16, 3, 3).mean((1, 3))
    assert np.abs(block_means(frame).reshape(12, 16, 3) - means).max() <= 0.5


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_cut_is_found_at_its_frame(shots, motion):
    frames, known = join(shots[motion], ["cut"], [0])
    assert transitions_of(frames) == [Transition(known[0].start, known[0].end)]


@pytest.mark.parametrize("colour", ["black", "red"])
def test_a_fade_through_one_colour_is_found_with_all_its_frames(shots, colour):
    frames, (edit,) = join(shots["drift"], [colour], [24])
    (found,) = transitions_of(frames)
    assert abs(found.start - edit.start) <= 2
    assert abs(found.end - edit.end) <= 2


@pytest.mark.parametrize("length", [12, 24, 48])
def test_a_cross_fade_is_found_with_its_middle(shots, length):
    frames, (edit,) = join(shots["still"], ["dissolve"], [length])
    (found,) = transitions_of(frames)
    assert abs(found.start - edit.start) <= length / 4
    assert abs(found.end - edit.end) <= length / 4


@pytest.mark.parametrize("length", [12, 24, 48])
@pytest.mark.parametrize("motion", ["pan", "zoom"])
def test_a_cross_fade_between_fast_shots_is_found(shots, motion, length):
    frames, (edit,) = join(shots[motion], ["dissolve"], [length])
    (found,) = transitions_of(frames)
    assert abs(found.start - edit.start) <= length / 3
    assert abs(found.end - edit.end) <= length / 3


def test_edge_energy_is_the_mean_square_of_differences():
    frame = np.random.default_rng(0).integers(0, 256, (24, 48, 3), np.uint8)
    grey = frame.mean(2)
    expected = np.square(np.diff(grey, axis=0)).mean() + np.square(np.diff(grey, axis=1)).mean()
    assert edge_energy(frame) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("motion", MOTIONS)
def test_one_shot_has_no_transition(shots, motion):
    assert transitions_of(shots[motion][0]) == []


@pytest.mark.parametrize(("strength", "num_frames"), [(0.6, 1), (0.8, 4), (1.0, 2)])
def test_a_flash_is_no_transition(shots, strength, num_frames):
    assert transitions_of(add_flash(shots["drift"][0], 60, num_frames, strength)) == []


def test_transitions_that_touch_are_one():
    found = [Transition(5, 9), Transition(2, 5), Transition(20, 20), Transition(7, 8)]
    assert merged(found) == [Transition(2, 9), Transition(20, 20)]
