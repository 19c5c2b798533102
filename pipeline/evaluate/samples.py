"""The samples of a run, measured and compared with the clips that it was trained on, by guidance scale."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.distributed.config import WorkersConfig
from pipeline.evaluate.clip_sets import ClipSet, ClipSetError, SampledClips, open_clips, sampled_clips
from pipeline.evaluate.comparison import MIN_CLIPS, Comparison, compare
from pipeline.evaluate.comparison_rows import copies_told, distance_tiles, figure_rows, nearest_pairs, uncorrected
from pipeline.evaluate.measure import Measured, Networks, measure_sets
from pipeline.evaluate.scores import clip_scores, shown_clips
from pipeline.report.figures import GalleryClip
from pipeline.report.run_report import ComparedSamples
from pipeline.run.shared_files import SHARED, RunFiles
from pipeline.sample.outputs import SampledClip

logger = logging.getLogger(__name__)

MAX_PAIRS = 8  # of samples and training clips that the report shows


@dataclass(frozen=True)
class MeasuredScale:
    """The samples of one guidance scale."""

    clips: SampledClips
    measured: Measured
    comparison: Comparison | None
    """With training clips; None: there are too few of either."""


@dataclass(frozen=True)
class MeasuredSamples:
    """The samples of a run."""

    reference: ClipSet
    real: Measured
    scales: dict[float, MeasuredScale]
    """By guidance scale, the highest first."""

    def shown(self) -> list[GalleryClip]:
        """The clips with their scores, as pages show them."""
        return [
            clip
            for each in self.scales.values()
            for clip in shown_clips(each.clips, clip_scores(each.measured, each.clips.names, self.real))
        ]

    def compared(self, features: Sequence[str], scale: float) -> list[ComparedSamples]:
        """What the report says of each scale that was compared.

        Args:
            features: names of the networks.
            scale: of which the nearest pairs are shown.
        """
        found = []
        for each, samples in self.scales.items():
            if samples.comparison is None:
                continue
            limit = MAX_PAIRS if each == scale else 0
            found.append(
                ComparedSamples(
                    guidance_scale=each,
                    tiles=distance_tiles(samples.comparison),
                    rows=figure_rows(samples.comparison),
                    notes=[f"Features: {'; '.join(features)}.", uncorrected(samples.comparison)],
                    copies=copies_told(samples.comparison.copies) + ".",
                    pairs=nearest_pairs(samples.comparison, samples.clips, self.reference, limit),
                    figures=samples.comparison.model_dump(mode="json"),
                )
            )
        return found


def measure_samples(
    samples_dir: Path,
    clips: Sequence[SampledClip],
    clips_dir: Path,
    networks: Networks,
    cache_dir: Path,
    workers: WorkersConfig,
    most_samples: int | None,
    most_clips: int,
    files: RunFiles = SHARED,
) -> MeasuredSamples:
    """Measure the samples of each guidance scale, on the connected Ray cluster, and compare them with training clips.

    Args:
        most_samples: of each scale; None: all of them.
        most_clips: of the training split; of all clips where it is empty.
        files: of the run that the folders belong to.

    Raises:
        FeatureError: a network cannot be used.
        VideoError: no clip can be read.
    """
    scales = sorted({clip.request.guidance_scale for clip in clips}, reverse=True)
    groups = [[clip for clip in clips if clip.request.guidance_scale == scale] for scale in scales]
    sets = [sampled_clips(samples_dir, group, most_samples or len(group)) for group in groups]
    try:
        reference = open_clips(clips_dir, most_clips, "train")
    except ClipSetError:  # no clip is for training
        reference = open_clips(clips_dir, most_clips, None)
    *measured, real = measure_sets([*sets, reference], networks, cache_dir, workers, files)
    found = {}
    for scale, samples, each in zip(scales, sets, measured, strict=True):
        is_enough = min(len(each.numbers), len(real.numbers)) >= MIN_CLIPS
        if not is_enough:
            logger.info(
                "  guidance %g: %d samples are not compared with %d training clips: at least %d of both are needed",
                scale,
                len(each.numbers),
                len(real.numbers),
                MIN_CLIPS,
            )
        comparison = compare(each, samples.names, real, reference.names) if is_enough else None
        found[scale] = MeasuredScale(samples, each, comparison)
    return MeasuredSamples(reference, real, found)


def scale_shown(clips: Sequence[SampledClip], wanted: float) -> float:
    """The guidance scale whose samples the report shows: the configured one, or that of most clips."""
    scales = Counter(clip.request.guidance_scale for clip in clips)
    return wanted if wanted in scales or not scales else scales.most_common(1)[0][0]
