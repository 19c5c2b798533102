"""The settings that a checkpoint or a published pipeline is sampled with outside its run: its own, and overrides."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from data.records import Settings
from launch.config import ClusterConfig
from launch.overrides import ConfigError, Given, Override, apply_override, explain
from pipeline.sample.checks import RULE_OF
from pipeline.sample.config import SampleSection
from pipeline.sample.model import SampledModel, TrainedModel

DEPENDENTS = {
    "solver": ("grid", "tolerance", "ddim_eta", "sde_sigma"),
    "guidance": tuple(RULE_OF),
}
"""Settings of a model that mean little beside another value of the one that they belong to."""
OF_SCHEDULERS = {"grid": ("solver",)}
"""Likewise, in published pipelines, whose grids are those of one solver."""


class SamplingConfig(Settings):
    """The part of the configuration of a run that sampling reads."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Every random number is a function of this seed and of what it is for."""
    sample: SampleSection = SampleSection()
    """How clips are sampled, and of which prompts."""
    cluster: ClusterConfig = ClusterConfig()
    """Where to compute, and with how many workers."""


def read_settings(model: SampledModel, overrides: Sequence[Override]) -> tuple[SamplingConfig, list[str]]:
    """The settings to sample a model with, those it was made for and the overrides, and warnings.

    Raises:
        ConfigError: an override is wrong.
    """
    tree, warnings = _defaults(model, overrides)
    for override in overrides:
        apply_override(tree, override, SamplingConfig)
    try:
        return SamplingConfig.model_validate(tree), warnings
    except ValidationError as error:
        raise ConfigError(explain(error, "--set", SamplingConfig)) from error


def _defaults(model: SampledModel, overrides: Sequence[Override]) -> tuple[dict[str, Any], list[str]]:
    """The settings that a model was made to be sampled with, and warnings.

    Some belong together: where one of them is overridden, those that depend on it are not taken either.
    """
    settings, warnings = model.sampling_defaults
    keys = {
        override.key if isinstance(override, Given) else override.partition("=")[0].strip() for override in overrides
    }
    dependents = DEPENDENTS if isinstance(model, TrainedModel) else DEPENDENTS | OF_SCHEDULERS
    dropped = {name for key, names in dependents.items() if f"sample.{key}" in keys for name in names}
    tree: dict[str, Any] = {"sample": {name: value for name, value in settings.items() if name not in dropped}}
    if isinstance(model, TrainedModel) and isinstance(seed := model.checkpoint.record.trained.get("seed"), int):
        tree["seed"] = seed
    return tree, warnings
