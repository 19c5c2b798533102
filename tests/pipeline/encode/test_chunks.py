"""Latents of many clips are decoded in groups of bounded size."""

import numpy as np
import torch

from data.dataset.buckets import Bucket
from data.dataset.compression import COMPRESSION
from data.video.codec import encode_clip
from models.autoencoder.config import AutoencoderConfig, WanAutoencoderConfig
from models.autoencoder.tiling import decode_tiled, encode_tiled, tiling_of
from pipeline.encode.chunks import decode_clips, encode_clips, encode_pixels, frames_per_call, pixel_chunks
from pipeline.encode.codec import to_frames
from testing.clips import NETWORK


def test_latents_of_many_clips_are_decoded_some_at_a_time():
    latents = torch.randn(5, 4, 4, 2, 3)  # 13 frames each
    whole = [to_frames(pixels) for pixels in NETWORK.decode(latents)]
    for most in (4, 8, 12, 28, 512):
        clips = decode_clips(NETWORK, latents, most)
        for clip, expected in zip(clips, whole, strict=True):
            assert abs(clip.astype(int) - expected).max() <= 1  # a value on the edge between two levels
    assert all(np.array_equal(a, b) for a, b in zip(decode_clips(NETWORK, latents), whole, strict=True))


def test_frames_larger_than_a_tile_are_decoded_in_tiles():
    latents = torch.randn(2, 4, 2, 8, 12)
    tiled = decode_clips(NETWORK, latents, tile=64)
    tiling = tiling_of(64, COMPRESSION)
    expected = [to_frames(decode_tiled(NETWORK, latent[None], tiling, 512)[0]) for latent in latents]
    assert all(np.array_equal(a, b) for a, b in zip(tiled, expected, strict=True))
    whole = decode_clips(NETWORK, latents)
    assert not np.array_equal(tiled[0], whole[0])
    assert all(np.array_equal(a, b) for a, b in zip(decode_clips(NETWORK, latents, tile=96), whole, strict=True))


def test_frames_larger_than_a_tile_are_encoded_in_tiles():
    bucket = Bucket(num_frames=9, height=64, width=96)
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    contents = [encode_clip(frames, 8)]
    tiled = encode_clips(NETWORK, contents, bucket, 4, tile=64)
    pixels = torch.cat(list(pixel_chunks(contents, 9, COMPRESSION, 4)), dim=2)
    assert torch.equal(tiled, encode_tiled(NETWORK, pixels, tiling_of(64, COMPRESSION), 4))
    whole = encode_clips(NETWORK, contents, bucket, 4)
    assert tiled.shape == whole.shape
    assert not torch.equal(tiled, whole)
    assert torch.equal(encode_clips(NETWORK, contents, bucket, 4, tile=96), whole)


def test_clips_in_memory_are_encoded_as_those_of_files_are():
    bucket = Bucket(num_frames=9, height=64, width=96)
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8)
    contents = [encode_clip(frames, 8)]
    pixels = torch.cat(list(pixel_chunks(contents, 9, COMPRESSION, 4)), dim=2)
    for tile in (None, 64, 96):
        assert torch.equal(
            encode_pixels(NETWORK, pixels, 4, tile).detach(), encode_clips(NETWORK, contents, bucket, 4, tile)
        )
    image = encode_pixels(NETWORK, pixels[:, :, :1])
    torch.testing.assert_close(image, encode_pixels(NETWORK, pixels)[:, :, :1])


def test_calls_of_an_autoencoder_that_computes_at_full_resolution_are_shorter_for_larger_frames():
    wan = WanAutoencoderConfig(latent_channels=1, latent_mean=(0.0,), latent_std=(1.0,))
    assert [frames_per_call(wan, *size, 512, None) for size in ((64, 64), (480, 832), (720, 1280))] == [512, 4, 4]
    assert frames_per_call(wan, 720, 1280, 512, tile=256) == 32
    assert frames_per_call(wan, 64, 64, 8, None) == 8
    assert frames_per_call(AutoencoderConfig(), 720, 1280, 512, None) == 512
