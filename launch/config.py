"""One configuration tree: read from YAML, overridden from the command line, checked before anything starts."""

import difflib
import os
from collections.abc import Sequence
from math import lcm
from pathlib import Path
from typing import Any, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from data.dataset.buckets import Bucket
from data.errors import ReelflowError
from data.records import Settings
from models.autoencoder.config import AutoencoderConfig
from models.flow.spec import FlowSpec
from models.networks.config import DiTConfig
from pipeline.distributed.config import WorkersConfig
from pipeline.encode.config import EncodeConfig
from pipeline.engine.config import check_heads, check_tokens
from pipeline.evaluate.config import EvaluateConfig
from pipeline.ingest.config import DataConfig
from pipeline.run.weight_names import FIRST, MASTER
from pipeline.sample.config import SampleSection
from pipeline.train.config import FlowTrainConfig, TrainConfig
from pipeline.train.world_size import fitting_worlds

PRESETS_DIR = Path(__file__).parent / "presets"


class ConfigError(ReelflowError, ValueError):
    """A configuration that cannot be used; the message names the field, the value and the way out."""


class AutoencoderSection(Settings):
    """The autoencoder and its training."""

    model: AutoencoderConfig = AutoencoderConfig()
    """TODO"""
    train: TrainConfig = TrainConfig()
    """TODO"""


class DiTSection(Settings):
    """The DiT, what it learns, and its training."""

    model: DiTConfig = DiTConfig()
    """TODO"""
    flow: FlowSpec = FlowSpec()
    """TODO"""
    train: FlowTrainConfig = FlowTrainConfig()
    """TODO"""


class ClusterConfig(Settings):
    """Where Ray runs."""

    address: str | None = None
    """None: a cluster of this process's own; "auto" or host:port: one that runs already."""
    object_store_mib: int = Field(default=512, ge=80)
    """Of a cluster of its own."""
    workers: WorkersConfig = WorkersConfig()
    """TODO"""


