"""Which settings can be used together, and with a model."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from data.files.checksums import file_sha256
from models.flow.path import path_of
from models.flow.spec import JUMPING
from pipeline.checkpoint.record import CheckpointError
from pipeline.encode.captions import check_same_encoder
from pipeline.encode.codec import AUTOENCODER_NAME
from pipeline.engine.config import SplitError, check_can_share
from pipeline.sample.config import SampleConfig
from pipeline.sample.model import SampledModel, TrainedModel, open_model
from pipeline.sample.requests import PlacedModel

DEFAULTS = SampleConfig()
OF_TOKENS = ("temperature", "corrector")
"""Settings that only the solver jumps reads."""
NOT_OF_TOKENS = (
    *("grid", "flow_path", "schedule", "window_overlap", "guidance", "guidance_checkpoint", "sde_sigma", "ddim_eta"),
)
"""Settings that it does not read."""
RULE_OF = {
    "guidance_interval": "plain",
    "zero_until": "cfg-zero-star",
    "rescale": "rescaled",
    "apg_eta": "apg",
    "apg_momentum": "apg",
    "apg_threshold": "apg",
}
"""Settings that only one guidance rule reads."""
OF_VELOCITIES = ("guidance", *RULE_OF, "negative_prompt", "guidance_checkpoint", "flow_path", "sde_sigma")
"""Settings that solvers of networks which jump do not read."""
LARGEST_SCALES = {"plain": 8.0, "cfg-zero-star": 5.0, "rescaled": 8.0, "apg": 5.0}
"""Scales up to which pictures stayed whole, by rule (`benchmarks.guidance`, docs/guides/sampling.md)."""
SHARED = "sample.sequence_parallel"
"""The setting that messages name where processes cannot share a clip."""
OF_FIXED_STEPS = ("steps", "shift", "grid")
"""Settings that an adaptive solver does not read."""


@dataclass(frozen=True)
class Contradiction:
    """A setting that cannot be used with the others."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


def contradiction_in(config: SampleConfig, given: Collection[str] = ()) -> Contradiction | None:
    """The first setting that contradicts another one, or would have no effect.

    Args:
        given: fields that were given for this one clip: each has to have an effect, also with its default value.
    """

    def is_set(name: str) -> bool:
        return name in given or getattr(config, name) != getattr(DEFAULTS, name)

    for name, rule in RULE_OF.items():
        if config.guidance != rule and is_set(name):
            return Contradiction(name, f"only the rule {rule} reads it, and guidance is {config.guidance}")
    if config.guidance_interval[0] > config.guidance_interval[1]:
        return Contradiction("guidance_interval", f"{config.guidance_interval} ends before it begins")
    if config.ddim_eta > 0 and (config.solver != "ddim" or config.sde_sigma > 0):
        return Contradiction("ddim_eta", "only the solver ddim without sde_sigma reads it")
    if config.schedule != "pyramid" and is_set("pyramid_delay"):
        return Contradiction("pyramid_delay", f"only the schedule pyramid reads it, and schedule is {config.schedule}")
    # a row may take sde_sigma in a job that has a solver for the others
    if config.sde_sigma > 0 and (is_set("solver") if "sde_sigma" not in given else "solver" in given):
        return Contradiction("sde_sigma", "above 0 the Euler-Maruyama method takes the place of the solver; give one")
    if config.solver in JUMPING:
        for name in OF_VELOCITIES:
            if is_set(name):
                return Contradiction(
                    name, f"the solver {config.solver} has its guidance in the network and follows no velocity"
                )
    if config.solver == "jumps":
        for name in NOT_OF_TOKENS:
            if is_set(name):
                return Contradiction(name, "the solver jumps, of tokens, does not read it")
    else:
        for name in OF_TOKENS:
            if is_set(name):
                return Contradiction(name, f"only the solver jumps reads it, and solver is {config.solver}")
    if config.solver == "dopri5":
        if config.schedule != "full_sequence":
            return Contradiction("schedule", "the solver dopri5 takes one time for all frames: use full_sequence")
        for name in OF_FIXED_STEPS:
            if name in given:
                return Contradiction(name, "the solver dopri5 chooses its own steps, by tolerance")
    elif is_set("tolerance"):
        return Contradiction("tolerance", f"only the solver dopri5 reads it, and solver is {config.solver}")
    if config.grid == "linear_quadratic" and config.steps < 2:
        return Contradiction("steps", "the grid linear_quadratic has at least 2")
    if config.guidance_checkpoint is None:
        if is_set("guidance_weights"):
            return Contradiction("guidance_weights", "guidance_checkpoint is not set, whose weights these are")
    elif config.negative_prompt is not None:
        return Contradiction(
            "negative_prompt", "with guidance_checkpoint, guidance moves away from that network instead"
        )
    if config.guidance_scale == 1:
        for name in ("negative_prompt", "guidance_checkpoint"):
            if name in given:
                return Contradiction(name, "guidance_scale is 1, which means no guidance")
    return None


def is_beyond_rule(config: SampleConfig) -> bool:
    """Whether the guidance scale is larger than pictures bear under the rule."""
    return config.guidance_scale > LARGEST_SCALES[config.guidance]


def text_encoder_folder(model: SampledModel, config: SampleConfig) -> Path:
    """The folder to load the model's text encoder from; it has one."""
    assert model.text_encoder is not None
    return Path(model.text_encoder.folder) if config.text_encoder is None else config.text_encoder.resolve()


