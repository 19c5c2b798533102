"""What clips are sampled with: a network with its captions and autoencoder, of a checkpoint or a published pipeline."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from data.dataset.buckets import Bucket
from data.dataset.compression import Compression
from data.dataset.manifest import LatentStats, TextEncoderRecord
from data.errors import ReelflowError, shorten
from data.files.publish import publish_bytes
from models.autoencoder.protocol import VideoAutoencoder
from models.flow.spec import FlowSpec
from models.networks.build import build_network, build_token_network
from models.networks.config import NetworkConfig, read_network_config
from models.networks.protocol import VelocityNetwork
from models.networks.token_network import TokenNetwork
from models.tokens.config import TokenizerConfig
from models.tokens.tokenizer import Tokenizer
from pipeline.checkpoint.adapters import check_network, network_weights
from pipeline.checkpoint.published import PIPELINE_NAME, PublishedError, is_pipeline, is_published
from pipeline.checkpoint.read import open_checkpoint
from pipeline.checkpoint.record import Checkpoint, CheckpointError
from pipeline.encode.codec import AUTOENCODER_NAME, load_autoencoder, read_config
from pipeline.encode.tokens import TOKENIZER_NAME, load_tokenizer
from pipeline.run.weight_names import WeightsName
from pipeline.sample.config import SampleConfig
from pipeline.sample.prompts import PromptError
from pipeline.sample.provenance import NamedCheckpoint

_BUCKETS = TypeAdapter(Annotated[list[Bucket], Field(min_length=1)])
_FIELDS = TypeAdapter(dict[str, Any])


def _read_network(value: Any) -> NetworkConfig:  # noqa: ANN401 - whatever a checkpoint may hold
    return read_network_config(_FIELDS.validate_python(value))


@dataclass(frozen=True)
class SampledModel(ABC):
    """A model in a folder, of which everything but the weights has been read and checked."""

    folder: Path
    fingerprint: str
    """Changes with everything in the folder that clips depend on."""
    network: NetworkConfig
    flow: FlowSpec
    stats: LatentStats
    text_encoder: TextEncoderRecord | None
    """None: the network reads captions as bytes."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, wherever it is, for people."""

    @property
    def named(self) -> NamedCheckpoint:
        """As the files of its clips name it."""
        return NamedCheckpoint(name=self.title, fingerprint=self.fingerprint)

    @property
    def trained_buckets(self) -> tuple[Bucket, ...]:
        """The shapes that it was trained on, that with most clips first; none where they are not known."""
        return ()

    @property
    @abstractmethod
    def compression(self) -> Compression:
        """Of the autoencoder.

        Raises:
            CheckpointError: its file is missing or damaged.
        """

    @property
    def sampling_defaults(self) -> tuple[dict[str, Any], list[str]]:
        """Settings of `SampleConfig` that it was made to be sampled with, and warnings.

        Raises:
            ReelflowError: what says so is damaged.
        """
        return {}, []

    def bucket(self, name: str) -> Bucket:
        """A shape by its name: one that was trained, or any other that the autoencoder and the network take.

        Raises:
            PromptError: it is no shape, or one that they do not take.
        """
        trained = next((bucket for bucket in self.trained_buckets if bucket.name == name), None)
        if trained is not None:
            return trained
        try:
            bucket = Bucket.of_name(name)
            self.network.token_grid(self.compression.latent_grid(bucket.num_frames, bucket.height, bucket.width))
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]
            place = ".".join(map(str, reason["loc"]))
            raise PromptError(f"bucket {shorten(name)!r}: {place} {reason['msg']}") from error
        except ValueError as error:
            if isinstance(error, ReelflowError):
                raise
            raise PromptError(f"bucket {shorten(name)!r} cannot be sampled: {error}") from error
        return bucket

    def default_bucket(self, wanted: str | None) -> Bucket | None:
        """The shape of prompts that name none; None: each has to name one.

        Args:
            wanted: `sample.bucket`; None: it is not set.

        Raises:
            PromptError: that shape cannot be sampled.
        """
        if wanted is None:
            return self.trained_buckets[0] if self.trained_buckets else None
        try:
            return self.bucket(wanted)
        except PromptError as error:
            raise PromptError(f"sample.{error}") from error

    @abstractmethod
    def check_weights(self, which: WeightsName) -> None:
        """Check that the folder holds weights of this name; `weights` checks that they are whole.

        Raises:
            ReelflowError: there are no such weights; names those there are.
        """

    @abstractmethod
    def weights(self, which: WeightsName) -> Iterator[tuple[str, Tensor]]:
        """The weights of the network by its own names, float32, one in memory at a time."""

    @property
    @abstractmethod
    def image_refusal(self) -> str | None:
        """Why a clip cannot start from an image, and a way out; None: it can."""

    def frames_refusal(self, num_first: int, num_last: int) -> str | None:
        """Why a clip cannot be made around given latent frames, and a way out; None: it can.

        Args:
            num_first: latent frames that are given at its start. num_last: at its end.
        """
        if (num_first, num_last) in ((0, 0), (1, 0)):
            return self.image_refusal if num_first else None
        return f"{self.folder} was trained to be given the first latent frame alone"

    @property
    def image_encoder(self) -> Path | None:
        """The folder of the image encoder, for networks that attend to an image's embedding."""
        return None

    def new_network(self) -> VelocityNetwork | TokenNetwork:
        """A network as that of the model, with newly initialized weights."""
        return build_network(self.network, self.stats.num_channels, self.embedding_width)

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokeniser, as `load_autoencoder`; None: the network predicts no tokens."""
        return None

    @abstractmethod
    def load_autoencoder(self) -> VideoAutoencoder:
        """The autoencoder, in evaluation mode, without gradients, on the CPU."""

    @abstractmethod
    def export_autoencoder(self, path: Path) -> None:
        """Write the autoencoder as datasets of latents hold it."""

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def embedding_width(self) -> int | None:
        """Channels of the text encoder's embeddings."""
        return None if self.text_encoder is None else self.text_encoder.width


