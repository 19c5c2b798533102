"""What is stored of an autoencoder and its loss, in the record of the training and in its checkpoints."""

from pathlib import Path
from typing import Any

from data.files.checksums import file_sha256
from models.autoencoder.config import KL_NAME, AutoencoderConfig, AutoencoderLossConfig, PerceptualError
from pipeline.run.fingerprints import output_settings, stored


def network_settings(model: AutoencoderConfig, loss: AutoencoderLossConfig) -> dict[str, Any]:
    """The architecture, and the loss where its terms are not those that there have always been; JSON values.

    The weight of the KL divergence is stored with the architecture, where it has always been. Of a perceptual network,
    the content of the file is stored, not its place.

    Raises:
        PerceptualError: the file of the perceptual network cannot be read.
    """
    terms = output_settings(loss)
    del terms["kl"]
    if loss.perceptual is not None:
        terms["perceptual"]["network"] = _fingerprint(loss.perceptual.network)
    return {"model": stored(model) | {KL_NAME: loss.kl}} | ({"loss": terms} if terms else {})


def _fingerprint(path: Path) -> str:
    try:
        return file_sha256(path)[:16]
    except OSError as error:
        raise PerceptualError(
            f"autoencoder.loss.perceptual.network: {path} cannot be read ({error.strerror}); name the file of a "
            "TorchScript network"
        ) from error
