"""The one ordered list of stages. The command line, the plan, the report and `submit` read it.

To add a stage, write its class (`pipeline/run/stage.py` says what it has to tell) and add one entry here.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from data.dataset.compression import Compression
from launch.config import RunConfig
from launch.overrides import ConfigError
from launch.rules import check_grid
from pipeline.encode.stage import EncodeStage
from pipeline.evaluate.stage import EvaluateStage
from pipeline.ingest.stage import DrawStage, ShardStage
from pipeline.run.fingerprints import output_settings
from pipeline.run.stage import Stage
from pipeline.sample.stage import SampleStage
from pipeline.train.flow_stage import TrainDistillStage, TrainFlowStage
from pipeline.train.stage import TrainAutoencoderStage
from pipeline.train.tokenizer_stage import TrainTokenizerStage

Options = Literal["plain", "retry", "training"]
"""Of a command beside CONFIG, --set and the like: none, --retry, or --resume, --allow-change and --local."""


@dataclass(frozen=True)
class Entry:
    """A stage of the list."""

    stage: type[Stage]
    build: Callable[[RunConfig], Stage]
    """The stage as a configuration describes it."""
    options: Options | None = "plain"
    """Of its command; None: it has none, or one written by hand in `launch/__main__.py`."""
    with_stages: tuple[str, ...] = ()
    """Names of stages that its command runs before it."""

    @property
    def name(self) -> str:
        """As on the command line, such as "train dit"."""
        return self.stage.name

    @property
    def runs(self) -> tuple[str, ...]:
        """The stages that its command runs."""
        return (*self.with_stages, self.name)


def _draw(config: RunConfig) -> Stage:
    return DrawStage(config.data, config.seed)


def _shard(config: RunConfig) -> Stage:
    return ShardStage(config.data, config.cluster.workers)


def _compression(config: RunConfig) -> Compression:
    """Of the autoencoder that the run uses.

    Raises:
        PublishedError: the folder of a published one cannot be used.
        ConfigError: it does not take the clips of the configuration.
    """
    if config.autoencoder.published is None:
        return config.autoencoder.model.compression
    from pipeline.encode.published import autoencoder_stats, open_autoencoder

    _, compression = autoencoder_stats(open_autoencoder(config.autoencoder.published))
    try:
        check_grid(config, compression)
    except ValueError as error:
        raise ConfigError(f"autoencoder.published: {config.autoencoder.published}: {error}") from error
    return compression


def _train_autoencoder(config: RunConfig) -> Stage:
    return TrainAutoencoderStage(
        train=config.autoencoder.train,
        seed=config.seed,
        mix_weights=config.data.weights,
        buckets=config.known_buckets,
        patch_size=config.dit.model.patch_size,
        compression=config.autoencoder.model.compression,
        workers=config.cluster.workers,
        model=config.autoencoder.model,
        loss=config.autoencoder.loss,
        published=config.autoencoder.published,
    )


def _encode(config: RunConfig) -> Stage:
    return EncodeStage(
        config=config.encode,
        autoencoder=config.autoencoder.model,
        published=config.autoencoder.published,
        null_caption=config.dit.flow.null_caption,
        workers=config.cluster.workers,
    )


def _train_tokenizer(config: RunConfig) -> Stage:
    section = config.tokenizer
    return TrainTokenizerStage(
        train=config.dit.train if section is None else section.train,
        seed=config.seed,
        mix_weights=config.data.weights,
        buckets=config.known_buckets,
        patch_size=1,
        compression=_compression(config),
        workers=config.cluster.workers,
        model=None if section is None else section.model,
    )


def _train_dit(config: RunConfig) -> Stage:
    return TrainFlowStage(
        train=config.dit.train,
        seed=config.seed,
        mix_weights=config.data.weights,
        buckets=config.known_buckets,
        patch_size=config.dit.model.patch_size,
        compression=_compression(config),
        workers=config.cluster.workers,
        model=config.dit.model,
        flow=config.dit.flow,
        tokens=None if config.tokenizer is None else config.tokenizer.model,
        sampling=tuple(output_settings(config.sample.sampler()).items()),
    )


def _train_distill(config: RunConfig) -> Stage:
    flow = config.student_flow
    return TrainDistillStage(
        train=config.dit.train if config.distill is None else config.distill.train,
        seed=config.seed,
        mix_weights=config.data.weights,
        buckets=config.known_buckets,
        patch_size=config.dit.model.patch_size,
        compression=_compression(config),
        workers=config.cluster.workers,
        model=config.dit.model if flow is None else config.dit.model.model_copy(update={"flow_map": True}),
        flow=config.dit.flow.model_copy(update={"map": None}) if flow is None else flow,
        sampling=tuple(output_settings(config.sample.sampler()).items()),
    )


def _sample(config: RunConfig) -> Stage:
    combinations = config.evaluate.prompts_per_combination
    network = TrainFlowStage.folder if config.distill is None else TrainDistillStage.folder
    return SampleStage(config.sample, config.data, config.seed, combinations, config.cluster.workers, network)


def _evaluate(config: RunConfig) -> Stage:
    return EvaluateStage(
        config.evaluate, config.data, config.seed, config.sample.guidance_scale, config.cluster.workers
    )


STAGES = (
    Entry(DrawStage, _draw, options=None),
    Entry(ShardStage, _shard, options="retry", with_stages=(DrawStage.name,)),
    Entry(TrainAutoencoderStage, _train_autoencoder, options="training"),
    Entry(EncodeStage, _encode),
    Entry(TrainTokenizerStage, _train_tokenizer, options="training"),
    Entry(TrainFlowStage, _train_dit, options="training"),
    Entry(TrainDistillStage, _train_distill, options="training"),
    Entry(SampleStage, _sample, options=None),
    Entry(EvaluateStage, _evaluate),
)
NAMES = tuple(entry.name for entry in STAGES)
FOLDERS = {entry.stage.folder: entry.stage.needs for entry in STAGES}
"""Of all stages, in order, each with what its stage needs."""


def stages_of(config: RunConfig, names: Collection[str] = NAMES) -> list[Stage]:
    """The stages of a configuration that are named, in order."""
    return [entry.build(config) for entry in STAGES if entry.name in names]