def check_can_sample(model: SampledModel, config: SampleConfig) -> None:
    """Refuse settings that the model cannot be sampled with, before Ray starts and earlier samples are archived.

    Raises:
        CheckpointError: the settings contradict each other; it holds no such weights, or was not trained for the
            schedule; or the weaker checkpoint is not of the same flow and latents.
        PublishedError: as above, of a published pipeline.
        TextEncoderError: its text encoder is missing or another one.
    """
    if (found := contradiction_in(config)) is not None:
        raise CheckpointError(f"sample.{found}")
    check_model(model, config)


def check_model(model: SampledModel, config: SampleConfig) -> None:
    """The part of `check_can_sample` that depends on the model.

    Raises:
        CheckpointError: as `check_can_sample`.
        PublishedError: likewise.
        TextEncoderError: likewise.
    """
    check_settings(model, config)
    if model.text_encoder is not None:
        check_same_encoder(model.text_encoder, text_encoder_folder(model, config))


def check_settings(model: SampledModel, config: SampleConfig) -> PlacedModel | None:
    """The part of `check_can_sample` that differs between clips; returns the weaker checkpoint, if there is one.

    Raises:
        CheckpointError: as `check_can_sample`.
        PublishedError: likewise.
    """
    model.check_weights(config.weights)
    try:
        check_can_share(model.network, config.sequence_parallel, SHARED)
    except SplitError as error:
        raise CheckpointError(str(error)) from error
    if config.schedule != "full_sequence" and model.flow.times_per != "frame":
        raise CheckpointError(
            f"sample.schedule is {config.schedule!r}, but {model.folder} was trained with one time for all frames: use "
            "full_sequence, or train with dit.flow.times_per=frame"
        )
    if (config.solver == "jumps") != (model.flow.tokens is not None):
        raise CheckpointError(
            f"sample.solver is {config.solver}, but {model.folder} predicts "
            + ("latents: use another solver" if model.flow.tokens is None else "tokens: use the solver jumps")
        )
    _check_few_steps(model, config)
    if config.guidance_checkpoint is None:
        return None
    weaker = open_weaker(model, config.guidance_checkpoint)
    weaker.check_weights(config.guidance_weights)
    return PlacedModel(folder=str(weaker.folder.resolve()), fingerprint=weaker.fingerprint)


def _check_few_steps(model: SampledModel, config: SampleConfig) -> None:
    """Refuse a solver that jumps where the network does not, and the other way round.

    Raises:
        CheckpointError: names the setting and the way out.
    """
    spec, matching = model.flow.few_steps, model.flow.matching
    if matching is not None:
        if config.solver != "renoise":
            raise CheckpointError(
                f"sample.solver is {config.solver}, but {model.folder} was trained by distribution matching, and jumps "
                "to the data from every time: use the solver renoise"
            )
        if (refusal := matching.times_refusal(config.steps, config.shift, config.grid)) is not None:
            raise CheckpointError(f"{model.folder}: sample.{refusal}")
    if config.solver not in JUMPING:
        return
    if spec is None:
        raise CheckpointError(
            f"sample.solver is {config.solver}, but {model.folder} was not trained as a flow map: sample that of a run "
            "with the section distill, or use another solver"
        )
    if not 1 <= config.guidance_scale <= spec.max_guidance:
        raise CheckpointError(
            f"sample.guidance_scale is {config.guidance_scale:g}, but the flow map of {model.folder} was trained "
            f"with scales from 1 to {spec.max_guidance:g}: use one of them, or train with a larger max_guidance"
        )


def open_weaker(model: SampledModel, folder: Path, *, verify: bool = False) -> TrainedModel:
    """The checkpoint that guidance moves away from, whose flow and latents have to be the model's.

    Args:
        verify: as `open_model`.

    Raises:
        CheckpointError: it cannot be used; names what differs.
    """
    weaker = open_model(folder, verify=verify)
    named = f"sample.guidance_checkpoint is {folder}, but"
    if not isinstance(model, TrainedModel) or not isinstance(weaker, TrainedModel):
        raise CheckpointError(f"{named} published pipelines have no weaker version of their own: leave it out")
    if weaker.flow.tokens is not None:
        raise CheckpointError(f"{named} it predicts tokens, and guidance is of velocities: leave it out")
    if weaker.flow.matching is not None:
        raise CheckpointError(
            f"{named} it was trained by distribution matching, without velocities, which guidance is of: leave it out"
        )
    for what, one, other in (
        ("path", path_of(model.flow), path_of(weaker.flow)),
        ("prediction", model.flow.prediction, weaker.flow.prediction),
        ("times_per", model.flow.times_per, weaker.flow.times_per),
        ("latent statistics", model.stats, weaker.stats),
        ("text encoder", model.text_encoder and model.text_encoder.fingerprint, _encoder_of(weaker)),
        ("autoencoder", *(file_sha256(each.folder / AUTOENCODER_NAME) for each in (model, weaker))),
    ):
        if one != other:
            raise CheckpointError(f"{named} its {what} differs from that of {model.folder}: name one of the same run")
    return weaker


def _encoder_of(model: SampledModel) -> str | None:
    return model.text_encoder and model.text_encoder.fingerprint
