"""Encoding of shards in chunks: equal latents and bounded memory."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save_file

from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, VIDEO_MEMBER
from data.dataset.compression import COMPRESSION
from data.dataset.manifest import ShardRecord
from data.dataset.shards import read_shard
from data.errors import DatasetError
from data.video.codec import decode_clip
from models.autoencoder.config import AutoencoderConfig
from pipeline.distributed.config import WorkersConfig
from pipeline.encode import encode
from pipeline.encode.codec import AUTOENCODER_NAME, to_pixels
from pipeline.encode.config import EncodeConfig
from pipeline.encode.encode import Encoder, ShardInputs, ShardTask, encoding_settings, same_shape_batches
from pipeline.run import precision
from testing.clips import SMALL_AUTOENCODER, write_autoencoder, write_clips
from testing.datasets import SMALL, colour_clip, record, write_dataset
from testing.long_clips import peaks_of_new_process
from testing.records import made_up_clip

TOLERANCE = 1e-5  # of values of order one: kernels sum in another order for another length

SETTINGS = EncodeConfig(chunk_frames=20, precision="fp32")


def encode_shard(folder: Path, shard: ShardRecord, config: EncodeConfig) -> dict[str, torch.Tensor]:
    """What the stage's actor writes, by key."""
    target = folder / f"latents-{shard.name}"
    Encoder(folder / AUTOENCODER_NAME, config, 1).encode(
        ShardTask(folder / shard.name, shard, target, ShardInputs("a", "test"))
    )
    return {record.key: load(payload)["mean"] for record, payload in read_shard(target, LATENT_MEMBER)}


def test_long_clips_beside_short_ones_are_encoded_in_chunks(tmp_path):
    network = write_autoencoder(tmp_path / AUTOENCODER_NAME, SMALL_AUTOENCODER)
    lengths = [9, 401, 9, 1, 401, 33]
    shard = write_clips(tmp_path / "clips.tar", lengths, 64)
    latents = encode_shard(tmp_path, shard, SETTINGS)
    for (clip, content), num_frames in zip(read_shard(tmp_path / "clips.tar", VIDEO_MEMBER), lengths, strict=True):
        whole = network.encode(to_pixels(decode_clip(content))[None]).mean[0]
        assert latents[clip.key].shape == (4, COMPRESSION.num_latent_frames(num_frames), 8, 8)
        torch.testing.assert_close(latents[clip.key], whole, rtol=0, atol=TOLERANCE)


def test_a_latent_that_is_not_finite_is_refused_by_the_key_of_its_clip(tmp_path):
    network = write_autoencoder(tmp_path / AUTOENCODER_NAME, SMALL_AUTOENCODER)
    weights = {name: torch.full_like(weight, torch.nan) for name, weight in network.state_dict().items()}
    with safe_open(tmp_path / AUTOENCODER_NAME, "pt") as file:
        metadata = file.metadata()
    save_file(weights, tmp_path / AUTOENCODER_NAME, metadata)
    shard = write_clips(tmp_path / "clips.tar", [9], 64)
    with pytest.raises(DatasetError, match=r"clips\.tar: the latent of clip \S+ is not finite; train the autoencoder"):
        encode_shard(tmp_path, shard, SETTINGS)


def test_a_precision_without_instructions_is_warned_of_before_anything_is_encoded(tmp_path, monkeypatch, caplog):
    class BegunError(Exception):
        """The actors would start now."""

    def begin(*_: object) -> None:
        raise BegunError

    weights = tmp_path / AUTOENCODER_NAME
    write_autoencoder(weights, SMALL_AUTOENCODER)
    clips = write_dataset(tmp_path / "clips", [(record(0), colour_clip(SMALL, (9, 9, 9)))])
    monkeypatch.setattr(precision, "_cpu_flags", lambda: "flags: avx2 fma")
    monkeypatch.setattr(encode, "_encode_missing", begin)
    with pytest.raises(BegunError):
        encode.encode_shards(clips, tmp_path / "latents", weights, EncodeConfig(precision="bf16"), WorkersConfig())
    assert "precision is bf16, but this CPU has no instructions for it" in caplog.text


def test_the_frames_of_a_call_are_bounded():
    config = EncodeConfig(batch=4, chunk_frames=64)
    for num_frames, sizes in ((1, [4, 3]), (13, [4, 3]), (17, [3, 3, 1]), (65, [1] * 7), (401, [1] * 7)):
        bucket = Bucket(num_frames=num_frames, height=64, width=64, fps=8)
        clips = [(made_up_clip(number, bucket), b"") for number in range(7)]
        batches = list(same_shape_batches(clips, config, AutoencoderConfig()))
        assert [len(batch) for batch in batches] == sizes
        assert [clip for batch in batches for clip in batch] == clips


def test_latents_are_made_from_the_length_of_chunks_only_where_it_can_change_them():
    short, long = (Bucket(num_frames=num_frames, height=64, width=64, fps=8) for num_frames in (17, 401))
    one, other = EncodeConfig(), EncodeConfig(chunk_frames=272)  # 16 clips of 17 frames
    assert (
        encoding_settings(one, [short])
        == encoding_settings(other, [short])
        == {"batch": 16, "precision": "auto", "text": None}
    )
    assert encoding_settings(one, [short, long]) != encoding_settings(other, [short, long])
    assert encoding_settings(EncodeConfig(chunk_frames=268), [short]) != encoding_settings(one, [short])


def test_memory_is_flat_in_the_length_of_a_clip(tmp_path):
    write_autoencoder(tmp_path / AUTOENCODER_NAME, AutoencoderConfig())
    short, long = (write_clips(tmp_path / f"{length}.tar", [length], 64) for length in (101, 401))
    whole = SETTINGS.model_copy(update={"chunk_frames": 404})
    runs = [(short, SETTINGS), (long, SETTINGS), (long, whole)]
    after_short, after_long, after_whole = peaks_of_new_process(tmp_path, runs)
    # In MiB; 300 more frames are 14 MiB of pixels as numbers, and as many in each tensor next to them. Some memory
    # goes to what kernels keep, and to the heap's own disorder.
    assert after_whole - after_long > 80
    assert after_long - after_short < 20
