"""Filters, duplicates and scene cuts: on clips that are what they are called."""

import numpy as np
import pytest

from data.curation.config import FilterConfig
from data.curation.filters import Duplicates, bar_share, failed_filter, perceptual_hash
from data.curation.scenes import find_cuts
from data.dataset.buckets import Bucket
from data.errors import VideoError
from data.synthetic import combinations, random_scene, render
from data.video.codec import decode_clip, encode_clip
from data.video.decoders import timelines
from data.video.extract import read_spans
from data.video.probe import probe_video
from data.video.spans import Stretch, plan_spans

EVERY_FILTER = FilterConfig(static_difference=0.5, black_luma=8, letter_boxed_share=0.1, duplicate_bits=6)


def moving(seed: int = 0, side: int = 64) -> np.ndarray:
    return render(random_scene(0, seed, combinations()), 9, side)


def failed(frames: np.ndarray, config: FilterConfig = EVERY_FILTER) -> str | None:
    result = failed_filter(frames, config)
    return result[0] if result else None


def test_each_filter_knows_its_clips_and_no_other():
    clip = np.clip(moving().astype(int) + 40, 0, 255).astype(np.uint8)
    boxed = clip.copy()
    boxed[:, :8] = boxed[:, -8:] = 0
    pillars = clip.copy()
    pillars[:, :, :5] = 16
    assert failed(clip) is None
    assert failed(np.zeros_like(clip)) == "black"
    assert failed(np.repeat(clip[:1], 9, axis=0)) == "static"
    assert failed(boxed) == failed(decode_clip(encode_clip(boxed, 8))) == "letter_boxed"
    assert bar_share(boxed.mean(-1)) == pytest.approx(16 / 64)
    assert bar_share(pillars.mean(-1)) == pytest.approx(5 / 64)
    for frames in (np.zeros_like(clip), np.repeat(clip[:1], 9, axis=0), boxed):
        assert failed(frames, FilterConfig()) is None  # off by default


def test_a_video_smaller_than_the_limit_is_refused(clips_dir):
    path = clips_dir / "robust_moviepy" / "-video-with-dash-.mp4"
    bucket = Bucket(num_frames=5, height=32, width=32, fps=4)
    with pytest.raises(VideoError, match=r"1 x 1 pixels, and the shorter side needs 16") as caught:
        read_spans(path, [bucket], 1, min_side_pixels=16)
    assert caught.value.reason == "too_small"


def test_the_hash_survives_encoding_and_scaling_and_tells_clips_apart():
    clips = [moving(seed, 96) for seed in range(12)]
    hashes = [perceptual_hash(clip) for clip in clips]
    again = [perceptual_hash(decode_clip(encode_clip(clip, 8, crf=28))) for clip in clips]
    same = [(a ^ b).bit_count() for a, b in zip(hashes, again, strict=True)]
    other = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert max(same) < min(other)


def test_duplicates_are_found_exactly_as_by_comparing_all():
    random = np.random.default_rng(0)
    values = [int.from_bytes(random.bytes(23), "big") for _ in range(60)]
    values += [
        value ^ (1 << int(a)) ^ (1 << int(b))
        for value, (a, b) in zip(values, random.integers(0, 184, (60, 2)), strict=True)
    ]
    for bits in (0, 1, 2, 5):
        seen, kept = Duplicates(bits), []
        for value in values:
            expected = any((value ^ other).bit_count() <= bits for other in kept)
            assert (seen.find(value) is not None) == expected
            if not expected:
                seen.keep(value, str(value))
                kept.append(value)


def test_no_clip_reaches_across_a_cut_or_out_of_its_stretch():
    times, bucket = np.arange(200) / 25, Bucket(num_frames=5, height=32, width=32, fps=4)
    cuts = [37, 90, 100, 160]
    for span in plan_spans(times, (64, 64), [bucket], cuts):
        assert not [cut for cut in cuts if span.indices[0] < cut <= span.indices[-1]]
        assert times[span.indices[0]] <= span.start_seconds + 1e-3
    assert [span.start_seconds for span in plan_spans(times, (64, 64), [bucket], cuts)] == [
        0.0,
        37 / 25,
        4.0,
        5.25,
        160 / 25,
    ]
    inside = plan_spans(times, (64, 64), [bucket], stretch=Stretch(2.0, 5.0))
    assert [span.start_seconds for span in inside] == [2.0, 3.25]
    assert all(2.0 <= times[i] < 5.0 for span in inside for i in span.indices)
    with pytest.raises(VideoError, match=r"shows 0\.90 s of video"):
        plan_spans(times, (64, 64), [bucket], stretch=Stretch(1.0, 1.9))


def test_scene_cuts_of_a_film_made_of_two(tmp_path):
    scenes = [np.full((length, 64, 64, 3), level, np.uint8) for length, level in ((12, 20), (9, 130), (9, 240))]
    path = tmp_path / "two.mp4"
    path.write_bytes(encode_clip(np.concatenate(scenes), 8))
    timeline = next(timelines(path, probe_video(path)))
    assert find_cuts(timeline) == [12, 21]
    bucket = Bucket(num_frames=9, height=32, width=32, fps=8)
    spans = read_spans(path, [bucket], 9, find_cuts=find_cuts)
    assert [span.start_seconds for span in spans] == [0.0, 12 / 8, 21 / 8]
