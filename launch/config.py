"""One configuration tree: read from YAML, overridden from the command line, checked before anything starts."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from data.dataset.buckets import Bucket
from data.files.locations import Folder, Place, is_uri
from data.records import AddedLater, Runtime, Settings
from launch.overrides import ConfigError, Override, apply_override, explain
from launch.plain_yaml import MAX_CHARACTERS, YamlError, read_plain_yaml
from launch.rules import RULES
from models.autoencoder.config import DEFAULT_LOSS, KL_NAME, AutoencoderConfig, AutoencoderLossConfig
from models.flow.spec import DistributionMatchingSpec, FlowMapSpec, FlowSpec
from models.networks.config import DEFAULT_NETWORK, NetworkConfig
from models.tokens.config import TokenizerConfig
from pipeline.distributed.config import WorkersConfig
from pipeline.encode.config import EncodeConfig
from pipeline.evaluate.config import EvaluateConfig
from pipeline.ingest.config import DataConfig
from pipeline.run.local_folders import RUNS, cache_folder, local_folder
from pipeline.sample.config import SampleSection
from pipeline.train.config import AutoencoderTrainConfig, FlowTrainConfig, TrainConfig

MAX_BYTES = 4 * MAX_CHARACTERS  # of UTF-8
PRESETS_DIR = Path(__file__).parent / "presets"


def with_new_names(fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
    """The fields of section `autoencoder` with `model.kl_weight`, if it is there, under its new name `loss.kl`.

    Raises:
        ValueError: both are given.
    """
    model = fields.get("model") if isinstance(fields, dict) else None
    if not isinstance(model, dict) or KL_NAME not in model:
        return fields
    loss = fields.get("loss", {})
    if not isinstance(loss, dict) or "kl" in loss:
        raise ValueError(f"model.{KL_NAME} is the old name of loss.kl, and both are given: remove model.{KL_NAME}")
    model = {name: value for name, value in model.items() if name != KL_NAME}
    return fields | {"model": model, "loss": loss | {"kl": fields["model"][KL_NAME]}}


class AutoencoderSection(Settings):
    """The autoencoder and its training."""

    model: AutoencoderConfig = AutoencoderConfig()
    """Size of the autoencoder."""
    loss: AutoencoderLossConfig = DEFAULT_LOSS
    """The terms of its loss."""
    train: AutoencoderTrainConfig = AutoencoderTrainConfig()
    """How the autoencoder is trained."""
    published: Annotated[Path | None, Runtime] = None
    """Folder of a published autoencoder, or of a published pipeline that has one: it is used as it is, and neither
    `model` nor `train` is read. None trains an autoencoder.
    """

    @model_validator(mode="before")
    @classmethod
    def _move_old_names(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
        return with_new_names(fields)

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        if self.published is not None:
            return self
        if self.train.zero_stage == 3 and self.loss.adversarial is not None:
            raise ValueError(
                "train.zero_stage is 3, where the gradients that loss.adversarial compares cannot be taken apart: set "
                "train.zero_stage to 2, or leave loss.adversarial out"
            )
        others = {"adversarial": self.loss.adversarial, "perceptual": self.loss.perceptual}
        if self.train.compile and (names := [f"loss.{name}" for name, term in others.items() if term is not None]):
            used = " and ".join(names)
            raise ValueError(
                f"train.compile is true, but a loss with {used} cannot be compiled as a whole: set train.compile to "
                f"false, or leave {used} out"
            )
        return self


class TokenizerSection(Settings):
    """The tokeniser of latents and its training."""

    model: TokenizerConfig = TokenizerConfig()
    """Size of the tokeniser, and its vocabulary."""
    train: TrainConfig = TrainConfig()
    """How the tokeniser is trained."""


class FlowSection(Settings):
    """The network that predicts the velocity of a flow, the flow, and the training."""

    model: NetworkConfig = DEFAULT_NETWORK
    """Architecture and size of the network."""
    flow: FlowSpec = FlowSpec()
    """The path from noise to data, and what the network predicts."""
    train: FlowTrainConfig = FlowTrainConfig()
    """How the network is trained."""


class DistillSection(Settings):
    """A student of the network in `dit`, which makes clips in 1 to 8 network calls."""

    kind: Annotated[Literal["flow_map", "distribution_matching"], AddedLater("flow_map")] = "flow_map"
    """What it learns: the map of its teacher's flow, which has an end for every noise (`flow_map`), or its teacher's
    distribution alone, with a critic (`distribution_matching`, DMD2).
    """
    map: FlowMapSpec = FlowMapSpec()
    """How it learns the map of the flow."""
    matching: Annotated[DistributionMatchingSpec, AddedLater(DistributionMatchingSpec())] = DistributionMatchingSpec()
    """How it learns the distribution."""
    train: FlowTrainConfig = FlowTrainConfig()
    """How it is trained, from the weights of its teacher: `start_from` and `lora` are not for it."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        for kind, name in (("flow_map", "map"), ("distribution_matching", "matching")):
            if kind != self.kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is of the kind {kind}, and kind is {self.kind}: leave {name} out")
        return self


