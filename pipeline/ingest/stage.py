"""Stages draw and shard: videos are drawn where none are given, and cut into shards of captioned clips."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.dataset.buckets import describe_buckets
from pipeline.distributed.config import WorkersConfig
from pipeline.ingest.config import SYNTHETIC, DataConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import fingerprint, output_settings
from pipeline.run.stage import DriverStage, Outcome
from pipeline.run.stage_record import OpenStage

if TYPE_CHECKING:
    from data.curation.source import Listing, Source


def _table_fingerprint(table: Path) -> str:
    """Changes with the content of a table: with its text, in which all line ends are equal, or else with its bytes."""
    from data.files.tables import table_content

    content = table_content(table)
    try:
        return fingerprint(content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n"))
    except UnicodeDecodeError:  # a Parquet file
        return fingerprint(sha256(content).hexdigest())


@dataclass(frozen=True)
class DrawStage(DriverStage):
    """Draw the synthetic videos."""

    data: DataConfig
    seed: int

    name = "draw"
    folder = "videos"

    def describe(self) -> str:
        """Its line in the plan."""
        return "draw the videos" if self.is_needed() else "nothing: the videos are there"

    def is_needed(self) -> bool:
        """Whether any source is the synthetic one."""
        return SYNTHETIC in self.data.places.values()

    def settings(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002 - of the interface
        """What the videos show."""
        return {"synthetic": output_settings(self.data.synthetic), "seed": self.seed}

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Draw every video that is missing."""
        from pipeline.ingest.draw import make_videos, video_path

        number = make_videos(opened.folder, self.data.synthetic, self.seed, run.files)
        return Outcome([video_path(opened.folder, index) for index in (0, number - 1)], {"videos": number})

    def contents(self, folder: Path) -> dict[str, str]:
        """The videos and their captions."""
        from data.files.checksums import file_sha256

        files = sorted(path for suffix in ("*.mp4", "*.txt") for path in folder.rglob(suffix))
        made = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
        return {"videos": f"videos-{fingerprint(made)}"}


@dataclass(frozen=True)
class ShardStage(DriverStage):
    """Cut videos into WebDataset shards of captioned clips.

    Example: `reelflow shard real-tiny --set data.source=my/videos`
    """

    data: DataConfig
    workers: WorkersConfig
    _listed: "dict[Path, tuple[Listing, str]]" = field(default_factory=dict, init=False, repr=False)

    name = "shard"
    folder = "clips"

    def describe(self) -> str:
        """Its line in the plan."""
        data = self.data
        sources = " and ".join(
            f"{data.synthetic.num_videos} drawn videos" if place == SYNTHETIC else place
            for place in data.places.values()
        )
        if data.choose_buckets is None:
            return f"{sources} -> clips of {describe_buckets(data.buckets)}"
        lengths = " or ".join(str(length) for length in data.choose_buckets.num_frames)
        aspects = data.choose_buckets.max_aspects
        return f"{sources} -> clips of {lengths} frames in up to {aspects} aspect ratios, chosen from the videos"

    def settings(self, run: RunContext) -> dict[str, Any]:
        """Every source by name and content, how it is cut, and the caption table."""
        from data.dataset.manifest import SCHEMA_VERSION
        from pipeline.ingest.judge import model_fingerprints

        self._check_libraries()
        self._check_models()
        _, origin = self._sources(run)
        config = output_settings(self.data.shard())
        settings: dict[str, Any] = {"source": origin, "config": config, "schema": SCHEMA_VERSION}
        if self.data.captions is not None and self.data.captions.is_file():
            settings["captions"] = _table_fingerprint(self.data.captions)
        if self.data.models.paths:
            settings["models"] = model_fingerprints(self.data.models)
        return settings

    def describe_reuse(self, run: RunContext) -> Callable[[], str | None]:
        """Says which shards stay, and which sources are cut again."""
        from pipeline.ingest.shard import describe_reuse

        return lambda: describe_reuse(self._sources(run)[0], run.folder_of(self), self.data.shard())

    def check_inputs(self, run: RunContext) -> None:
        """Refuse a caption table that is missing or damaged, or that matches no video.

        Raises:
            CaptionError: as `read_captions`.
        """
        from pipeline.ingest.captions import read_captions

        read_captions(self.data.captions, self._sources(run)[0])

    def execute(self, run: RunContext) -> None:
        """Forget the quarantine first, where it is to be tried again."""
        from pipeline.ingest.shard import forget_quarantined

        if run.retry_quarantined:
            self._check_libraries()
            forget_quarantined(run.folder_of(self))
        super().execute(run)

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Cut every source of the shards that are missing."""
        from data.dataset.manifest import dataset_outputs
        from pipeline.ingest.shard import make_shards

        num_processes = self.workers.num_workers * self.workers.cpus_per_worker
        listing, _ = self._listing(run)
        manifest = make_shards(
            listing.sources, opened.folder, self.data.shard(), num_processes, listing.counts, run.files
        )
        assert manifest.ledger is not None
        summary = {
            "clips": manifest.num_samples,
            "filtered": manifest.ledger.filtered,
            "quarantined": manifest.ledger.quarantine,
        }
        return Outcome(dataset_outputs(opened.folder, manifest), summary)

    def contents(self, folder: Path) -> dict[str, str]:
        """The whole clips; and their pixels alone, which a stage reads that does not read captions."""
        from data.dataset.contents import pixels_fingerprint
        from data.dataset.manifest import read_manifest

        return {
            "clips": f"clips-{read_manifest(folder).fingerprint}",
            "pixels": f"pixels-{pixels_fingerprint(folder)}",
        }

    def _check_libraries(self) -> None:
        """Refuse settings that need an optional package which is not installed."""
        from data.curation.measures import check_motion
        from data.curation.scenes import check_scene_detection
        from data.curation.text_area import check_text_detection

        if self.data.scene_detection == "content":
            check_scene_detection()
        if self.data.filters.needs("text"):
            check_text_detection()
        if self.data.filters.needs("motion"):
            check_motion()

    def _check_models(self) -> None:
        """Refuse models that are missing, damaged or of another kind."""
        from pipeline.ingest.judge import check_models

        check_models(self.data.models)

    def _sources(self, run: RunContext) -> "tuple[list[Source], str]":
        """Every source in order, and a text that changes when one of them does."""
        listing, origin = self._listing(run)
        return listing.sources, origin

    def _listing(self, run: RunContext) -> "tuple[Listing, str]":
        """What all places hold, and a text that changes when a source does; listed once, which may be remote."""
        if run.run_dir not in self._listed:
            self._listed[run.run_dir] = self._list(run)
        return self._listed[run.run_dir]

    def _list(self, run: RunContext) -> "tuple[Listing, str]":
        from data.curation.listing import add_listings
        from data.curation.source import Listing, listing_fingerprint
        from data.curation.sources import list_place, of_dataset

        sources, counts, origins = [], [], []
        for name, place in self.data.places.items():
            if place == SYNTHETIC:
                origin = run.content_of(DrawStage.folder, Need(DrawStage.name, "videos"))
                listed = list_place(str(run.run_dir / DrawStage.folder))
            else:
                listed = list_place(place, self.data.suffixes)
                origin = listing_fingerprint(listed.sources)
            origins.append(f"{name}={origin}" if name else origin)
            counts.append(listed.counts)
            sources += of_dataset(name, listed.sources) if name else listed.sources
        return Listing(sources, add_listings(counts)), " ".join(origins)