@dataclass(frozen=True)
class TrainedModel(SampledModel):
    """A checkpoint of a DiT, which holds everything but the text encoder, because of its size."""

    checkpoint: Checkpoint
    buckets: tuple[Bucket, ...]
    """The shapes that it was trained on, that with most clips first."""

    def __str__(self) -> str:
        return f"{self.folder} (step {self.checkpoint.record.step})"

    @property
    def title(self) -> str:
        """As `SampledModel.title`."""
        return f"{self.checkpoint.record.kind}, step {self.checkpoint.record.step}"

    @property
    def trained_buckets(self) -> tuple[Bucket, ...]:
        """As `SampledModel.trained_buckets`."""
        return self.buckets

    @property
    def sampling_defaults(self) -> tuple[dict[str, Any], list[str]]:
        """As `SampledModel.sampling_defaults`: those of the run that trained it; none where that was an older one."""
        if "sampling" not in self.checkpoint.record.trained:
            return {}, []
        fields = self.checkpoint.trained("sampling", _FIELDS.validate_python)
        self.checkpoint.trained("sampling", SampleConfig.model_validate)
        return fields, []

    @property
    def compression(self) -> Compression:
        """As `SampledModel.compression`, from the header of the autoencoder's file."""
        return read_config(self.folder / AUTOENCODER_NAME).compression

    def check_weights(self, which: WeightsName) -> None:
        """As `SampledModel.check_weights`."""
        self.checkpoint.kind_of(which)

    def weights(self, which: WeightsName) -> Iterator[tuple[str, Tensor]]:
        """As `SampledModel.weights`, with adapters merged into them."""
        check_network(self.checkpoint, self.new_network)
        return network_weights(self.checkpoint, which)

    def new_network(self) -> VelocityNetwork | TokenNetwork:
        """As `SampledModel.new_network`: one that predicts tokens, where the flow is of tokens."""
        if self.flow.tokens is None:
            return super().new_network()
        tokens = self.checkpoint.trained("tokenizer", TokenizerConfig.model_validate)
        return build_token_network(self.network, tokens, self.embedding_width)

    def load_tokenizer(self) -> Tokenizer | None:
        """As `SampledModel.load_tokenizer`."""
        return None if self.flow.tokens is None else load_tokenizer(self.folder / TOKENIZER_NAME)

    @property
    def image_refusal(self) -> str | None:
        """As `SampledModel.image_refusal`: it was trained with frames that were given, or with times of their own."""
        if self.frames_refusal(1, 0) is None:
            return None
        if self.flow.tokens is not None:
            return f"{self.folder} predicts tokens, none of which can be given: sample a network of latents"
        return f"{self.folder} was trained without frames that are given: train with dit.flow.first_frame_share above 0"

    def frames_refusal(self, num_first: int, num_last: int) -> str | None:
        """As `SampledModel.frames_refusal`: training gave frames at these places, or had times for each frame."""
        if self.flow.tokens is not None and num_first + num_last > 0:
            return f"{self.folder} predicts tokens, none of which can be given: sample a network of latents"
        given = self.flow.given
        any_place = given.subset > 0 or (self.flow.times_per == "frame" and self.network.known_frames == "time")
        if any_place or num_first == num_last == 0:
            return None
        told = f"{self.folder} was trained without"
        if num_last == 0:
            is_trained = given.prefix > 0 or (num_first == 1 and self.flow.first_frame_share > 0)
            refusal = f"{told} several first frames that are given: train with dit.flow.given.prefix above 0"
        elif num_first == 0:
            is_trained = False
            refusal = f"{told} last frames that are given: train with dit.flow.given.subset above 0"
        else:
            is_trained = given.ends > 0
            refusal = f"{told} both ends given: train with dit.flow.given.ends above 0"
        return None if is_trained else refusal

    def load_autoencoder(self) -> VideoAutoencoder:
        """As `SampledModel.load_autoencoder`."""
        return load_autoencoder(self.folder / AUTOENCODER_NAME)

    def export_autoencoder(self, path: Path) -> None:
        """As `SampledModel.export_autoencoder`."""
        publish_bytes(path, (self.folder / AUTOENCODER_NAME).read_bytes())


