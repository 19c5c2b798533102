"""Sample a checkpoint with every combination of some settings, and say what each is good for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from pydantic import JsonValue

from data.dataset.manifest import MANIFEST_NAME
from data.files.publish import publish_text
from data.records import Record
from launch.cluster import connected
from launch.outputs import Output
from launch.overrides import ConfigError, Override
from launch.sample_settings import SamplingConfig, read_settings
from launch.sweep_plan import Combination, Requests, plan_sweep
from pipeline.evaluate.clip_sets import ClipSet, open_clips, sampled_clips
from pipeline.evaluate.comparison import MIN_CLIPS, compare
from pipeline.evaluate.measure import Networks, measure_sets
from pipeline.evaluate.network_calls import NetworkCalls, mean_calls
from pipeline.evaluate.scores import clip_scores, shown_clips
from pipeline.evaluate.sweep import (
    SweptCombination,
    known_measures,
    pareto_front,
    summarize,
)
from pipeline.evaluate.sweep_rows import console_lines, sweep_page
from pipeline.report.gallery import write_gallery
from pipeline.report.sweep_page import write_sweep_page
from pipeline.run.fingerprints import output_settings
from pipeline.run.shared_files import WorkerFiles
from pipeline.sample.job import Samples, folders_of_models, sample_clips
from pipeline.sample.model import SampledModel, open_model
from pipeline.sample.outputs import FAILED_NAME, SampledClip, iterate_samples
from pipeline.sample.shards import held_folder

RESULT_NAME, GALLERY_NAME, CLIPS_NAME, CACHE_NAME = "sweep.json", "gallery.html", "clips", "measured"


@dataclass(frozen=True)
class Swept:
    """What is swept, and how it is measured."""

    target: Path
    output: Path | str
    """A folder, or the URI of one in a store."""
    varied: Mapping[str, Sequence[JsonValue]]
    reference: Path | None
    """Dataset of real clips; None: that of the checkpoint's run, if there is one."""
    networks: Networks
    max_clips: int
    """Of the reference and of each combination."""


class SweepResult(Record):
    """The contents of sweep.json."""

    model: str
    """Fingerprint of the checkpoint."""
    reference: str | None
    """Fingerprint of the real clips that were compared."""
    max_clips: int
    clip_features: str
    frame_features: str
    networks: str
    """Fingerprint of the networks that clips are measured with."""
    settings: dict[str, JsonValue]
    """Of sampling, that all combinations share."""
    varied: dict[str, list[JsonValue]]
    combinations: list[SweptCombination]
    fronts: dict[str, list[int]]
    """By measure, the numbers of the combinations that no other one beats, the cheapest first."""