class RunConfig(Settings):
    """Everything a run depends on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """TODO"""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """TODO"""
    runs_dir: Path = Path("runs")
    """TODO"""
    data: DataConfig = DataConfig()
    """TODO"""
    autoencoder: AutoencoderSection = AutoencoderSection()
    """TODO"""
    encode: EncodeConfig = EncodeConfig()
    """TODO"""
    dit: DiTSection = DiTSection()
    """TODO"""
    sample: SampleSection = SampleSection()
    """TODO"""
    evaluate: EvaluateConfig = EvaluateConfig()
    """TODO"""
    cluster: ClusterConfig = ClusterConfig()
    """TODO"""

    @property
    def run_dir(self) -> Path:
        """The folder everything of this run is in."""
        return self.runs_dir / self.name

    @property
    def known_buckets(self) -> tuple[Bucket, ...] | None:
        """The shapes of clips; None where they will be chosen from the videos."""
        return None if self.data.choose_buckets is not None else self.data.buckets

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, section in (("autoencoder", self.autoencoder), ("dit", self.dit)):
            num_workers = self.cluster.workers.num_workers
            batch, together = section.train.global_batch, section.train.sequence_parallel
            if num_workers % together:
                raise ValueError(
                    f"{name}.train.sequence_parallel is {together}, but cluster.workers.num_workers {num_workers} do "
                    f"not form groups of that many: use {-(-num_workers // together) * together} workers"
                )
            num_shares = num_workers // together
            groups = f" in groups of {together}" if together > 1 else ""
            if batch % num_shares:
                nearest = max(1, round(batch / num_shares)) * num_shares
                raise ValueError(
                    f"{name}.train.global_batch is {batch}, but cluster.workers.num_workers {num_workers}{groups} must "
                    f"divide it: use {nearest}"
                )
            multiple = section.train.batch_multiple
            several = self.data.choose_buckets is not None or len(self.data.buckets) > 1
            if several and multiple % num_shares:
                raise ValueError(
                    f"{name}.train.batch_multiple is {multiple}, but cluster.workers.num_workers {num_workers}{groups} "
                    f"must divide it, or not every bucket's batch does: use {lcm(multiple, num_shares)}"
                )
            fewest = self.cluster.workers.fewest
            fitting = fitting_worlds(section.train, (), num_workers)
            if fitting and fewest not in fitting:
                nearest = min(fitting, key=lambda number: abs(number - fewest))
                raise ValueError(
                    f"cluster.workers.min_workers is {fewest}, but {name}.train.global_batch {batch} does not divide "
                    f"over so many: use {nearest}"
                )
        self._check_sequence_parallel()
        patch = self.dit.model.patch_size
        choice = self.data.choose_buckets
        if choice is not None and choice.side_multiple % (8 * patch):
            raise ValueError(
                f"data.choose_buckets.side_multiple is {choice.side_multiple}, but with dit.model.patch_size {patch} "
                f"sides are multiples of {8 * patch}: use {lcm(choice.side_multiple, 8 * patch)}"
            )
        for number, bucket in enumerate(() if choice is not None else self.data.buckets):
            for side in ("height", "width"):
                pixels = getattr(bucket, side)
                if pixels // 8 % patch:
                    raise ValueError(
                        f"data.buckets.{number}.{side} is {pixels}: its latent of {pixels // 8} does not split into "
                        f"patches of dit.model.patch_size {patch}"
                    )
        known = [FIRST, MASTER, *(profile.name for profile in self.dit.train.ema)]
        if self.sample.weights not in known:
            raise ValueError(f"sample.weights is {self.sample.weights!r}, but dit.train.ema gives {', '.join(known)}")
        if self.sample.schedule != "full_sequence" and self.dit.flow.times_per != "frame":
            raise ValueError(
                f"sample.schedule is {self.sample.schedule!r}, but dit.flow.times_per is 'clip': a network that learns "
                "one time for all frames cannot be asked for several; set dit.flow.times_per to frame"
            )
        return self

    def _check_sequence_parallel(self) -> None:
        if self.autoencoder.train.sequence_parallel > 1:
            raise ValueError(
                "autoencoder.train.sequence_parallel is for the DiT, which has tokens to share: leave it out"
            )
        model, together = self.dit.model, self.dit.train.sequence_parallel
        check_heads(model.heads, model.width, together)
        if self.data.choose_buckets is None:  # those that are chosen are checked before the first step
            for bucket in self.data.buckets:
                tokens = bucket.num_latents // bucket.num_latent_frames // model.patch_size**2
                check_tokens(bucket.name, tokens, together)


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (or a preset by its bare name) and apply `section.field=value` overrides.

    Raises:
        ConfigError: the file is missing or not YAML, or a field is unknown, of the wrong type or impossible.
    """
    path = find_config(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds a {type(tree).__name__}, not sections with fields")
    for override in overrides:
        apply_override(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, str(path))) from error


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


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set one `section.field=value` in a tree of plain values; the value is read as YAML.

    Raises:
        ConfigError: it is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: write section.field=value, for example dit.train.steps=2000")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {text!r} is not YAML; quote text that has brackets or colons") from error
    *sections, field = key.strip().split(".")
    node: Any = tree
    for section in sections:
        node = node[_place(override, section, node)] if isinstance(node, list) else node.setdefault(section, {})
        if not isinstance(node, dict | list):
            raise ConfigError(f"--set {override}: {section} is not a section")
    place: Any = _place(override, field, node) if isinstance(node, list) else field
    node[place] = value


def _place(override: str, number: str, items: list[Any]) -> int:
    if not number.isdecimal() or int(number) >= len(items):
        raise ConfigError(f"--set {override}: {number!r} must be a number below {len(items)}, counted from 0")
    return int(number)


def explain(error: ValidationError, source: str, root: type[BaseModel] = RunConfig) -> str:
    """Every problem on a line: field, value, and the nearest valid key or value."""
    lines = []
    for problem in error.errors():
        location = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(root, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            lines.append(f"{location}: there is no such field; {hint}")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        value = problem["input"]
        shown = "" if isinstance(value, dict | BaseModel) else f" (it is {value!r})"
        lines.append(f"{location or 'config'}: {message}{shown}")
    return f"{source} cannot be used:" + "".join(f"\n  {line}" for line in lines)


def _fields_at(root: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The fields of the record at a place of the tree, through lists, dicts and what may be missing."""
    model: Any = root
    for part in location:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        while not (isinstance(model, type) and issubclass(model, BaseModel)):
            inner = [kind for kind in get_args(model) if kind not in (type(None), ...)]
            if not inner:
                return []
            model = inner[-1]
    return list(model.model_fields)


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
