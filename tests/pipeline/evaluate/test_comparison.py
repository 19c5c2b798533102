"""Comparisons of sets whose answer is known."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from pipeline.evaluate.clip_sets import ClipName
from pipeline.evaluate.comparison import compare, find_copies, mean_pair_distance, paired_rows
from pipeline.evaluate.measure import Measured
from pipeline.evaluate.scores import clip_scores
from pipeline.evaluate.statistics import STATISTICS
from pipeline.report.figures import ATTRIBUTES


def measured(number: int, seed: int, shift: float = 0.0, similarity: float = float("nan")) -> Measured:
    generator = np.random.default_rng(seed)
    return Measured(
        numbers=np.arange(number),
        features=generator.normal(size=(number, 4)) + shift,
        frame_features=generator.normal(size=(number, 2, 3)) + shift,
        statistics=generator.normal(size=(number, len(STATISTICS))) + shift,
        similarity=np.full(number, similarity),
        right=np.full((number, len(ATTRIBUTES)), np.nan),
    )


def names(number: int, pair: str = "") -> list[ClipName]:
    return [ClipName(f"{index}", f"text {index // 2}", pair and f"{pair} {index}") for index in range(number)]


def test_a_set_beside_itself_has_no_distance_and_no_differences():
    clips = measured(30, 0)
    found = compare(clips, names(30, "a"), clips, names(30, "a"))
    assert found.frechet_video.value == pytest.approx(0, abs=1e-9)
    assert found.frechet_frames.value == pytest.approx(0, abs=1e-9)
    assert all(drift.difference.value == 0 for drift in (*found.drifts.values(), found.diversity))
    assert found.num_pairs == 30
    assert all((estimate.low, estimate.high) == (0, 0) for estimate in found.paired.values())
    assert {pair.distance for pair in found.copies.nearest} == {0.0}
    assert found.copies.share_below == 1.0


def test_a_shift_is_found_in_every_figure():
    ours, theirs = measured(60, 0, shift=3.0, similarity=0.5), measured(80, 1, similarity=0.2)
    found = compare(ours, names(60), theirs, names(80))
    assert found.frechet_video.low > 4 * 3**2 / 2
    assert found.kernel_video.low > 0
    assert found.frechet_frames.low > 3 * 3**2 / 2
    for drift in found.drifts.values():
        assert drift.difference.low < 3 < drift.difference.high
        assert drift.difference.corrected == pytest.approx(drift.samples.value - drift.reference.value)
    assert found.similarity is not None
    assert found.similarity.difference.value == pytest.approx(0.3)
    assert found.copies.share_below == 0
    assert (found.num_pairs, found.paired) == (0, {})


def test_similarity_is_left_out_where_one_set_has_none():
    assert compare(measured(8, 0, similarity=0.1), names(8), measured(8, 1), names(8)).similarity is None


def test_pairs_are_clips_of_one_prompt_and_seed_whatever_their_order():
    first, second = paired_rows(["a", "b", "", "c", "d", "d"], ["c", "", "x", "a", "d"])
    assert (first.tolist(), second.tolist()) == ([0, 3], [3, 0])  # "d" is in the first twice


def test_paired_differences_are_more_exact_than_those_of_the_sets():
    ours = measured(40, 0)
    theirs = Measured(**{**vars(ours), "statistics": ours.statistics + 0.01})
    found = compare(ours, names(40, "p"), theirs, names(40, "p"))
    estimate, drift = found.paired["motion"], found.drifts["motion"].difference
    assert estimate.corrected == pytest.approx(-0.01)
    assert estimate.high - estimate.low < 1e-9 < drift.high - drift.low


def test_diversity_is_the_mean_over_pairs():
    corners = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert mean_pair_distance(cdist(corners, corners)) == pytest.approx((5 + 0 + 5) / 3)


def test_diversity_of_one_prompt_is_smaller_where_its_samples_are_alike():
    clips = measured(40, 0)
    alike = Measured(**{**vars(clips), "features": np.repeat(clips.features[::2], 2, axis=0)})
    found = compare(alike, names(40), clips, names(40))
    assert found.same_prompt_diversity is not None
    assert found.same_prompt_diversity.value == 0
    assert found.diversity.samples.value > 1
    singles = compare(clips, [ClipName(f"{i}", f"{i}", "") for i in range(40)], clips, names(40))
    assert singles.same_prompt_diversity is None


def test_copies_are_the_samples_nearer_than_clips_of_the_reference_are_to_each_other():
    reference = np.arange(100, dtype=float)[:, None] * 10
    samples = np.array([[500.001], [255.0], [740.0]])
    found = find_copies(samples, ["near", "between", "equal"], reference, [f"{i}" for i in range(100)])
    assert found.threshold == 10
    assert [(pair.sample, pair.reference) for pair in found.nearest[:2]] == [("equal", "74"), ("near", "50")]
    assert found.nearest[-1].distance == 5
    assert found.share_below == 1.0
    assert find_copies(samples + 1000, ["a", "b", "c"], reference, [f"{i}" for i in range(100)]).share_below == 0


def test_adherence_is_a_share_of_the_judged_and_paired_by_mcnemar():
    ours, theirs = measured(20, 0), measured(20, 1)
    ours.right[:18], theirs.right[:18] = 1.0, 1.0
    theirs.right[:6, -1] = 0.0
    found = compare(ours, names(20, "p"), theirs, names(20, "p"))
    assert {name: share.value for name, share in found.adherence.items()} == dict.fromkeys(ATTRIBUTES, 1.0)
    assert 0.8 < found.adherence["all"].low < found.adherence["all"].high == 1.0
    assert found.paired["right in all"].value == pytest.approx(6 / 18)
    assert found.paired["right in all"].p_value == pytest.approx(2 * 0.5**6)
    assert found.paired["right in colour"].p_value == 1.0
    assert compare(measured(8, 0), names(8), measured(8, 1), names(8)).adherence == {}


def test_scores_of_clips_are_what_was_measured_of_each():
    ours, theirs = measured(6, 0, similarity=0.5), measured(8, 1)
    ours.right[2], ours.right[3] = 1.0, [1.0, 1.0, 0.0, 0.0]
    found = clip_scores(ours, names(6), theirs)
    assert list(found) == [f"{number}" for number in range(6)]
    assert [each.right for each in found.values()] == [None, None, True, False, None, None]
    scale = theirs.features.std(0)
    assert found["4"].scores == dict(zip(STATISTICS, ours.statistics[4], strict=True)) | {
        "similarity": 0.5,
        "nearest": pytest.approx(np.sqrt(np.square((ours.features[4] - theirs.features) / scale).sum(1)).min()),
    }
    assert set(clip_scores(theirs, names(8))["0"].scores) == set(STATISTICS)