def sweep_checkpoint(asked: Swept, overrides: Sequence[Override], *, dry_run: bool = False) -> Iterator[str]:
    """Sample every combination, measure it, and write figures and pages; yields lines for the console.

    A second start makes and measures only what is missing.

    Raises:
        ConfigError: a combination cannot be sampled; names all of them.
        ReelflowError: as `sample_checkpoint` and `compare_folders`; all but `SamplingError` before Ray starts.
        SamplingError: of a combination too few clips could be made.
    """
    model = open_model(asked.target)
    config, warnings = read_settings(model, overrides)
    combinations, more = plan_sweep(model, config, asked.varied)
    reference = _reference(asked)
    names, to = asked.networks.check(), Output.of(asked.output, config.cluster)
    if reference is None:
        more.append("no real clips to compare with: name some with --reference; distances and drifts are left out")
    yield from (f"warning: {warning}" for warning in warnings + more)
    if dry_run:
        yield from (f"  {each.name}" for each in combinations)
        yield f"plan: {len(combinations)} combinations of {combinations[0].num_requests} clips, into {to}"
        return
    with to.kept(config):
        output, workers = to.folder, config.cluster.workers
        folder = output / CLIPS_NAME
        read = chain(
            folders_of_models(model, Requests([each.plan for each in combinations])),
            () if reference is None else (reference.folder,),
        )
        with connected(config.cluster), to.shared(config.cluster, read) as files:
            samples = _sample(model, combinations, folder, config, files)
            clips = {clip.request.id: clip for clip in samples.clips}
            made = [[clips[each.id] for each in one.plan if each.id in clips] for one in combinations]
            _check_numbers(combinations, map(len, made), folder / FAILED_NAME)
            sets = [sampled_clips(folder, each, asked.max_clips) for each in made]
            others = [] if reference is None else [reference]
            measured = measure_sets([*sets, *others], asked.networks, output / CACHE_NAME, workers, files)
        _check_numbers(combinations, (len(each.numbers) for each in measured[: len(sets)]), folder)
        real = None if reference is None else measured[len(sets)]
        results = []
        for combination, each, its_clips, found in zip(combinations, sets, made, measured, strict=False):
            comparison = None
            if reference is not None and real is not None:
                comparison = compare(found, each.names, real, reference.names)
            num_missing = combination.num_requests - len(its_clips) + len(each.names) - len(found.numbers)
            results.append(summarize(combination.settings, found, num_missing, _cost(model, its_clips), comparison))
        result = SweepResult(
            model=model.fingerprint,
            reference=None if reference is None else reference.fingerprint,
            max_clips=asked.max_clips,
            clip_features=names[0],
            frame_features=names[1],
            networks=asked.networks.fingerprint(),
            settings={
                name: value
                for name, value in output_settings(config.sample.sampler()).items()
                if name not in asked.varied
            },
            varied={name: list(values) for name, values in asked.varied.items()},
            combinations=results,
            fronts={measure.name: pareto_front(results, measure) for measure in known_measures(results)},
        )
        publish_text(output / RESULT_NAME, result.model_dump_json(indent=2) + "\n")
        shown = [
            clip
            for each, found in zip(sets, measured, strict=False)
            for clip in shown_clips(each, clip_scores(found, each.names, real))
        ]
        write_gallery(folder, shown, output / GALLERY_NAME)
        page = write_sweep_page(sweep_page(_name(output), results, result.fronts, sets, names), output)
        yield from console_lines(results, result.fronts)
        yield f"wrote {output / RESULT_NAME}, {page} and {output / GALLERY_NAME}"
        samples.check_all_made()
    if to.place is not None:
        yield f"stored in {to}"


def _reference(asked: Swept) -> ClipSet | None:
    """The real clips; those of the run that the checkpoint lies in, where none are named."""
    if asked.reference is not None:
        return open_clips(asked.reference.resolve(), asked.max_clips, "train" if _is_dataset(asked.reference) else None)
    found = next(
        (folder / "clips" for folder in asked.target.resolve().parents[:3] if _is_dataset(folder / "clips")), None
    )
    return None if found is None else open_clips(found, asked.max_clips, "train")


def _is_dataset(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file()


def _sample(
    model: SampledModel, combinations: Sequence[Combination], folder: Path, config: SamplingConfig, files: WorkerFiles
) -> Samples:
    """Sample what is missing of all combinations, as one job."""
    section, bad_rows = config.sample, combinations[0].plan.bad_rows.reasons
    folder.mkdir(exist_ok=True)
    with held_folder(folder):
        for _ in iterate_samples(folder):  # a damaged manifest is refused before anything is sampled
            pass
        requests = Requests([each.plan for each in combinations])
        workers, outputs = config.cluster.workers, section.files()
        return sample_clips(
            model, requests, folder, section.sampler(), workers, outputs=outputs, bad_rows=bad_rows, files=files
        )


def _check_numbers(combinations: Sequence[Combination], numbers: Iterable[int], where: Path) -> None:
    """Refuse to compare combinations of which too few clips are there.

    Raises:
        ConfigError: names them.
    """
    few = [f"{each.name}: {number}" for each, number in zip(combinations, numbers, strict=True) if number < MIN_CLIPS]
    if few:
        raise ConfigError(f"{'; '.join(few)} clips could be made and read, and {MIN_CLIPS} are needed; see {where}")


def _cost(model: SampledModel, clips: Sequence[SampledClip]) -> NetworkCalls:
    def num_latent_frames(name: str) -> int:
        bucket = model.bucket(name)
        return model.compression.latent_grid(bucket.num_frames, bucket.height, bucket.width)[0]

    return mean_calls(model.flow, clips, num_latent_frames)


def _name(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])  # pages are shared: no paths of the machine
