"""Reconstruction error of a clip that is decoded in chunks."""

import numpy as np
import pytest
import torch

from models.autoencoder.model import psnr_db, squared_error
from models.autoencoder.quality import ssim
from pipeline.encode.codec import AUTOENCODER_NAME, to_frames, to_pixels
from pipeline.encode.config import CALL_FRAMES
from pipeline.evaluate.reconstruction import measure_reconstruction
from pipeline.run.precision import autocast
from testing.clips import SMALL_AUTOENCODER, write_autoencoder, write_clips


def test_reconstruction_of_a_long_clip_is_measured_over_all_of_it(tmp_path):
    network = write_autoencoder(tmp_path / AUTOENCODER_NAME, SMALL_AUTOENCODER)
    write_clips(tmp_path / "clips.tar", [CALL_FRAMES + 5, 17], 16)
    measured, (long, short) = measure_reconstruction(tmp_path, tmp_path / AUTOENCODER_NAME, 2, 2)
    values, similar, latents = [], [], []
    for shown in (long, short):
        pixels = to_pixels(shown.original)[None]
        with autocast("auto", torch.device("cpu")):
            latent = network.encode(pixels).mean
            reconstruction = network.decode(latent)
        values.append(psnr_db(squared_error(pixels, reconstruction)).item())
        similar.append(ssim(pixels, reconstruction.clamp(-1, 1)).flatten())
        latents.append(latent[0].flatten(1))
        assert abs(to_frames(reconstruction[0]).astype(int) - shown.reconstruction).mean() < 0.5
    assert long.original.shape == (CALL_FRAMES + 5, 16, 16, 3)
    assert measured.num_clips == 2
    assert measured.psnr_db == pytest.approx(np.mean(values), abs=1e-3)
    assert measured.psnr_db_min == pytest.approx(min(values), abs=1e-3)
    assert measured.quality.ssim == pytest.approx(torch.cat(similar).mean().item(), abs=1e-3)
    stds = torch.cat(latents, dim=1).std(1).tolist()
    assert measured.quality.latent_std == pytest.approx(stds, rel=1e-2)
    assert measured.quality.dead_channels == [channel for channel, std in enumerate(stds) if std < 0.1]
