"""The road: every stage in order, each skipped while what it was made from still stands."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from data.curation.scenes import check_scene_detection
from data.curation.sources import Source, list_sources, listing_fingerprint, of_dataset
from data.curation.text_area import check_text_detection
from data.dataset.index import read_index
from data.dataset.manifest import SCHEMA_VERSION, Manifest, TextEncoderRecord, read_manifest
from data.errors import ReelflowError
from data.files.checksums import file_sha256
from data.files.publish import publish_text
from data.synthetic import held_out_combinations
from launch.cluster import connected
from launch.config import SYNTHETIC, ConfigError, RunConfig, check_writable, dump_config
from launch.plan import STAGES, describe_batches, describe_elastic
from launch.progress import following, steps_done
from models.networks.dit import DiT
from models.text.pretrained import check_text_encoder
from pipeline.checkpoint.adapters import BASE_NAME
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint
from pipeline.distributed.process_group import Worker
from pipeline.distributed.torchrun import local_worker, starting_together, torchrun_rank
from pipeline.distributed.workers import train_on_ray
from pipeline.encode.captions import NULL_CAPTION_NAME
from pipeline.encode.codec import AUTOENCODER_NAME, export_autoencoder
from pipeline.encode.encode import encode_shards, latents_that_stand, output_settings
from pipeline.evaluate.adherence import measure_adherence, validate_judge
from pipeline.evaluate.reconstruction import measure_reconstruction
from pipeline.ingest.draw import make_videos, video_path
from pipeline.ingest.shard import dataset_outputs, forget_quarantined, make_shards, shards_that_stand
from pipeline.report.gallery import write_gallery
from pipeline.report.run_report import Report, write_report
from pipeline.run.fingerprints import fingerprint
from pipeline.run.lock import locked
from pipeline.run.memory import MemoryWatch, memory_watch
from pipeline.run.progress import bar
from pipeline.run.stage import Stage, StageRecord, begin, read_record
from pipeline.sample.config import NOT_OF_A_CLIP
from pipeline.sample.job import sample_clips
from pipeline.sample.outputs import SAMPLES_NAME, read_samples
from pipeline.sample.requests import Prompt, format_prompts, order_buckets, plan_requests, read_prompts
from pipeline.train.base import check_base
from pipeline.train.config import TrainConfig
from pipeline.train.control import clear_requests, sigterm_stops
from pipeline.train.loop import train
from pipeline.train.lora import add_adapters
from pipeline.train.monitor.metrics import read_metrics
from pipeline.train.monitor.watchdog import clear_stalls
from pipeline.train.task import TrainTask
from pipeline.train.tasks.autoencoder import AutoencoderTask
from pipeline.train.tasks.flow import DiTTask
from pipeline.train.world_size import fitting_worlds

LOCK_NAME = "run.lock"


class StageOrderError(ReelflowError, ValueError):
    """A stage was asked for whose input is not there yet."""


class StoppedError(Exception):
    """A training saved and stopped as it was asked to; the message says where."""


class Road:
    """One run: its configuration, its folder, and its stages as methods in the order they depend on each other."""

    def __init__(
        self,
        config: RunConfig,
        *,
        on_ray: bool = True,
        retry: bool = False,
        allowed_changes: Collection[str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.config = config
        self._retry = retry  # what was put in quarantine
        self._allowed_changes = allowed_changes  # None: a training whose inputs changed is made anew
        self.dir = config.run_dir
        # Under torchrun every process comes this way; the first one speaks, and changes what is on the disk.
        self._on_ray = on_ray and not dist.is_torchelastic_launched()
        self._is_first = torchrun_rank() == 0
        self._say = say if self._is_first else _say_nothing
        self._resources = ExitStack()
        self._is_connected = False
        self._memory = MemoryWatch()

    def __enter__(self) -> "Road":
        if self._is_first:
            check_writable(self.dir)
            self._resources.enter_context(locked(self.dir / LOCK_NAME))
            publish_text(self.dir / "config.yaml", dump_config(self.config))
        self._memory = self._resources.enter_context(memory_watch())
        return self

    def __exit__(self, *details: object) -> None:
        self._resources.close()

    def run(self, stages: tuple[str, ...] = STAGES) -> None:
        """Run stages in the order of the road."""
        methods: dict[str, Callable[[], None]] = {
            "draw": self.draw,
            "shard": self.shard,
            "train autoencoder": self.train_autoencoder,
            "encode": self.encode,
            "train dit": self.train_dit,
            "sample": self.sample,
            "evaluate": self.evaluate,
        }
        if self.config.encode.text is not None and "encode" in stages:
            check_text_encoder(self.config.encode.text.folder)  # now, not after the autoencoder's training
        for name in STAGES:
            if name in stages:
                methods[name]()

    # ---------------------------------------------------------------- stages

    @property
    def videos_dir(self) -> Path:
        """Where drawn videos are."""
        return self.dir / "videos"

    def draw(self) -> None:
        """Draw the synthetic videos; nothing for a source of real ones."""
        data = self.config.data
        if SYNTHETIC not in data.places.values():
            return
        inputs = {"synthetic": data.synthetic.model_dump(), "seed": self.config.seed}
        with self._stage("draw", "videos", inputs) as stage:
            if stage is not None:
                num = make_videos(self.videos_dir, data.synthetic, self.config.seed)
                last = video_path(self.videos_dir, num - 1)
                stage.finish([video_path(self.videos_dir, 0), last], {"videos": num}, self._peak())

    def shard(self) -> None:
        """Cut the videos into clips."""
        data, clips_dir = self.config.data, self.dir / "clips"
        if data.scene_detection != "off":
            check_scene_detection()
        if data.filters.text_fraction is not None:
            check_text_detection()
        sources, origins = self._sources()
        settings = data.shard().model_dump(mode="json", exclude={"decode_timeout_seconds"})
        inputs: dict[str, Any] = {"source": origins, "config": settings, "schema": SCHEMA_VERSION}
        if data.captions is not None and data.captions.is_file():
            inputs["captions"] = fingerprint(data.captions.read_text(encoding="utf-8", errors="replace"))
        if self._retry:
            forget_quarantined(clips_dir)

        def standing() -> int:
            return shards_that_stand(sources, clips_dir, data.shard())

        with self._stage("shard", "clips", inputs, standing=standing) as stage:
            if stage is not None:
                workers = self.config.cluster.workers
                num_tasks = workers.num_workers * workers.cpus_per_worker
                manifest = make_shards(sources, stage.folder, data.shard(), num_tasks)
                assert manifest.ledger is not None
                summary = {
                    "clips": manifest.num_samples,
                    "filtered": manifest.ledger.filtered,
                    "quarantined": manifest.ledger.quarantine,
                }
                stage.finish(dataset_outputs(stage.folder, manifest), summary, self._peak())

    def _sources(self) -> tuple[list[Source], str]:
        """Every source, and what changes when one of them does."""
        sources, origins = [], []
        for name, place in self.config.data.places.items():
            if place == SYNTHETIC:
                origin = self._build_of("videos", "draw")
                listed = list_sources(str(self.videos_dir))
            else:
                listed = list_sources(place, self.config.data.suffixes)
                origin = listing_fingerprint(listed)
            origins.append(f"{name}={origin}" if name else origin)
            sources += of_dataset(name, listed) if name else listed
        return sources, " ".join(origins)

    def train_autoencoder(self) -> None:
        """Train the autoencoder on the clips."""
        section, clips_dir = self.config.autoencoder, self.dir / "clips"
        inputs = {"clips": self._build_of("clips", "shard"), "model": section.model.model_dump()} | self._weights()
        task = AutoencoderTask(section.model, clips_dir.resolve(), self.config.seed, self.config.data.weights)
        self._train("train autoencoder", "autoencoder", task, section.train, inputs)

    def encode(self) -> None:
        """Encode the clips with the trained autoencoder."""
        clips_dir, latents_dir, config = self.dir / "clips", self.dir / "latents", self.config.encode
        inputs = {
            "clips": self._build_of("clips", "shard"),
            "autoencoder": self._build_of("autoencoder", "train autoencoder"),
            "config": output_settings(config, (record.bucket for record in read_manifest(clips_dir).buckets)),
            "schema": SCHEMA_VERSION,
        }
        null_caption = self.config.dit.flow.null_caption
        if config.text is not None:
            inputs["null_caption"] = null_caption

        def standing() -> int:
            with TemporaryDirectory(prefix="reelflow-") as folder:
                weights = Path(folder) / AUTOENCODER_NAME
                export_autoencoder(open_checkpoint(self.dir / "autoencoder"), weights)
                return latents_that_stand(clips_dir, latents_dir, weights, config)

        with self._stage("encode", "latents", inputs, standing=standing) as stage:
            if stage is not None:
                weights = stage.folder / AUTOENCODER_NAME
                export_autoencoder(open_checkpoint(self.dir / "autoencoder"), weights)
                workers = self.config.cluster.workers
                manifest = encode_shards(clips_dir, stage.folder, weights, config, workers, null_caption)
                outputs = [weights, *dataset_outputs(stage.folder, manifest)]
                if manifest.text_encoder is not None:
                    outputs.append(stage.folder / NULL_CAPTION_NAME)
                stage.finish(outputs, {"clips": manifest.num_samples}, self._peak())

    def train_dit(self) -> None:
        """Train the DiT on the latents."""
        section, latents_dir = self.config.dit, self.dir / "latents"
        inputs = {
            "latents": self._build_of("latents", "encode"),
            "model": section.model.model_dump(),
            "flow": section.flow.model_dump(),
        } | self._weights()
        manifest = read_manifest(latents_dir)
        self._warn_of_cut_captions(manifest)
        assert manifest.latent_stats is not None
        base = self._base(manifest.latent_stats.num_channels, manifest.text_encoder)
        if base is not None:
            inputs["base"] = base.fingerprint
        task = DiTTask(
            model=section.model,
            flow=section.flow,
            buckets=tuple(record.bucket for record in manifest.buckets),
            latent_stats=manifest.latent_stats,
            dataset_dir=latents_dir.resolve(),
            autoencoder_path=(latents_dir / AUTOENCODER_NAME).resolve(),
            seed=self.config.seed,
            weights=self.config.data.weights,
            text_encoder=manifest.text_encoder,
            base_path=None if base is None else (self.dir / "dit" / BASE_NAME).resolve(),
            base=None if base is None else base.fingerprint,
            lora=section.train.lora,
        )
        self._train("train dit", "dit", task, section.train, inputs, base)

    def _base(self, num_channels: int, text_encoder: TextEncoderRecord | None) -> Checkpoint | None:
        """The checkpoint that the DiT starts from, if any.

        Raises:
            CheckpointError: it cannot be used, or is of another network.
            ConfigError: it lies where the new one is going to be.
            LoraError: adapters are wanted, and peft is not installed or a target is no layer.
        """
        section = self.config.dit
        if section.train.start_from is None:
            return None
        if section.train.start_from.resolve().is_relative_to((self.dir / "dit").resolve()):
            raise ConfigError(
                f"dit.train.start_from is {section.train.start_from}, which this training would set aside: give the "
                f"run another name (cp -r {self.dir} runs/NAME keeps its autoencoder and latents)"
            )
        base = open_checkpoint(section.train.start_from)
        check_base(base, section.model, section.flow, num_channels, text_encoder)
        if section.train.lora is not None:
            with torch.device("meta"):  # tried without numbers, before any worker starts
                width = None if text_encoder is None else text_encoder.width
                add_adapters(DiT(section.model, num_channels, width), section.train.lora)
        if base.record.files[AUTOENCODER_NAME].sha256 != file_sha256(self.dir / "latents" / AUTOENCODER_NAME):
            self._say(
                f"  warning: {base.folder} was trained on the latents of another autoencoder, which mean something "
                "else; copy that run's folder and change the copy to keep its autoencoder"
            )
        return base

    def sample(self) -> None:
        """Sample the prompts."""
        config = self.config.sample
        prompts = self._prompts()
        inputs = {
            "dit": self._build_of("dit", "train dit"),
            "sampler": config.sampler().model_dump(mode="json", exclude=NOT_OF_A_CLIP),
            "prompts": fingerprint([prompt.model_dump() for prompt in prompts]),
            "scales": config.guidance_scales,
            "seed": self.config.seed,
        }
        trained = [record.bucket.name for record in read_manifest(self.dir / "latents").buckets]
        names = order_buckets(trained, config.bucket, prompts)
        with self._stage("sample", "samples", inputs) as stage:
            if stage is not None:
                publish_text(stage.folder / "prompts.jsonl", format_prompts(prompts))
                checkpoint = open_checkpoint(self.dir / "dit")
                settings = f"{checkpoint.fingerprint} {config.sampler().model_dump_json(exclude=NOT_OF_A_CLIP)}"
                requests = plan_requests(prompts, config.guidance_scales, self.config.seed, settings, names)
                workers = self.config.cluster.workers
                clips = sample_clips(checkpoint, requests, stage.folder, config.sampler(), workers)
                write_gallery(stage.folder, clips)
                outputs = [stage.folder / name for name in (SAMPLES_NAME, "index.html", *(c.file for c in clips))]
                stage.finish(outputs, {"clips": len(clips)}, self._peak())

    def evaluate(self) -> None:
        """Measure, and write the report."""
        inputs = {
            "samples": self._build_of("samples", "sample"),
            "latents": self._build_of("latents", "encode"),
            "config": self.config.evaluate.model_dump(),
        }
        with self._stage("evaluate", "evaluation", inputs) as stage:
            if stage is not None:
                self._measure(stage)

    # ---------------------------------------------------------------- helpers

    def _measure(self, stage: Stage) -> None:
        config, synthetic = self.config.evaluate, self.config.data.is_synthetic
        weights = self.dir / "latents" / AUTOENCODER_NAME
        reconstructions, shown = measure_reconstruction(
            self.dir / "clips", weights, config.max_reconstructions, num_shown=6
        )
        clips = read_samples(self.dir / "samples")
        judge, adherence, right = None, {}, {}
        if synthetic:
            data, bucket = self.config.data, read_manifest(self.dir / "clips").buckets[0].bucket
            judge = validate_judge(config.judge_clips, self.config.seed, data.synthetic, bucket, stage.folder / "fresh")
            adherence, right = measure_adherence(self.dir / "samples", clips)
        report = Report(
            run_dir=self.dir,
            config_yaml=dump_config(self.config),
            stages=self._records(),
            reconstructions=reconstructions,
            shown=shown,
            judge=judge,
            adherence=adherence,
            right=right,
            guidance_scale=self.config.sample.guidance_scale,
            clips=clips,
            losses={name: read_metrics(self.dir / name) for name in ("autoencoder", "dit")},
            latents=read_manifest(self.dir / "latents"),
        )
        stage.save()  # so that the report knows this stage's time too
        report = report.with_stage(stage.record, self._peak())
        written = write_report(report)
        stage.finish(written, report.headline(), self._peak())
        for path in written:
            self._say(f"  wrote {path}")

    def _prompts(self) -> list[Prompt]:
        config = self.config
        if config.sample.prompts is not None:
            prompts, warnings = read_prompts(config.sample.prompts)
            for warning in warnings:
                self._say(f"  warning: {warning}")
            return prompts
        if config.data.is_synthetic:
            return [
                Prompt(prompt=f"a {c.colour} {c.shape} moves {c.direction}", seed=number, expect=vars(c))
                for c in held_out_combinations()
                for number in range(config.evaluate.prompts_per_combination)
            ]
        captions = sorted(set(read_index(self.dir / "clips").values("caption")))[:32]
        return [Prompt(prompt=caption, seed=number) for caption in captions for number in range(2)]

    def _train(
        self,
        name: str,
        folder: str,
        task: TrainTask,
        config: TrainConfig,
        inputs: dict[str, Any],
        base: Checkpoint | None = None,
    ) -> None:
        settings = config.model_dump(exclude=TrainConfig.pacing() | {"start_from"})  # what is there counts, not where
        inputs = inputs | {"train": settings, "seed": self.config.seed}
        stage_dir, workers, subsets = self.dir / folder, self.config.cluster.workers, task.subsets()
        fitting = fitting_worlds(config, [subset.bucket for subset in subsets], workers.num_workers)
        with self._runner(partial(train, task, config, self.dir.resolve() / folder), stage_dir, fitting) as run:
            if not self._is_first:
                with sigterm_stops(stage_dir):
                    run()
                return
            allowed, continues = self._allowed_changes, {"steps": config.steps}
            with self._stage(name, folder, inputs, continues, allowed_changes=allowed, tidy=False) as stage:
                if stage is None:
                    return
                for line in describe_batches(subsets, config):
                    self._say(line)
                if self._on_ray and workers.min_workers is not None:
                    self._say(describe_elastic(name, workers.min_workers, workers.num_workers, fitting))
                if base is not None:
                    export_weights(base, stage.folder / BASE_NAME)
                clear_requests(stage.folder)
                clear_stalls(stage.folder)
                with (
                    bar(name, config.steps, "steps", start=steps_done(stage.folder)) as progress,
                    following(stage.folder, progress, self._say),
                    sigterm_stops(stage.folder),
                ):
                    run()
                checkpoint = open_checkpoint(stage.folder)
                if checkpoint.record.step < config.steps:
                    raise StoppedError(f"{name} stopped as asked, saved at step {checkpoint.record.step}")
                outputs = [stage.folder / "latest", checkpoint.folder / "checkpoint.json"]
                last = read_metrics(stage.folder)[-1]
                summary = {"steps": checkpoint.record.step, "loss": last["total"]}
                stage.finish(outputs, summary, self._peak())

    @contextmanager
    def _runner(
        self, function: Callable[[Worker], None], stage_dir: Path, fitting: Collection[int]
    ) -> Iterator[Callable[[], None]]:
        """Yield what runs a training: on Ray's workers, or on this process and those that torchrun started with it."""
        workers = self.config.cluster.workers
        if self._on_ray:
            yield partial(train_on_ray, function, workers, stage_dir / "ray", fitting)
        else:
            with local_worker(workers.cpus_per_worker) as worker, starting_together(worker) as start:
                yield partial(start, function)

    @contextmanager
    def _stage(
        self,
        name: str,
        folder: str,
        inputs: dict[str, Any],
        continues: dict[str, Any] | None = None,
        standing: Callable[[], int] | None = None,
        allowed_changes: Collection[str] | None = None,
        *,
        tidy: bool = True,
    ) -> Iterator[Stage | None]:
        """Yield the stage if it has something to do, connected to the cluster; say what happens."""
        stage = begin(self.dir / folder, name, inputs, continues, standing, allowed_changes, tidy=tidy)
        if stage.complete:
            self._say(f"{name}: nothing to do ({_summary(stage.record)})")
            yield None
            return
        self._say(f"{name}: {stage.note}")
        begun = time.monotonic()
        try:
            if self._on_ray:
                self._connect()
            yield stage
        except BaseException:
            stage.save()  # keep the time spent; what is done stays, and the next start goes on
            raise
        self._say(f"{name}: done in {time.monotonic() - begun:.0f} s ({_summary(stage.record)})")

    def _connect(self) -> None:
        if not self._is_connected:
            self._resources.enter_context(connected(self.config.cluster))
            self._is_connected = True

    def _weights(self) -> dict[str, Any]:
        """The weights of a mix, as an input of a training."""
        return {"weights": dict(self.config.data.weights)} if self.config.data.mix else {}

    def _warn_of_cut_captions(self, manifest: Manifest) -> None:
        if manifest.text_encoder is not None:
            if manifest.num_cut_captions:
                self._say(
                    f"  warning: {manifest.num_cut_captions} of {manifest.num_samples} captions have more than "
                    f"{manifest.text_encoder.max_tokens} tokens and are cut there: raise encode.text.max_tokens to "
                    "keep them whole"
                )
            return
        captions = read_index(self.dir / "latents").values("caption")
        limit = self.config.dit.model.text.max_bytes
        lengths = [len(caption.encode()) for caption in captions]
        num_cut = sum(length > limit for length in lengths)
        if num_cut:
            self._say(
                f"  warning: {num_cut} of {len(captions)} captions are longer than {limit} bytes and are cut there; "
                f"the longest has {max(lengths)}: raise dit.model.text.max_bytes to keep them whole"
            )

    def _build_of(self, folder: str, stage: str) -> str:
        """The build a stage's input has now.

        Raises:
            StageOrderError: that stage has not finished.
        """
        record = read_record(self.dir / folder)
        if record is None or not record.complete:
            raise StageOrderError(
                f"{self.dir / folder} is not finished; run `{stage}` first, or `run` to do every stage in order"
            )
        return record.build

    def _records(self) -> list[StageRecord]:
        folders = ("videos", "clips", "autoencoder", "latents", "dit", "samples")
        return [record for folder in folders if (record := read_record(self.dir / folder)) is not None]

    def _peak(self) -> int:
        self._memory.measure()
        return self._memory.peak_rss_bytes


def _say_nothing(_: str) -> None:
    pass


def _summary(record: StageRecord) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in record.summary.items()
    )
