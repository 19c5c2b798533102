"""The file of the autoencoder is checked against its own description before memory is taken for the network."""

import json

import pytest
import torch
from safetensors.torch import save_file

from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig, WanAutoencoderConfig
from models.autoencoder.model import Autoencoder
from pipeline.checkpoint.record import CheckpointError
from pipeline.encode.codec import load_autoencoder
from pipeline.run.fingerprints import stored

CONFIG = AutoencoderConfig(latent_channels=4, width=8, deep_width=16)
WAN = WanAutoencoderConfig(
    latent_channels=1, latent_mean=(0.0,), latent_std=(1.0,), width=4, decoder_width=4, num_blocks=1
)


@pytest.mark.parametrize("config", [CONFIG, WAN], ids=["causal", "wan"])
def test_a_file_is_read_back(tmp_path, config):
    weights = build_autoencoder(config).state_dict()
    save_file(weights, tmp_path / "a.safetensors", metadata={"config": json.dumps(stored(config))})
    loaded = load_autoencoder(tmp_path / "a.safetensors")
    assert loaded.config == config
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.state_dict().items())


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, "its header does not describe the autoencoder"),
        ({"config": "{"}, "is damaged: : Invalid JSON"),
        ({"config": json.dumps(stored(CONFIG) | {"width": -8})}, "is damaged: causal.width: "),
        ({"config": json.dumps(stored(CONFIG) | {"width": 2**16})}, "its weights are not those of the autoencoder"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, metadata, told):
    path = tmp_path / "a.safetensors"
    save_file(Autoencoder(CONFIG).state_dict(), path, metadata=metadata)
    with pytest.raises(CheckpointError, match=told):
        load_autoencoder(path)


def test_a_file_that_is_missing_or_torn_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_autoencoder(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_autoencoder(tmp_path / "torn.safetensors")