def trained_model(checkpoint: Checkpoint) -> TrainedModel:
    """The model that a checkpoint holds.

    Raises:
        CheckpointError: it is of an autoencoder, was made by a version that did not store the shapes, or is damaged.
    """
    record = checkpoint.record
    if record.kind != "dit":
        raise CheckpointError(f"{checkpoint.folder} holds a {record.kind}; sampling takes a dit checkpoint")
    if "buckets" not in record.trained:
        raise CheckpointError(f"{checkpoint.folder} was made by an older reelflow, which kept one bucket; train again")
    has_encoder = record.trained.get("text_encoder") is not None
    return TrainedModel(
        folder=checkpoint.folder,
        fingerprint=checkpoint.fingerprint,
        network=checkpoint.trained("model", _read_network),
        flow=checkpoint.trained("flow", FlowSpec.model_validate),
        stats=checkpoint.trained("latent_stats", LatentStats.model_validate),
        text_encoder=checkpoint.trained("text_encoder", TextEncoderRecord.model_validate) if has_encoder else None,
        checkpoint=checkpoint,
        buckets=tuple(checkpoint.trained("buckets", _BUCKETS.validate_python)),
    )


def open_model(folder: Path, *, verify: bool = True) -> SampledModel:
    """The model in the folder of a checkpoint, of a training, or of a published pipeline.

    Args:
        verify: of a checkpoint, compare the checksums of all files, which are read in full.

    Raises:
        CheckpointError: it is no checkpoint that can be sampled.
        PublishedError: the published pipeline cannot be sampled.
    """
    if is_pipeline(folder):
        from pipeline.sample.published import published_model

        return published_model(folder)
    if is_published(folder):
        raise PublishedError(
            f"{folder} is one part of a published pipeline; name the pipeline's folder, which holds {PIPELINE_NAME}"
        )
    return trained_model(open_checkpoint(folder, verify=verify))
