"""Stages train dit and train distill: the flow, and the weights that it may start from."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.flow.spec import FlowSpec
from models.networks.config import NetworkConfig
from models.tokens.config import TokenizerConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import stored
from pipeline.run.stage_record import OpenStage
from pipeline.train.config import FlowTrainConfig
from pipeline.train.stage import TrainStage

if TYPE_CHECKING:
    from data.dataset.manifest import Manifest
    from pipeline.train.base import Base
    from pipeline.train.task import TrainTask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainFlowStage(TrainStage):
    """Train the diffusion transformer with flow matching; continues from its latest checkpoint.

    Example: `reelflow train dit demo --set dit.train.steps=5000 --resume`
    """

    train: FlowTrainConfig
    model: NetworkConfig
    flow: FlowSpec
    sampling: tuple[tuple[str, Any], ...] = ()
    """Settings that the run samples it with, names and JSON values: checkpoints carry them, previews are sampled so."""
    tokens: TokenizerConfig | None = None
    """The tokeniser whose tokens it predicts; None: it predicts velocities of latents."""
    _bases: "dict[Path, Base | None]" = field(default_factory=dict, init=False, repr=False)

    name = "train dit"
    folder = "dit"
    needs = {  # noqa: RUF012 - constant
        "latents": Need("encode", "latents"),
        "tokenizer": Need("train tokenizer", "weights"),
    }

    def required_folders(self) -> Mapping[str, Need]:
        """The latents, and the tokeniser of a network that predicts tokens."""
        return {folder: need for folder, need in self.needs.items() if folder != "tokenizer" or self.tokens is not None}

    def network_settings(self, run: RunContext) -> dict[str, Any]:
        """The network, the flow, and the checkpoint that it starts from."""
        settings = {"model": stored(self.model), "flow": stored(self.flow)}
        base = self._base(run)
        return settings if base is None else settings | {"base": base.fingerprint}

    def task(self, run: RunContext) -> "TrainTask":
        """The flow on the latents."""
        from data.dataset.manifest import read_manifest
        from pipeline.checkpoint.adapters import BASE_NAME
        from pipeline.encode.codec import AUTOENCODER_NAME
        from pipeline.encode.tokens import TOKENIZER_NAME
        from pipeline.train.tasks.distribution_matching import DistributionMatchingTask
        from pipeline.train.tasks.flow import FlowTask
        from pipeline.train.tasks.tokens import TokenTask

        latents_dir = run.run_dir / "latents"
        manifest, base = read_manifest(latents_dir), self._base(run)
        assert manifest.latent_stats is not None
        _warn_of_truncated_captions(latents_dir, manifest, self.model)
        task = FlowTask(
            model=self.model,
            flow=self.flow,
            buckets=tuple(record.bucket for record in manifest.buckets),
            latent_stats=manifest.latent_stats,
            dataset_dir=latents_dir.resolve(),
            autoencoder_path=(latents_dir / AUTOENCODER_NAME).resolve(),
            seed=self.seed,
            weights=self.mix_weights,
            text_encoder=manifest.text_encoder,
            base_path=None if base is None else (run.folder_of(self) / BASE_NAME).resolve(),
            base=None if base is None else base.fingerprint,
            base_model=None if base is None else self._base_model(base),
            lora=self.train.lora,
            compression=self.compression,
            sampling=self.sampling,
        )
        if self.tokens is not None:
            return TokenTask.of(task, self.tokens, (run.folder_of(self) / TOKENIZER_NAME).resolve())
        return task if self.flow.matching is None else DistributionMatchingTask.of(task)

    def before_training(self, run: RunContext, opened: OpenStage) -> None:
        """Write the weights that it starts from, and the tokeniser, as files that every worker reads."""
        if self.tokens is not None:
            from pipeline.checkpoint.read import open_checkpoint
            from pipeline.encode.tokens import TOKENIZER_NAME, export_tokenizer

            export_tokenizer(open_checkpoint(run.run_dir / "tokenizer"), opened.folder / TOKENIZER_NAME)
        base = self._base(run)
        if base is not None:
            from pipeline.checkpoint.adapters import BASE_NAME

            base.export(opened.folder / BASE_NAME)

    def _base(self, run: RunContext) -> "Base | None":
        """The network that `start_from` names, if any; opened and checked once."""
        if run.run_dir not in self._bases:
            start_from = self.start_from(run)
            self._bases[run.run_dir] = None if start_from is None else self._open_base(run, start_from)
        return self._bases[run.run_dir]

    def start_from(self, run: RunContext) -> Path | None:  # noqa: ARG002 - for the stage that overrides it
        """The folder of the network to start from."""
        return self.train.start_from

    def _base_model(self, base: "Base") -> NetworkConfig | None:
        """What a flow map starts from, where that is no flow map itself; None: a network like its own."""
        if self.model.is_flow_map and "flow_map" not in base.settings["model"]:
            return self.model.model_copy(update={"flow_map": False})
        return None

    def _open_base(self, run: RunContext, start_from: Path) -> "Base":
        """Open the network to start from.

        Raises:
            CheckpointError: it cannot be used, is of another network, or lies in this training's own folder.
            PublishedError: the published folder cannot be used.
            LoraError: adapters are configured, and peft is not installed or a target is no layer.
        """
        from data.dataset.manifest import read_manifest
        from data.files.checksums import file_sha256
        from pipeline.checkpoint.record import CheckpointError
        from pipeline.encode.codec import AUTOENCODER_NAME
        from pipeline.train.base import check_base, open_base
        from pipeline.train.lora import check_adapters

        if start_from.resolve().is_relative_to(run.folder_of(self).resolve()):
            raise CheckpointError(
                f"dit.train.start_from is {start_from}, a folder that this training would archive: give the run "
                f"another name (cp -r {run.run_dir} runs/NAME keeps its autoencoder and latents)"
            )
        base = open_base(start_from)
        manifest = read_manifest(run.run_dir / "latents")
        assert manifest.latent_stats is not None
        num_channels, encoder = manifest.latent_stats.num_channels, manifest.text_encoder
        check_base(base, self._base_model(base) or self.model, self.flow, num_channels, encoder)
        if self.train.lora is not None:
            check_adapters(self.model, self.train.lora, num_channels, None if encoder is None else encoder.width)
        known = base.autoencoder_sha256
        if known is not None and known != file_sha256(run.run_dir / "latents" / AUTOENCODER_NAME):
            logger.warning(
                "  warning: %s was trained on the latents of another autoencoder, which mean something else; copy that "
                "run's folder and change the copy to keep its autoencoder",
                base.folder,
            )
        return base


@dataclass(frozen=True)
class TrainDistillStage(TrainFlowStage):
    """Train a student of the diffusion transformer of the run, which makes clips in 1 to 8 network calls.

    Example: `reelflow train distill demo --set distill.map.max_guidance=4 --resume`
    """

    name = "train distill"
    folder = "distill"
    needs = {"latents": Need("encode", "latents"), "dit": Need("train dit", "weights")}  # noqa: RUF012 - constant

    def required_folders(self) -> Mapping[str, Need]:
        """The latents and the teacher."""
        return self.needs

    def is_needed(self) -> bool:
        """Whether the configuration has the section `distill`."""
        return self.flow.few_steps is not None

    def describe(self) -> str:
        """Its line in the plan."""
        return super().describe() if self.is_needed() else "nothing: the section distill is not set"

    def start_from(self, run: RunContext) -> Path | None:
        """The teacher."""
        return run.run_dir / TrainFlowStage.folder


def _warn_of_truncated_captions(latents_dir: Path, manifest: "Manifest", model: NetworkConfig) -> None:
    """Log how many captions are longer than what is read of them."""
    from data.dataset.index import read_index

    if manifest.text_encoder is not None:
        if manifest.num_truncated_captions:
            logger.warning(
                "  warning: %d of %d captions have more than %d tokens and are cut there: raise encode.text.max_tokens "
                "to keep them whole",
                manifest.num_truncated_captions,
                manifest.num_samples,
                manifest.text_encoder.max_tokens,
            )
        return
    text, num_truncated, longest = model.caption_text, 0, 0
    for caption in read_index(latents_dir).each("caption"):
        length = len(text.units(caption))
        num_truncated, longest = num_truncated + (length > text.most), max(longest, length)
    if num_truncated:
        logger.warning(
            "  warning: %d of %d captions are longer than %d %s and are cut there; the longest has %d: raise "
            "dit.model.text.%s to keep them whole",
            num_truncated,
            manifest.num_samples,
            text.most,
            text.unit,
            longest,
            "max_bytes" if text.words is None else "words.max_words",
        )
