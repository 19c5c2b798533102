"""What a student of the tiny network of `straight` needs, made once for all kinds of students."""

from dataclasses import replace

import pytest
from safetensors.torch import save_file

from models.autoencoder.build import build_autoencoder
from models.autoencoder.config import AutoencoderConfig
from pipeline.checkpoint.export import export_weights
from pipeline.checkpoint.read import open_checkpoint
from pipeline.encode.codec import AUTOENCODER_NAME
from testing.tiny import SHAPE, TINY_MODEL, write_latents


@pytest.fixture(scope="session")
def to_be_taught(straight, tmp_path_factory):
    """A task with the latents, the autoencoder and the teacher of a student; its flow is not yet that of one."""
    task, _, teacher_dir = straight
    data = tmp_path_factory.mktemp("data")
    write_latents(data)
    small = AutoencoderConfig(latent_channels=SHAPE[0], width=8, deep_width=8)
    weights = build_autoencoder(small).state_dict()
    save_file(weights, data / AUTOENCODER_NAME, metadata={"config": small.model_dump_json()})
    export_weights(open_checkpoint(teacher_dir), data / "base.safetensors")
    return replace(
        task,
        model=TINY_MODEL.model_copy(update={"flow_map": True}),
        dataset_dir=data,
        autoencoder_path=data / AUTOENCODER_NAME,
        base_path=data / "base.safetensors",
        base_model=TINY_MODEL,
    )
