"""The survey of a dataset: counts, histograms and captions."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.dataset.index import read_index
from data.dataset.survey import MAX_BARS, numeric_bars, pick_rows, survey_dataset
from testing.datasets import SMALL, WIDE, record, write_dataset


def test_every_count_adds_up(mixed_dataset):
    survey = survey_dataset(mixed_dataset)
    rows = read_index(mixed_dataset)
    assert survey.manifest.num_samples == len(rows) == 40
    assert [(b.bucket, b.num_samples, b.num_train, b.num_validation) for b in survey.manifest.buckets] == [
        (SMALL, 32, 24, 8),
        (WIDE, 8, 6, 2),
    ]
    for histogram in survey.histograms:
        assert sum(bar.count for bar in histogram.bars) == 40, histogram.name
        assert len({bar.label for bar in histogram.bars}) == len(histogram.bars) <= MAX_BARS
    length, size, source, _ = survey.histograms
    assert {bar.label: bar.count for bar in length.bars} == {"0.3": 8, "0.625": 32}
    assert [(bar.label, bar.count) for bar in size.bars] == [("32 x 32", 32), ("32 x 64", 8)]
    assert [(bar.label, bar.count) for bar in source.bars] == [("128 x 128", 32), ("128 x 256", 8)]
    assert survey.splits == Counter(row.split for row in rows)
    assert survey.decoders == {"decord": 30, "pyav": 10}
    assert survey.num_captions == 40
    assert [(entry.example.source, entry.example.reason, entry.count) for entry in survey.left_out] == [
        ("a.mp4", "undecodable", 2),
        ("c.mp4", "empty_file", 1),
    ]


@given(st.one_of([st.lists(st.integers(0, high), min_size=1, max_size=200) for high in (50, 2**40)]), st.booleans())
def test_bars_hold_every_value_once(values, whole):
    bars = numeric_bars(np.array(values, np.int64) if whole else np.array(values) / 8)
    assert sum(bar.count for bar in bars) == len(values)
    assert len(bars) <= MAX_BARS
    assert len({bar.label for bar in bars}) == len(bars)


def test_bars_are_round_and_a_long_tail_shares_the_last():
    bars = numeric_bars(np.array([*range(100)] * 10 + [5000]))
    assert [(bar.label, bar.count) for bar in bars] == [
        *((f"{10 * n} to {10 * n + 9}", 100) for n in range(10)),
        ("100 and more", 1),
    ]
    assert [(bar.label, bar.count) for bar in numeric_bars(np.array([3, 1, 3]))] == [("1", 1), ("3", 2)]
    assert numeric_bars(np.array([], np.int64)) == ()
    nearly_equal = np.array([17 / 29.97, 17 * 1001 / 30000, 17 / 8])
    assert [(bar.label, bar.count) for bar in numeric_bars(nearly_equal)] == [("0.567", 2), ("2.125", 1)]
    tenths = numeric_bars(np.arange(30) / 10)  # 0.3 / 0.1 is less than 3
    assert [(bar.label, bar.count) for bar in tenths] == [(f"{n / 2:g} to {n / 2 + 0.5:g}", 5) for n in range(6)]


def test_the_commonest_captions_are_found_and_the_first_of_equals_comes_first(tmp_path):
    captions = ["b", "a", "c", "a", "d", "b"]
    samples = [(record(number, caption=caption), b"x") for number, caption in enumerate(captions)]
    survey = survey_dataset(write_dataset(tmp_path, samples))
    assert survey.captions == {"b": 2, "a": 2, "c": 1}
    assert list(survey.captions) == ["b", "a", "c"]
    assert survey.num_captions == 4


def test_rows_are_chosen_evenly(mixed_dataset, monkeypatch):
    everything = list(read_index(mixed_dataset))
    assert pick_rows(mixed_dataset, 1000) == everything
    assert pick_rows(mixed_dataset, 4) == [everything[place] for place in (0, 13, 26, 39)]
    assert pick_rows(mixed_dataset, 1) == everything[:1]
    monkeypatch.setattr("data.dataset.survey.BATCH_ROWS", 7)
    assert pick_rows(mixed_dataset, 4) == [everything[place] for place in (0, 13, 26, 39)]
