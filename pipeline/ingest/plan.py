"""What has to be done so that a folder holds the shards of today's sources.

Some shards stand, some are written from clips that are there, and some sources have to be cut.

Each commit says what every source of its shard was made from (`Origin`). A source is not cut again while its name, its
span, the settings and the content of its file are the same: if its modification time changed, the file is compared by
its checksum. Its clips are then taken from the shard that holds them, wherever they belong now, and with its present
caption. Other thresholds of filters, and filters that are turned on or off, are compared with what was measured
(`pipeline/ingest/redecide.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from data.curation.caption_text import CaptionError
from data.curation.config import FilterConfig, Measure
from data.curation.source import Source, content_of, listing_fingerprint
from data.errors import printable
from pipeline.ingest.commit import ShardCommit, ShardRecipe
from pipeline.ingest.duplicates import Dropped, find_duplicates, kept_clips
from pipeline.ingest.layout import NUMBERED, grouped, keeps_numbers, numbered
from pipeline.ingest.prepare import PrepareConfig, present_caption
from pipeline.ingest.redecide import redecided, unmeasured
from pipeline.ingest.reports import Origin, SourceReport, StoredReport
from pipeline.run.commits import SHARD_PATTERN, publish_commit, read_commit
from pipeline.run.fingerprints import fingerprint

HASHING_THREADS = 4


@dataclass(frozen=True)
class _Held:
    """A source in a shard of the folder."""

    shard: Path
    report: SourceReport
    caption: str | None
    """None: the shard holds no clip of it."""
    keys: frozenset[str]
    """Of its clips in the shard."""
    stores_measures: bool = True
    """Whether the records of its clips have the measures that they should have."""


@dataclass(frozen=True)
class _Found:
    """A committed shard of the folder."""

    shard: Path
    input_fingerprint: str
    held: dict[str, _Held]
    """By source, in the order of the shard."""


@dataclass
class PlannedShard:
    """A shard as it should be, while its sources are being prepared."""

    path: Path
    sources: Sequence[Source]
    stands: bool
    """Whether the folder holds it as it should be."""
    made_from: str | None
    """Input fingerprint of its commit as it should be; None: not known before its sources are prepared."""
    _held: dict[str, _Held]  # sources that need not be cut, by name
    _captions: dict[str, str]  # of these
    _dropped: Dropped
    _filters: FilterConfig
    _new: dict[str, StoredReport] = field(default_factory=dict)
    _clips: dict[str, Any] = field(default_factory=dict)  # Ray reference to the clips, by source

    @cached_property
    def to_cut(self) -> list[Source]:
        """The sources whose clips are nowhere."""
        return [] if self.stands else [source for source in self.sources if source.name not in self._held]

    @property
    def num_taken(self) -> int:
        """Number of sources whose clips are taken from shards that are there."""
        return 0 if self.stands else len(self._held)

    @property
    def is_complete(self) -> bool:
        """Whether every source that has to be cut has been."""
        return len(self._new) == len(self.to_cut)

    def add(self, report: StoredReport, clips: Any = None) -> None:  # noqa: ANN401 - Ray's reference
        """Add what became of a source; `clips` refers to its clips, None if it has none."""
        self._new[report.source] = report
        if clips is not None:
            self._clips[report.source] = clips

    def give(self) -> tuple[ShardRecipe, list[Any]]:
        """What the shard is written from once it is complete, and references to its new clips; both are forgotten."""
        reports = [
            self._new.get(source.name) or StoredReport.of(self._held[source.name].report) for source in self.sources
        ]
        recipe = ShardRecipe(
            path=self.path,
            reports=tuple(reports),
            dropped={name: self._dropped[name] for name in self._dropped.keys() & {r.source for r in reports}},
            taken={name: held.shard for name, held in self._held.items() if held.keys},
            captions=self._captions,
            filters=self._filters,
        )
        self.made_from, clips = recipe.made_from, list(self._clips.values())
        self._new.clear()  # so that what a plan holds does not grow with the sources that are cut
        self._clips.clear()
        return recipe, clips


@dataclass(frozen=True)
class Plan:
    """Every shard of a dataset, in order."""

    shards: list[PlannedShard]
    touched: dict[Path, dict[str, SourceReport]]
    """Shards that stand, but whose commits name older stamps of files -> the reports to replace, by source."""
    dropped: Dropped
    """Clips that look like an earlier one, of the sources that are known."""
    unmeasured: Mapping[str, set[Measure]]
    """Sources that are cut only because something has to be measured -> what that is."""
    config: PrepareConfig

    @property
    def is_done(self) -> bool:
        """Whether the folder holds all shards as they should be."""
        return not self.touched and all(shard.stands for shard in self.shards)

    @property
    def to_cut(self) -> dict[Source, PlannedShard]:
        """The sources that have to be cut, in order, and the shard of each."""
        return {source: shard for shard in self.shards for source in shard.to_cut}

    @property
    def has_reuse(self) -> bool:
        """Whether anything in the folder is of use."""
        return any(shard.stands or shard.num_taken for shard in self.shards)

    def __str__(self) -> str:
        standing, cut = sum(shard.stands for shard in self.shards), len(self.to_cut)
        taken = sum(shard.num_taken for shard in self.shards)
        text = f"{standing} of {len(self.shards)} shards stay as they are"
        if standing < len(self.shards):
            text += f", the clips of {taken} videos are taken from earlier shards, {cut} videos are cut"
        if self.unmeasured:
            names = ", ".join(sorted(set[str]().union(*self.unmeasured.values())))
            text += f" ({len(self.unmeasured)} of them because these were not measured: {names})"
        return text

    @property
    def depends_on_clips(self) -> bool:
        """Whether what a shard holds depends on what its sources turn out to be: then it is planned again."""
        return self.config.settings.filters.duplicate_bits is not None or bool(self.config.settings.models.paths)

    def origin(self, source: Source) -> Origin:
        """What a report of a source is made from now, but for the content of its file."""
        return self.config.origin(source)

    def record_stamps(self) -> None:
        """Write the present stamps of touched files into the commits of their shards."""
        for path, reports in self.touched.items():
            commit = read_commit(ShardCommit, path)
            if commit is not None:
                present = [reports.get(report.source, report) for report in commit.reports]
                publish_commit(path, commit.model_copy(update={"reports": present}))


def plan_shards(sources: Sequence[Source], folder: Path, config: PrepareConfig) -> Plan:
    """Compare today's sources and settings with what the folder holds.

    Args:
        sources: in the order by which the first of two clips that look alike is kept.
    """
    found = list(_read_shards(folder))
    names, size = [source.name for source in sources], config.settings.videos_per_shard
    if keeps_numbers({shard.shard.name: list(shard.held) for shard in found}, names, size):
        groups = numbered(sources, size)
    else:
        groups = grouped(sources, lambda source: source.name, size)
    place = {source.name: group.shard for group in groups for source in group.sources}
    candidates = _candidates(found, {source.name: source for source in sources}, config)
    origins = {source.name: config.origin(source) for source in sources if source.name in candidates}
    contents = _contents(sources, candidates, origins, config)
    known: dict[str, _Held] = {}
    captions: dict[str, str] = {}
    unmeasured_of: dict[str, set[Measure]] = {}
    for source in sources:
        # The one in its own shard first: an interrupted start may have left an older one elsewhere.
        here = sorted(candidates.get(source.name, ()), key=lambda held: held.shard.name != place[source.name])
        for held in here:
            current = _current(source, held, origins[source.name], contents.get(source.name), config)
            if current is None:
                continue
            if isinstance(current, set):
                unmeasured_of[source.name] = current
                continue
            caption = caption_for(source, held.report, held.caption, config)
            if caption is not None:
                known[source.name], captions[source.name] = current, caption
                break
    dropped = find_duplicates((known[name].report for name in names if name in known), config.settings.filters)
    wanted = {name: frozenset(clip.key for clip in kept_clips(held.report, dropped)) for name, held in known.items()}
    usable = {
        name: held for name, held in known.items() if wanted[name] <= held.keys
    }  # others were dropped, and return
    in_folder = {shard.shard: shard for shard in found}
    shards, touched = [], {}
    for group in groups:
        path = folder / group.shard
        here = {source.name: usable[source.name] for source in group.sources if source.name in usable}
        own_captions = {name: captions[name] for name in here}
        stands = (
            list(in_folder[path].held) == list(here) == [source.name for source in group.sources]
            and all(held.shard == path and held.keys == wanted[name] for name, held in here.items())
            and all(not held.keys or held.caption == captions[name] for name, held in here.items())
            and all(not held.keys or held.stores_measures for held in here.values())
            if path in in_folder
            else False
        )
        made_from, filters = in_folder[path].input_fingerprint if stands else None, config.settings.filters
        shards.append(PlannedShard(path, group.sources, stands, made_from, here, own_captions, dropped, filters))
        if stands:
            new = {name: h.report for name, h in here.items() if h.report != in_folder[path].held[name].report}
            touched |= {path: new} if new else {}
    only_unmeasured = {name: missing for name, missing in unmeasured_of.items() if name not in usable}
    return Plan(shards, touched, dropped, only_unmeasured, config)


def _read_shards(folder: Path) -> Iterator[_Found]:
    """The committed shards of a folder; of their rows, only keys and captions are kept."""
    for path in sorted(folder.glob(SHARD_PATTERN)):
        commit = read_commit(ShardCommit, path)
        if commit is None:
            continue
        keys, captions = commit.keys_and_captions()
        held = {
            report.source: _Held(path, report, captions.get(report.source), frozenset(keys.get(report.source, ())))
            for report in commit.reports
        }
        yield _Found(path, commit.input_fingerprint, held)


def _candidates(found: Sequence[_Found], sources: dict[str, Source], config: PrepareConfig) -> dict[str, list[_Held]]:
    """The reports of each source in the folder that say what they were made from, or whose whole shard does."""
    candidates: dict[str, list[_Held]] = {}
    before = ""
    for shard in found:
        is_verified = False
        if NUMBERED.fullmatch(shard.shard.name):  # the commits of older versions have one fingerprint of a whole shard
            group = [sources[name] for name in shard.held if name in sources]
            inputs = [config.fingerprint(), listing_fingerprint(group), before]
            is_verified = len(group) == len(shard.held) and fingerprint(inputs) == shard.input_fingerprint
            if config.settings.filters.duplicate_bits is not None:
                before = shard.input_fingerprint
        for name, held in shard.held.items():
            if held.report.origin is not None or (is_verified and not _was_compared(held.report)):
                candidates.setdefault(name, []).append(held)
    return candidates


def _was_compared(report: SourceReport) -> bool:
    """Whether clips were left out as duplicates by an older version, which did not keep their hashes."""
    return any(rejection.reason == "duplicate" for rejection in report.filtered)


def _contents(
    sources: Sequence[Source], candidates: dict[str, list[_Held]], origins: dict[str, Origin], config: PrepareConfig
) -> dict[str, str | None]:
    """The checksums of the files that were touched since they were cut, by source."""
    touched = [
        source
        for source in sources
        if any(_may_be_touched(source, held.report.origin, origins, config) for held in candidates.get(source.name, ()))
    ]
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return dict(zip((source.name for source in touched), pool.map(_content_of, touched), strict=True))


def _may_be_touched(source: Source, before: Origin | None, origins: dict[str, Origin], config: PrepareConfig) -> bool:
    now = origins[source.name]
    return (
        before is not None
        and before.content is not None
        and before.stamp != now.stamp
        and _agree(source, before, now, config)
    )


def _agree(source: Source, before: Origin, now: Origin, config: PrepareConfig) -> bool:
    """Whether two origins are of the same source and the same settings, but for filters by measures."""
    if before.cut == now.cut:
        return True
    if before.spans is not None:
        return before.spans == now.spans
    return before.basis is not None and before.basis == config.basis_of(source)


_content_of = lru_cache(maxsize=100_000)(content_of)  # a start plans several times; a stamp is part of a source


def _current(
    source: Source, held: _Held, present: Origin, content: str | None, config: PrepareConfig
) -> _Held | set[Measure] | None:
    """What a shard holds of a source, with its present stamp.

    Args:
        present: what the source would be made from now.
        content: the checksum of its file, if that was touched.

    Returns:
        None if it was made from something else; what is missing, if only something was not measured.
    """
    report, stores_measures = held.report, True
    if (origin := report.origin) is not None:
        is_same = origin.stamp == present.stamp
        if not is_same:
            is_same = origin.content is not None and content == origin.content
        if not (is_same and _agree(source, origin, present, config)):
            return None
        if origin.cut != present.cut:
            if missing := unmeasured(report, config.settings):
                return missing
            if (report := redecided(report, config.settings)) is None:
                return None
            stores_measures = origin.stored is None or origin.stored == present.stored
        if origin.content is not None:
            present = present.model_copy(update={"content": origin.content})
    if config.settings.filters.duplicate_bits is not None:
        hashed = {clip.start_seconds for clip in report.clips if clip.perceptual_hash is not None}
        if any(clip.start_seconds not in hashed for clip in report.clips):
            return None
    if present == origin:
        return held
    report = report.model_copy(update={"origin": present})
    return replace(held, report=report, stores_measures=stores_measures)


def caption_for(source: Source, report: SourceReport, stored: str | None, config: PrepareConfig) -> str | None:
    """The caption that the clips of a source should have; None if its report disagrees with the present one.

    Args:
        stored: the one that they have; None if there are none.
    """
    bad = report.quarantined if report.quarantined and report.quarantined.reason == "bad_caption" else None
    try:
        caption = present_caption(config, source)
    except CaptionError as error:
        return "" if bad is not None and bad.detail == printable(str(error)) else None
    except OSError:
        return None
    if bad is not None:
        return None
    return stored if config.settings.models.captioner is not None and stored is not None else caption
