"""A published pipeline, in the layout of diffusers, as a model to sample.

model_index.json  transformer/  vae/  text_encoder/  tokenizer/  scheduler/
and for image to video by Wan 2.1  image_encoder/  image_processor/
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import Tensor

from data.dataset.compression import Compression
from data.dataset.manifest import TextEncoderRecord
from data.errors import shorten
from models.autoencoder.protocol import VideoAutoencoder
from models.flow.spec import FlowSpec
from models.image.pretrained import check_image_encoder, image_encoder_fingerprint
from models.networks.wan_published import PublishedTransformer
from models.text.pretrained import check_text_encoder, text_encoder_fingerprint
from pipeline.checkpoint.published import (
    CONFIG_NAME,
    PIPELINE_NAME,
    PublishedError,
    PublishedFolder,
    open_published,
    read_json,
)
from pipeline.checkpoint.published_networks import check_transformer, transformer_weights
from pipeline.encode.published import (
    autoencoder_stats,
    export_published_autoencoder,
    load_published_autoencoder,
    open_autoencoder,
)
from pipeline.run.weight_names import FIRST_AVERAGE, MASTER, WeightsName
from pipeline.sample.model import SampledModel

IMAGE_PIPELINE = "WanImageToVideoPipeline"
KNOWN_PIPELINES = ("WanPipeline", IMAGE_PIPELINE)
IMAGE_ENCODER = "image_encoder"  # name of its folder in a pipeline
SCHEDULER_CONFIG = Path("scheduler") / "scheduler_config.json"


@dataclass(frozen=True)
class PublishedModel(SampledModel):
    """A published pipeline. It samples clips of any shape."""

    transformer: PublishedFolder
    autoencoder: PublishedFolder
    latent_compression: Compression
    """Of the autoencoder."""
    described: PublishedTransformer
    has_times_per_frame: bool
    """The network was trained with a time for each token: the first frame may be given."""

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def title(self) -> str:
        """As `SampledModel.title`."""
        return "published pipeline"

    @property
    def sampling_defaults(self) -> tuple[dict[str, Any], list[str]]:
        """As `SampledModel.sampling_defaults`: those that its scheduler stands for."""
        return scheduler_settings(self.folder)

    @property
    def compression(self) -> Compression:
        """As `SampledModel.compression`."""
        return self.latent_compression

    def check_weights(self, which: WeightsName) -> None:
        """As `SampledModel.check_weights`: a published folder has one set of weights."""
        if which not in (FIRST_AVERAGE, MASTER):
            raise PublishedError(
                f"sample.weights is {which!r}, but {self.folder} has one set of weights: leave it at {FIRST_AVERAGE}"
            )

    def weights(self, which: WeightsName) -> Iterator[tuple[str, Tensor]]:  # noqa: ARG002 - there is one set
        """As `SampledModel.weights`."""
        return transformer_weights(self.transformer, self.described)

    @property
    def image_refusal(self) -> str | None:
        """As `SampledModel.image_refusal`."""
        if self.has_times_per_frame or self.network.needs_image:
            return None
        return (
            f"{self.folder} is a text-to-video pipeline ({PIPELINE_NAME} has no expand_timesteps): sample one of Wan "
            "2.2 TI2V or of Wan 2.1 I2V"
        )

    @property
    def image_encoder(self) -> Path | None:
        """As `SampledModel.image_encoder`."""
        return None if self.described.config.image_width is None else self.folder / IMAGE_ENCODER

    def load_autoencoder(self) -> VideoAutoencoder:
        """As `SampledModel.load_autoencoder`."""
        return load_published_autoencoder(self.autoencoder)

    def export_autoencoder(self, path: Path) -> None:
        """As `SampledModel.export_autoencoder`."""
        export_published_autoencoder(self.autoencoder, path)


def published_model(folder: Path) -> PublishedModel:
    """The model of a published pipeline, checked from the headers of its files.

    Raises:
        PublishedError: the pipeline is not supported, or a part of it is missing, damaged or does not fit the others.
        TextEncoderError: the text encoder cannot be used.
        ImageEncoderError: the image encoder cannot be used.
    """
    index_path = folder / PIPELINE_NAME
    index = read_json(index_path)
    if (kind := index.get("_class_name")) not in KNOWN_PIPELINES:
        raise PublishedError(
            f"{index_path}: _class_name is {kind!r}, but {' and '.join(KNOWN_PIPELINES)} are supported"
        )
    if index.get("boundary_ratio") is not None or (folder / "transformer_2").is_dir():
        raise PublishedError(
            f"{index_path}: the pipeline has two transformers, one for each part of the path (boundary_ratio "
            f"{index.get('boundary_ratio')}), which is not supported; sample one with a single transformer"
        )
    transformer, autoencoder = open_published(folder / "transformer"), open_autoencoder(folder / "vae")
    described = check_transformer(transformer)
    stats, compression = autoencoder_stats(autoencoder)
    if stats.num_channels != described.channels:
        raise PublishedError(
            f"{autoencoder.config_path}: z_dim is {stats.num_channels}, but {transformer.config_path} has out_channels "
            f"{described.channels}: the folder's parts are not of one pipeline"
        )
    has_times_per_frame = bool(index.get("expand_timesteps"))
    _check_condition(transformer, described, compression, has_times_per_frame=has_times_per_frame, kind=kind)
    encoder = _text_encoder(folder, described)
    parts = [transformer.fingerprint(), autoencoder.fingerprint(), encoder.fingerprint]
    if described.config.image_width is not None:
        parts.append(_image_encoder_fingerprint(folder, described.config.image_width))
    return PublishedModel(
        folder=folder,
        fingerprint=sha256(" ".join(parts).encode()).hexdigest()[:16],
        network=described.config,
        flow=FlowSpec(),  # the straight path and the velocity, as `models/networks/wan.py` translates it
        stats=stats,
        text_encoder=encoder,
        transformer=transformer,
        autoencoder=autoencoder,
        latent_compression=compression,
        described=described,
        has_times_per_frame=has_times_per_frame,
    )


def _check_condition(
    transformer: PublishedFolder,
    described: PublishedTransformer,
    compression: Compression,
    *,
    has_times_per_frame: bool,
    kind: str,
) -> None:
    """What the transformer takes of an image is what the pipeline gives it."""
    channels, further = described.channels, described.config.condition_channels
    inputs = f"{transformer.config_path}: in_channels is {channels + further}"
    if further and (kind != IMAGE_PIPELINE or has_times_per_frame):
        raise PublishedError(
            f"{inputs}, {further} more than out_channels, but {PIPELINE_NAME} has _class_name {kind} and "
            f"expand_timesteps {has_times_per_frame}, which give no image by channels: the folder's parts are not of "
            "one pipeline"
        )
    if further and further != channels + compression.temporal_factor:
        raise PublishedError(
            f"{inputs}, but a pipeline from image to video gives {2 * channels + compression.temporal_factor}: "
            f"latents, a mask of {compression.temporal_factor} and the image's latents; variants with other conditions "
            "are not supported"
        )
    if kind == IMAGE_PIPELINE and not further and not has_times_per_frame:
        raise PublishedError(
            f"{inputs}, those of the latents alone, and {PIPELINE_NAME} has no expand_timesteps: the image could not "
            "be given to this transformer; the folder's parts are not of one pipeline"
        )


def _image_encoder_fingerprint(folder: Path, image_width: int) -> str:
    """That of a pipeline's image encoder, whose width has to be the transformer's."""
    encoder_dir = folder / IMAGE_ENCODER
    if (width := check_image_encoder(encoder_dir).hidden_size) != image_width:
        raise PublishedError(
            f"{encoder_dir / CONFIG_NAME}: hidden_size is {width}, but the transformer reads embeddings of "
            f"{image_width} channels (image_dim): the folder's parts are not of one pipeline"
        )
    return image_encoder_fingerprint(encoder_dir)


def _text_encoder(folder: Path, described: PublishedTransformer) -> TextEncoderRecord:
    """The text encoder of a pipeline, whose width has to be the transformer's."""
    encoder_dir = folder / "text_encoder"
    check_text_encoder(encoder_dir)
    width = read_json(encoder_dir / CONFIG_NAME).get("d_model")
    if width != described.embedding_width:
        raise PublishedError(
            f"{encoder_dir / CONFIG_NAME}: d_model is {width}, but the transformer reads embeddings of "
            f"{described.embedding_width} channels (text_dim): the folder's parts are not of one pipeline"
        )
    return TextEncoderRecord(
        folder=str(encoder_dir.resolve()),
        fingerprint=text_encoder_fingerprint(encoder_dir),
        max_tokens=described.config.text_tokens,
        width=described.embedding_width,
    )


def scheduler_settings(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings of sampling that a pipeline's scheduler stands for, and warnings where it is not known here.

    Raises:
        PublishedError: the scheduler's file is damaged.
    """
    path = folder / SCHEDULER_CONFIG
    if not path.is_file():
        return {}, [f"{path} is missing: solver, grid and shift are those of the configuration"]
    fields = read_json(path)
    match fields:
        case {"_class_name": "FlowMatchEulerDiscreteScheduler"} if not fields.get("use_dynamic_shifting"):
            return {"solver": "euler", "grid": "diffusers_euler", "shift": fields.get("shift", 1.0)}, []
        case {
            "_class_name": "UniPCMultistepScheduler",
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
        } if not fields.get("use_dynamic_shifting"):
            return {"solver": "unipc", "grid": "diffusers_unipc", "shift": fields.get("flow_shift", 1.0)}, []
    kind = shorten(str(fields.get("_class_name")))
    return {}, [
        f"{path}: {kind} with these settings is not known: solver, grid and shift are those of the configuration"
    ]
