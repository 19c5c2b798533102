"""What the training stages share, and stage train autoencoder (`flow_stage.py` has train dit).

Under torchrun every process comes here. The first one reads and writes the stage's record; the others wait for it and
join the training.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from models.autoencoder.config import AutoencoderConfig, AutoencoderLossConfig
from pipeline.distributed.config import WorkersConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext, StoppedError
from pipeline.run.fingerprints import fingerprint, output_settings
from pipeline.run.logs import file_log, rank_log
from pipeline.run.shared_files import RunFiles
from pipeline.run.stage import Outcome, Stage
from pipeline.run.stage_record import OpenStage
from pipeline.train.autoencoder_settings import network_settings
from pipeline.train.config import AutoencoderTrainConfig, TrainConfig
from pipeline.train.plan import describe_batches, describe_elastic, describe_steps
from pipeline.train.world_size import fitting_worlds

if TYPE_CHECKING:
    from data.stream.loader import Subset
    from pipeline.distributed.process_group import Worker
    from pipeline.train.task import TrainTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainStage(Stage):
    """What both trainings have in common."""

    train: TrainConfig
    seed: int
    mix_weights: tuple[tuple[str, float], ...]
    """How often each dataset of a mix is seen; empty without a mix."""
    buckets: tuple[Bucket, ...] | None
    """None where they will be chosen from the videos."""
    patch_size: int
    compression: Compression
    """Of the autoencoder."""
    workers: WorkersConfig

    remove_temporary = False  # the workers of a killed driver may still be writing

    @abstractmethod
    def task(self, run: RunContext) -> "TrainTask":
        """What is trained; a frozen record that is pickled to the workers."""

    @abstractmethod
    def network_settings(self, run: RunContext) -> dict[str, Any]:
        """What is trained, as JSON values."""

    def describe(self) -> str:
        """Its line in the plan."""
        return describe_steps(self.train, self.buckets, self.patch_size, self.compression)

    def settings(self, run: RunContext) -> dict[str, Any]:
        """The network, the mix and how it is trained."""
        mix = {"weights": dict(self.mix_weights)} if self.mix_weights else {}
        return self.network_settings(run) | mix | {"train": output_settings(self.train), "seed": self.seed}

    def continues(self) -> dict[str, Any]:
        """More steps continue a finished training."""
        return {"steps": self.train.steps}

    def contents(self, folder: Path) -> dict[str, str]:
        """The weights, by the checksums of all files of the newest checkpoint."""
        from pipeline.checkpoint.read import open_checkpoint

        files = {name: file.sha256 for name, file in open_checkpoint(folder).record.files.items()}
        return {"weights": f"weights-{fingerprint(files)}"}

    def check_continues(self, run: RunContext) -> None:
        """Refuse to continue where checkpoints were saved and none is there, as where their disk is not mounted.

        The workers refuse it too, but by then the record would call everything made from this training out of date.

        Raises:
            CheckpointError: says what is missing, and the way out.
        """
        from pipeline.checkpoint.read import require_checkpoint
        from pipeline.train.monitor.events import last_saved_step

        folder = run.folder_of(self)
        if saved_step := last_saved_step(folder):
            require_checkpoint(folder, saved_step)

    def before_training(self, run: RunContext, opened: OpenStage) -> None:
        """Prepare files that the workers read."""

    def execute(self, run: RunContext) -> None:
        """Train on Ray's workers, or in this process and those that torchrun started with it.

        Raises:
            StageOrderError: a stage that it needs has not finished, or is out of date.
        """
        if not self.is_needed():
            return
        for folder, need in self.required_folders().items():
            run.finished(folder, need.stage)  # on every process, before anything in these folders is read
        task = self.task(run)
        subsets = task.subsets()
        fitting = fitting_worlds(self.train, [subset.bucket for subset in subsets], self.workers.num_workers)
        stage_dir = run.folder_of(self).resolve()
        function = partial(_train_with_log, self.name, task, self.train, stage_dir, run.files)
        with self._runner(run, function, fitting) as start:
            if not run.is_first_process:
                from pipeline.train.control import sigterm_stops

                with sigterm_stops(stage_dir):
                    start()
                return
            with run.opened(self, self.inputs(run)) as opened:
                if opened is not None:
                    self._announce(run, subsets, fitting)
                    self.before_training(run, opened)
                    outcome = self._watch(start, opened)
                    contents = self.contents(opened.folder)
                    opened.finish(outcome.outputs, outcome.summary, run.peak_rss_bytes(), contents)

    def _announce(self, run: RunContext, subsets: "list[Subset]", fitting: Collection[int]) -> None:
        for line in describe_batches(subsets, self.train):
            logger.info("%s", line)
        if run.on_ray and self.workers.min_workers is not None:
            fewest, most = self.workers.min_workers, self.workers.num_workers
            logger.info("%s", describe_elastic(self.name, fewest, most, fitting))

    def _watch(self, start: Callable[[], None], opened: OpenStage) -> Outcome:
        """Run the training, with a progress bar and the notes of its workers; returns what it made."""
        from pipeline.checkpoint.read import newest_complete_step, open_checkpoint
        from pipeline.run.progress import bar
        from pipeline.train.control import clear_control_files, sigterm_stops
        from pipeline.train.monitor.follow import following
        from pipeline.train.monitor.metrics import read_metrics
        from pipeline.train.monitor.watchdog import clear_stalls
        from pipeline.train.unreadable import num_replaced_samples

        folder, steps = opened.folder, self.train.steps
        clear_control_files(folder)
        clear_stalls(folder)
        with (
            bar(self.name, steps, "steps", start=newest_complete_step(folder)) as progress,
            following(folder, progress, logger.info, logger.warning),
            sigterm_stops(folder),
        ):
            start()
        checkpoint = open_checkpoint(folder)
        replaced = num_replaced_samples(folder)
        if checkpoint.record.step < steps:
            told = f", {replaced} unreadable samples were replaced" if replaced else ""
            raise StoppedError(f"{self.name} stopped as asked, saved at step {checkpoint.record.step}{told}")
        files = ("checkpoint.json", *sorted(checkpoint.record.files))
        outputs = [folder / "latest", *(checkpoint.folder / name for name in files)]
        summary = {"steps": checkpoint.record.step, "loss": read_metrics(folder)[-1]["total"]}
        return Outcome(outputs, summary | ({"unreadable samples replaced": replaced} if replaced else {}))

    @contextmanager
    def _runner(
        self, run: RunContext, function: "Callable[[Worker], None]", fitting: Collection[int]
    ) -> Iterator[Callable[[], None]]:
        """Yield what starts the training."""
        if run.on_ray:
            from pipeline.distributed.workers import train_on_ray

            yield partial(train_on_ray, function, self.workers, run.folder_of(self) / "ray", fitting, run.files)
        else:
            from pipeline.distributed.torchrun import local_worker, starting_together

            with local_worker(self.workers.cpus_per_worker) as worker, starting_together(worker) as start:
                yield partial(start, function)


@dataclass(frozen=True)
class TrainAutoencoderStage(TrainStage):
    """Train the video autoencoder; continues from its latest checkpoint.

    Example: `reelflow train autoencoder demo --set autoencoder.train.steps=2000 --resume`
    """

    train: AutoencoderTrainConfig
    model: AutoencoderConfig
    loss: AutoencoderLossConfig
    published: Path | None
    """Folder of a published autoencoder, which is used in place of one that is trained."""

    name = "train autoencoder"
    folder = "autoencoder"
    needs = {"clips": Need("shard", "pixels")}  # noqa: RUF012 - constant

    def describe(self) -> str:
        """Its line in the plan."""
        if self.published is None:
            return super().describe()
        return f"nothing: {self.published} is used, and autoencoder.model and autoencoder.train are not"

    def is_needed(self) -> bool:
        """Not where a published autoencoder is used."""
        return self.published is None

    def check(self) -> None:
        """Refuse a perceptual network that cannot be used, before any clip is made.

        Raises:
            PerceptualError: names the file, and what is wrong with it.
        """
        if self.is_needed() and self.loss.perceptual is not None:
            from models.autoencoder.perceptual import load_network

            load_network(self.loss.perceptual.network)

    def network_settings(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002 - of the interface
        """The autoencoder and its loss."""
        return network_settings(self.model, self.loss)

    def task(self, run: RunContext) -> "TrainTask":
        """The autoencoder on the clips."""
        from pipeline.train.tasks.autoencoder import AutoencoderTask

        return AutoencoderTask(
            model=self.model,
            dataset_dir=(run.run_dir / "clips").resolve(),
            seed=self.seed,
            weights=self.mix_weights,
            loss=self.loss.resolved(),
            image_share=self.train.image_share,
        )


def _train_with_log(
    stage_name: str, task: "TrainTask", config: TrainConfig, stage_dir: Path, files: RunFiles, worker: "Worker"
) -> None:
    """Train, with a log file of this rank in the run's `logs/`."""
    from pipeline.run.precision import describe_products
    from pipeline.train.copies import local_copies
    from pipeline.train.loop import train

    with file_log(rank_log(stage_dir.parent, stage_name, worker.rank)):
        products = f"; {describe_products()}" if worker.device.type == "cpu" else ""
        logger.debug("rank %d of %d on %s%s", worker.rank, worker.world_size, worker.device, products)
        try:
            with local_copies(files, task.dataset_dir, stage_dir, worker) as files:
                train(task, config, stage_dir, worker, files)
        except Exception:
            # To the root logger, which only files listen to: the console shows the error's message at the end.
            logging.getLogger().exception("the training ended with an error")
            raise
