"""A sweep as its page and the console show it."""

from collections.abc import Iterator, Mapping, Sequence

from data.errors import VideoError
from pipeline.evaluate.clip_sets import SampledClips
from pipeline.evaluate.intervals import Estimate
from pipeline.evaluate.sweep import MEASURES, Measure, SweptCombination, known_measures, name_of
from pipeline.report.sweep_page import Front, Point, SweepClip, SweepPage, SweepRow

DRIFTS = ("coloured_area", "brightness", "contrast", "motion", "flicker")
"""Statistics that the table shows; sweep.json has all."""
CLIPS_SHOWN = 4  # of each combination, of the same prompts
DIFFERENT = "*"  # beside a figure whose difference from the reference is no chance


def sweep_page(
    name: str,
    combinations: Sequence[SweptCombination],
    fronts: Mapping[str, Sequence[int]],
    sets: Sequence[SampledClips],
    networks: Sequence[str],
) -> SweepPage:
    """What the page shows; clips that cannot be read are left out."""
    measures = known_measures(combinations)
    return SweepPage(
        name=name,
        notes=[f"Features: {'; '.join(networks)}."],
        fronts=[_front(measure, combinations, fronts[measure.name]) for measure in measures],
        columns=[*(measure.title for measure in measures), *(each.replace("_", " ") for each in DRIFTS)],
        has_reference=combinations[0].comparison is not None,
        rows=[
            SweepRow(
                name=name_of(each.settings),
                calls=each.network_calls,
                evaluations=each.network_evaluations,
                num_clips=each.num_clips,
                num_missing=each.num_missing,
                cells=[*(_told(measure, each) for measure in measures), *(_drift(each, what) for what in DRIFTS)],
                is_on_front=any(number in front for front in fronts.values()),
                clips=list(_clips(clips)),
            )
            for number, (each, clips) in enumerate(zip(combinations, sets, strict=True))
        ],
    )


def console_lines(combinations: Sequence[SweptCombination], fronts: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """A line for each combination, then the best ones of each measure."""
    measures = known_measures(combinations)
    for each in combinations:
        figures = ", ".join(f"{measure.name} {_told(measure, each)}" for measure in measures)
        missing = f", {each.num_missing} clips missing" if each.num_missing else ""
        yield f"  {name_of(each.settings)}: {each.network_evaluations:.4g} evaluations a clip, {figures}{missing}"
    for measure in MEASURES:
        if measure.name in fronts:
            told = "; ".join(name_of(combinations[number].settings) for number in fronts[measure.name])
            yield f"  not beaten in {measure.title}, cheapest first: {told}"


def _front(measure: Measure, combinations: Sequence[SweptCombination], front: Sequence[int]) -> Front:
    points = []
    for each in combinations:
        estimate = measure.of(each)
        assert estimate is not None
        points.append(Point(each.network_evaluations, estimate.corrected, estimate.low, estimate.high))
    return Front(measure.title, measure.better, points, list(front))


def _told(measure: Measure, each: SweptCombination) -> str:
    estimate = measure.of(each)
    assert estimate is not None
    return _percent(estimate) if measure.name == "adherence" else str(estimate)


def _percent(share: Estimate) -> str:
    return f"{100 * share.value:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}]"


def _drift(each: SweptCombination, name: str) -> str:
    """The mean of a statistic; with a reference, how much more of it there is than in real clips."""
    mean = each.statistics[name]
    if each.comparison is None:
        return f"{mean.corrected:.3g}"
    drift = each.comparison.drifts[name]
    real, difference = drift.reference.corrected, drift.difference
    is_different = not difference.low <= 0 <= difference.high
    change = f"{100 * difference.corrected / real:+.0f} %" if real else f"{difference.corrected:+.3g}"
    return f"{mean.corrected:.3g} ({change}){DIFFERENT if is_different else ''}"


def _clips(clips: SampledClips) -> Iterator[SweepClip]:
    for number, name in enumerate(clips.names[:CLIPS_SHOWN]):
        try:
            content = (clips.folder / clips.clips[number].file).read_bytes()
            clips.read(number)
        except (OSError, VideoError):
            continue
        yield SweepClip(content, name.text)
