"""Stage encode: clips become latents, by the trained autoencoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from models.autoencoder.config import VideoAutoencoderConfig
from pipeline.distributed.config import WorkersConfig
from pipeline.encode.config import EncodeConfig
from pipeline.run.chain import Need
from pipeline.run.context import RunContext
from pipeline.run.fingerprints import fingerprint
from pipeline.run.stage import DriverStage, Outcome
from pipeline.run.stage_record import OpenStage


@dataclass(frozen=True)
class EncodeStage(DriverStage):
    """Encode clip shards into latent shards.

    Example: `reelflow encode demo`
    """

    config: EncodeConfig
    autoencoder: VideoAutoencoderConfig
    published: Path | None
    """Folder of a published autoencoder; None: the run trains its own."""
    null_caption: str
    workers: WorkersConfig

    name = "encode"
    folder = "latents"
    needs = {  # noqa: RUF012 - constant
        "clips": Need("shard", "clips"),
        "autoencoder": Need("train autoencoder", "weights"),
    }

    def describe(self) -> str:
        """Its line in the plan."""
        if self.published is not None:
            return f"latents, by the published autoencoder {self.published}"
        return f"latents of {self.autoencoder.latent_channels} channels"

    def check(self) -> None:
        """Refuse a text encoder or a published autoencoder that cannot be used, before any clip is made.

        Raises:
            TextEncoderError: names the folder.
            PublishedError: names the folder.
        """
        if self.published is not None:
            from pipeline.encode.published import open_autoencoder

            open_autoencoder(self.published)
        if self.config.text is not None:
            from models.text.pretrained import check_text_encoder

            check_text_encoder(self.config.text.folder)

    def settings(self, run: RunContext) -> dict[str, Any]:
        """How clips are encoded; the null caption where captions are embedded."""
        from data.dataset.manifest import SCHEMA_VERSION, read_manifest
        from pipeline.encode.encode import encoding_settings

        buckets = [record.bucket for record in read_manifest(run.run_dir / "clips").buckets]
        settings: dict[str, Any] = {"config": encoding_settings(self.config, buckets), "schema": SCHEMA_VERSION}
        if self.published is not None:
            from pipeline.encode.published import open_autoencoder

            settings["published_autoencoder"] = open_autoencoder(self.published).fingerprint()
        if self.config.text is not None:
            settings["null_caption"] = self.null_caption
        return settings

    def describe_reuse(self, run: RunContext) -> Callable[[], str | None]:
        """Says which shards stay, and which clips are encoded again."""
        from pipeline.encode.codec import AUTOENCODER_NAME
        from pipeline.encode.encode import describe_reuse

        def describe() -> str | None:
            with TemporaryDirectory(prefix="reelflow-") as folder:
                weights = self._export(run, Path(folder) / AUTOENCODER_NAME)
                return describe_reuse(run.run_dir / "clips", run.folder_of(self), weights, self.config)

        return describe

    def make(self, run: RunContext, opened: OpenStage) -> Outcome:
        """Encode every shard that is missing."""
        from data.dataset.manifest import dataset_outputs
        from pipeline.encode.captions import NULL_CAPTION_NAME
        from pipeline.encode.codec import AUTOENCODER_NAME
        from pipeline.encode.encode import encode_shards

        weights = self._export(run, opened.folder / AUTOENCODER_NAME)
        clips_dir = run.run_dir / "clips"
        manifest = encode_shards(
            clips_dir, opened.folder, weights, self.config, self.workers, self.null_caption, run.files
        )
        outputs = [weights, *dataset_outputs(opened.folder, manifest)]
        if manifest.text_encoder is not None:
            outputs.append(opened.folder / NULL_CAPTION_NAME)
        return Outcome(outputs, {"clips": manifest.num_samples})

    def contents(self, folder: Path) -> dict[str, str]:
        """The latents with their captions, their statistics, and the weights that made them."""
        from data.dataset.manifest import read_manifest
        from data.files.checksums import file_sha256
        from pipeline.encode.captions import NULL_CAPTION_NAME
        from pipeline.encode.codec import AUTOENCODER_NAME

        manifest, null_caption = read_manifest(folder), folder / NULL_CAPTION_NAME
        parts: list[Any] = [manifest.fingerprint, file_sha256(folder / AUTOENCODER_NAME)]
        parts.append(None if manifest.latent_stats is None else manifest.latent_stats.model_dump())
        if manifest.text_encoder is not None:
            parts += [manifest.text_encoder.fingerprint, file_sha256(null_caption)]
        return {"latents": f"latents-{fingerprint(parts)}"}

    def required_folders(self) -> Mapping[str, Need]:
        """As `Stage.required_folders`: a published autoencoder is in no folder of the run."""
        return self.needs if self.published is None else {"clips": self.needs["clips"]}

    def _export(self, run: RunContext, path: Path) -> Path:
        """Write the weights of the autoencoder to `path`."""
        if self.published is not None:
            from pipeline.encode.published import export_published_autoencoder, open_autoencoder

            export_published_autoencoder(open_autoencoder(self.published), path)
            return path
        from pipeline.checkpoint.read import open_checkpoint
        from pipeline.encode.codec import export_autoencoder

        export_autoencoder(open_checkpoint(run.run_dir / "autoencoder"), path)
        return path
