"""What was measured of the clips of a dataset, from the commits of its shards, for its page.

Spans that a threshold left out are among them. At most `MAX_COMMITS` shards are read, evenly chosen.
"""

from collections import Counter
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from data.curation.config import FilterConfig, ModelsConfig
from data.dataset.survey import Histogram, numeric_bars
from pipeline.ingest.commit import ShardCommit
from pipeline.ingest.thresholds import ALL_THRESHOLDS
from pipeline.report.dataset_page import Measured, MeasuredSpans
from pipeline.run.commits import SHARD_PATTERN, read_commit
from pipeline.run.stage_record import read_stage_record

MAX_COMMITS = 64
UNITS = {
    "brightness": "mean, from 0 to 255",
    "change": "mean between frames, from 0 to 255",
    "bars": "share of the picture",
    "text": "share of the picture",
    "motion": "shorter sides of the picture a second",
    "sharpness": "from 0 (blurred) to 1",
    "clipped": "share of the pixels",
    "logo": "share of the picture",
    "aesthetic": "score",
    "similarity": "to the caption, from -1 to 1",
}


def measured_spans(dataset_dir: Path) -> MeasuredSpans:
    """What the commits and the record of the stage tell; damaged ones tell nothing."""
    paths = sorted(dataset_dir.glob(SHARD_PATTERN))
    chosen = [paths[at] for at in np.unique(np.linspace(0, len(paths) - 1, min(MAX_COMMITS, len(paths))).astype(int))]
    values: dict[str, list[float]] = {}
    reasons, num_spans, num_shards = Counter[str](), 0, 0
    for path in chosen:
        commit = read_commit(ShardCommit, path)
        if commit is None:
            continue
        num_shards += 1
        for report in commit.reports:
            reasons.update(rejection.reason for rejection in report.filtered)
            num_spans += len(report.measured)
            for span in report.measured:
                for name, value in (*span.measures.items(), *span.scores.items()):
                    values.setdefault(name, []).append(value)
    limits = _limits(dataset_dir)
    measures = tuple(_measured(name, np.array(values[name]), limits, reasons) for name in UNITS if name in values)
    return MeasuredSpans(measures, num_spans, num_shards)


def _measured(name: str, values: np.ndarray, limits: dict[str, float], reasons: Counter[str]) -> Measured:
    told = tuple(
        f"{threshold.setting} {limits[threshold.setting]:g} left {reasons[threshold.reason]:,} out"
        for threshold in ALL_THRESHOLDS
        if threshold.compared == name and threshold.setting in limits
    )
    low, median, high = np.percentile(values, (1, 50, 99)).tolist()
    return Measured(Histogram(name, UNITS[name], numeric_bars(values)), told, median, low, high)


def _limits(dataset_dir: Path) -> dict[str, float]:
    """The thresholds that the dataset was made with, by setting; none where the record of the stage is missing."""
    record = read_stage_record(dataset_dir)
    config = record.inputs.get("config") if record is not None else None
    if not isinstance(config, dict):
        return {}
    try:
        parts = {
            "filters": FilterConfig.model_validate(config.get("filters", {})),
            "models": ModelsConfig.model_construct(**config.get("models", {})),  # without the files of the models
        }
    except (ValidationError, TypeError):
        return {}
    found = {}
    for threshold in ALL_THRESHOLDS:
        part, name = threshold.setting.split(".")
        value = getattr(parts[part], name)
        if isinstance(value, int | float):
            found[threshold.setting] = float(value)
    return found