class ClusterConfig(Settings):
    """Where Ray runs."""

    address: Annotated[str | None, Runtime] = None
    """A running Ray cluster: `auto`, or host:port. None: the command starts one on this machine, and ends it."""
    object_store_mib: Annotated[int, Runtime] = Field(default=512, ge=80)
    """Shared memory of a cluster that is started by the command, in MiB."""
    shared_folder: Annotated[bool, Runtime] = True
    """Whether all machines see the run's folder. False: they share nothing but its `store`, through which they get what
    they read and give what they make (docs/guides/cluster.md).
    """
    shard_parts: Annotated[bool, Runtime] = False
    """Where machines share no folder: whether a training fetches the parts of shards that its workers read, when they
    first read them, instead of all shards before its first step. For machines that have no room for the dataset, or
    trainings that see only a part of it: a request for each clip takes longer than one for each shard.
    """
    workers: WorkersConfig = WorkersConfig()
    """How many workers run, and what each may use."""


class RunConfig(Settings):
    """Everything a run depends on."""

    name: Annotated[str, Runtime] = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Name of the run and of its folder: lower-case letters, digits, `-` and `_`, at most 63."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Every random number of the run is a function of this seed and of what it is for."""
    runs_dir: Annotated[Folder, Runtime] = Path("runs")
    """The folder that holds the folders of all runs, or the URI of one in an object store (s3, gs, az): the run is then
    fetched from there, works in a folder of this machine, and is stored there after each checkpoint and each stage;
    machines share nothing but the store (docs/guides/cluster.md).
    """
    local_dir: Annotated[Path | None, Runtime] = None
    """Where `runs_dir` is in a store: the folder of each machine in which runs work, with the same path on all of them.
    None: `reelflow/runs` in the user's folder for caches.
    """
    store: Annotated[Place | None, Runtime] = None
    """URI of a folder in an object store (s3, gs, az) for copies of runs in `runs_dir`, where that is a folder. A run
    whose folder is missing is fetched from there before it starts, and copied there after each checkpoint and each
    stage, also one that was stopped (docs/guides/cluster.md).
    """
    data: DataConfig = DataConfig()
    """The videos, and how they are cut into clips."""
    autoencoder: AutoencoderSection = AutoencoderSection()
    """The autoencoder and its training."""
    encode: EncodeConfig = EncodeConfig()
    """How clips are encoded into latents."""
    tokenizer: Annotated[TokenizerSection | None, AddedLater(None)] = None
    """A tokeniser of latents, whose tokens `dit` then predicts: it needs `dit.flow.tokens`. None: there is none."""
    dit: FlowSection = FlowSection()
    """The diffusion transformer and its training."""
    distill: Annotated[DistillSection | None, AddedLater(None)] = None
    """A student of the diffusion transformer that needs few steps, which is then sampled in place of it with
    `sample.solver: flow_map`, or `renoise` where it learned by distribution matching. None: there is none.
    """
    sample: SampleSection = SampleSection()
    """How clips are sampled, and of which prompts."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """What is measured."""
    cluster: Annotated[ClusterConfig, Runtime] = ClusterConfig()
    """Where the run computes, and with how many workers."""

    @field_validator("store")
    @classmethod
    def _is_uri(cls, store: str | None) -> str | None:
        if store is not None and "://" not in store:
            raise ValueError("it is no URI; write one, such as s3://bucket/runs")
        return store

    @property
    def run_dir(self) -> Path:
        """The folder everything of this run is in; where `runs_dir` is in a store, that in which the run works."""
        if isinstance(self.runs_dir, Path):
            return self.runs_dir / self.name
        return local_folder(self.runs_dir, self.local_dir or cache_folder() / RUNS) / self.name

    @property
    def place(self) -> str | None:
        """URI of this run in its store; None: it has none."""
        folder = self.runs_dir if isinstance(self.runs_dir, str) else self.store
        return None if folder is None else f"{folder.rstrip('/')}/{self.name}"

    @property
    def is_stored_run(self) -> bool:
        """Whether the run is in a store, and its folder here follows that."""
        return isinstance(self.runs_dir, str)

    @property
    def student_flow(self) -> FlowSpec | None:
        """The flow of `distill`: that of `dit`, with how the student learns of it.

        Raises:
            ValueError: a student cannot learn of it.
        """
        if self.distill is None:
            return None
        if self.distill.kind == "flow_map":
            own: dict[str, Any] = {"map": self.distill.map}
        else:  # no noise belongs to a clip of the data
            own = {"matching": self.distill.matching, "noise": "drawn", "coupled_clips": 1}
        return FlowSpec.model_validate(self.dit.flow.model_dump() | own)

    @property
    def known_buckets(self) -> tuple[Bucket, ...] | None:
        """The shapes of clips; None where they will be chosen from the videos."""
        return None if self.data.choose_buckets is not None else self.data.buckets

    @model_validator(mode="before")
    @classmethod
    def _share_the_store_alone(cls, fields: Any) -> Any:  # noqa: ANN401 - whatever a configuration may hold
        """Machines share no folder where `runs_dir` is in a store, unless the configuration says otherwise."""
        if not isinstance(fields, dict) or not is_uri(fields.get("runs_dir")):
            return fields
        cluster = fields.get("cluster", {})
        if isinstance(cluster, ClusterConfig) and "shared_folder" not in cluster.model_fields_set:
            cluster = cluster.model_copy(update={"shared_folder": False})
        elif isinstance(cluster, dict):
            cluster = {"shared_folder": False} | cluster
        return fields | {"cluster": cluster}

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in RULES:
            rule(self)
        return self


def load_config(path: Path | str, overrides: Sequence[Override] = ()) -> RunConfig:
    """Read a YAML file (or a preset by its bare name) and apply `section.field=value` overrides.

    Args:
        path: also the URI of a run in a store, whose own configuration is read.

    Raises:
        ConfigError: the file is missing, too large, not YAML or ambiguous (`launch/plain_yaml.py`), or a field is
            unknown, of the wrong type or impossible.
        StoredRunError: no run is stored at the URI, or the store cannot be read.
    """
    if isinstance(path, str) and is_uri(path):
        from launch.stored_config import read_stored_tree

        tree = read_stored_tree(path)
    else:
        path = find_config(Path(path))
        if (num_bytes := path.stat().st_size) > MAX_BYTES:
            raise ConfigError(f"{path} has {num_bytes} bytes, more than {MAX_BYTES}; a configuration is shorter")
        tree = read_tree(path.read_bytes(), str(path))
    if overrides:
        tree = _with_new_names(path, tree)
    for override in overrides:
        apply_override(tree, renamed(override), RunConfig)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, str(path), RunConfig)) from error


def read_tree(content: bytes, name: str) -> dict[str, Any]:
    """The sections of a configuration.

    Args:
        content: of a YAML file.
        name: of the file, for messages.

    Raises:
        ConfigError: it is not YAML, or ambiguous.
    """
    try:
        tree = read_plain_yaml(content.decode("utf-8-sig"))
    except YamlError as error:
        raise ConfigError(f"{name}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} holds a {type(tree).__name__}, not sections with fields")
    return tree


def _with_new_names(path: Path | str, tree: dict[str, Any]) -> dict[str, Any]:
    """As `with_new_names`, so that an override by the new name takes the place of a value under the old one."""
    try:
        return tree | {name: with_new_names(tree[name]) for name in ("autoencoder",) if name in tree}
    except ValueError as error:
        raise ConfigError(f"{path}: autoencoder: {error}") from error


def renamed(override: Override) -> Override:
    """An override under the new name of its field, where that is in another section than the old one."""
    old, new = f"autoencoder.model.{KL_NAME}", "autoencoder.loss.kl"
    if isinstance(override, str) and override.partition("=")[0].strip() == old:
        return override.replace(old, new, 1)
    return override


def find_config(path: Path) -> Path:
    """The file itself, or the preset of that name.

    Raises:
        ConfigError: neither exists; names the presets there are.
    """
    if path.is_file():
        return path
    preset = PRESETS_DIR / f"{path.name.removesuffix('.yaml')}.yaml"
    if preset.is_file() and path.parent == Path():
        return preset
    presets = ", ".join(sorted(file.stem for file in PRESETS_DIR.glob("*.yaml")))
    raise ConfigError(f"{path}: there is no such config file; presets are {presets}")


def dump_config(config: RunConfig) -> str:
    """YAML text that `load_config` reads back to an equal tree."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def check_writable(folder: Path) -> None:
    """Make `folder`, and fail now rather than after an hour if nothing can be written into it.

    Raises:
        ConfigError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made ({error.strerror}); set runs_dir to a folder you own") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be written; set runs_dir to a folder you own")
