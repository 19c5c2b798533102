"""Stage train tokenizer: between encoding latents and training a network that predicts their tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from models.tokens.config import TokenizerConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import stored
from pipeline.train.stage import TrainStage

if TYPE_CHECKING:
    from pipeline.train.task import TrainTask


@dataclass(frozen=True)
class TrainTokenizerStage(TrainStage):
    """Train the tokeniser of latents, whose tokens the diffusion transformer then predicts.

    Example: `reelflow train tokenizer demo-tokens --set tokenizer.train.steps=2000 --resume`
    """

    model: TokenizerConfig | None
    """None: the run has no tokeniser."""

    name = "train tokenizer"
    folder = "tokenizer"
    needs = {"latents": Need("encode", "latents")}  # noqa: RUF012 - constant

    def is_needed(self) -> bool:
        """Whether the configuration has the section `tokenizer`."""
        return self.model is not None

    def describe(self) -> str:
        """Its line in the plan."""
        return super().describe() if self.is_needed() else "nothing: the section tokenizer is not set"

    def network_settings(self, run: RunContext) -> dict[str, Any]:  # noqa: ARG002 - of the interface
        """The tokeniser."""
        assert self.model is not None
        return {"model": stored(self.model)}

    def task(self, run: RunContext) -> "TrainTask":
        """The tokeniser on the latents."""
        from data.dataset.manifest import read_manifest
        from pipeline.train.tasks.tokenizer import TokenizerTask

        latents_dir = run.run_dir / "latents"
        stats = read_manifest(latents_dir).latent_stats
        assert self.model is not None
        assert stats is not None
        return TokenizerTask(
            model=self.model,
            latent_stats=stats,
            dataset_dir=latents_dir.resolve(),
            seed=self.seed,
            weights=self.mix_weights,
            compression=self.compression,
        )
