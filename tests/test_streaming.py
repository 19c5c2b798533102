"""Clips in chunks: what the autoencoder makes of the whole, in memory that does not grow with their length."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.long_clips import peaks_of_new_process
from data.dataset.buckets import Bucket
from data.dataset.clip import LATENT_MEMBER, VIDEO_MEMBER
from data.dataset.index import write_index
from data.dataset.manifest import ShardRecord
from data.dataset.shards import read_shard, write_shard
from data.errors import VideoError
from data.synthetic import combinations, random_scene, render
from data.video.codec import decode_chunks, decode_clip, encode_clip
from models.autoencoder.causal import Past
from models.autoencoder.config import AutoencoderConfig
from models.autoencoder.model import Autoencoder, psnr_db, squared_error
from models.autoencoder.shapes import chunk_lengths, num_latent_frames, num_pixel_frames
from pipeline.encode.chunks import decode_clips
from pipeline.encode.codec import AUTOENCODER_NAME, to_frames, to_pixels
from pipeline.encode.config import CALL_FRAMES, EncodeConfig
from pipeline.encode.encode import Encoder, output_settings, same_shape_batches
from pipeline.evaluate.reconstruction import measure_reconstruction
from pipeline.run.precision import autocast
from testing.records import made_up_clip

SMALL = AutoencoderConfig(latent_channels=4, width=8, deep_width=16, num_blocks=2)
TOLERANCE = 1e-5  # of values of order one: kernels sum in another order for another length


def make_network(config: AutoencoderConfig) -> Autoencoder:
    """Every layer counts: a new autoencoder's last convolutions are zero, and hide the past."""
    torch.manual_seed(0)
    network = Autoencoder(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network


NETWORK = make_network(SMALL)


def encode(pixels: torch.Tensor, lengths: Iterable[int]) -> torch.Tensor:
    return torch.cat(list(NETWORK.encode_frames(pixels.split(list(lengths), dim=2))), dim=2)


def decode(latents: torch.Tensor, lengths: Iterable[int]) -> torch.Tensor:
    return torch.cat(list(NETWORK.decode_latents(latents.split(list(lengths), dim=2))), dim=2)


def moving_shapes(num_frames: int, pixels: int, number: int = 0) -> np.ndarray:
    return render(random_scene(0, number, combinations()), num_frames, pixels)


# ---------------------------------------------------------------- the network


@settings(max_examples=40, deadline=None)
@given(first=st.integers(0, 4), others=st.lists(st.integers(1, 4), max_size=5), seed=st.integers(0, 2**31))
def test_chunks_of_any_lengths_give_what_the_whole_gives(first, others, seed):
    lengths = [4 * first + 1, *(4 * k for k in others)]
    pixels = torch.rand(2, 3, sum(lengths), 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    latents = NETWORK.encode(pixels).mean
    torch.testing.assert_close(encode(pixels, lengths), latents, rtol=0, atol=TOLERANCE)
    decoded = decode(latents, [first + 1, *others])
    torch.testing.assert_close(decoded, NETWORK.decode(latents), rtol=0, atol=TOLERANCE)
    assert decoded.shape == pixels.shape


@pytest.mark.parametrize("num_frames", [1, 17])
def test_one_chunk_is_the_whole_bit_for_bit(num_frames):
    pixels = torch.rand(2, 3, num_frames, 32, 32) * 2 - 1
    latents = NETWORK.encode(pixels).mean
    assert torch.equal(encode(pixels, [num_frames]), latents)
    assert torch.equal(decode(latents, [latents.shape[2]]), NETWORK.decode(latents))


def test_bfloat16_differs_by_its_own_rounding_alone():
    pixels = torch.rand(1, 3, 33, 32, 32) * 2 - 1
    exact = NETWORK.encode(pixels).mean
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = NETWORK.encode(pixels).mean, encode(pixels, [9, 8, 16])
    assert (chunked - whole).abs().max() <= (whole - exact).abs().max()


def test_clips_may_take_turns():
    """What is kept of the past belongs to a clip and not to the network."""
    one, other = torch.rand(2, 1, 3, 9, 16, 16).unbind()
    steps = [NETWORK.encode_frames(clip.split([5, 4], dim=2)) for clip in (one, other)]
    turns = list(zip(*steps, strict=True))
    for clip, chunks in zip((one, other), zip(*turns, strict=True), strict=True):
        assert torch.equal(torch.cat(chunks, dim=2), encode(clip, [5, 4]))


def test_chunks_come_out_as_they_go_in():
    taken = []

    def chunks() -> Iterator[torch.Tensor]:
        for number, length in enumerate([5, 4, 4]):
            taken.append(number)
            yield torch.rand(1, 3, length, 16, 16)

    frames = []
    for pixels in NETWORK.decode_latents(NETWORK.encode_frames(chunks())):
        frames.append(pixels.shape[2])
        assert taken == list(range(len(frames)))
    assert frames == [5, 4, 4]


def test_nothing_is_kept_for_backward():
    network = Autoencoder(SMALL)
    (latents,) = network.encode_frames([torch.rand(1, 3, 5, 16, 16)])
    assert not latents.requires_grad
    assert network.encode(torch.rand(1, 3, 5, 16, 16)).mean.requires_grad  # and the caller's own mode is as it was
    with torch.inference_mode():
        assert encode(torch.rand(1, 3, 9, 16, 16), [5, 4]).is_inference()


@pytest.mark.parametrize(("lengths", "message"), [([8], "takes 4k"), ([5, 3], "of 3 frames"), ([5, 4, 5], "of 5")])
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(ValueError, match=message):
        encode(torch.rand(1, 3, sum(lengths), 16, 16), lengths)


class LargestTensor(TorchDispatchMode):
    """The most bytes that any tensor has that is made while it is on."""

    num_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.num_bytes = max(self.num_bytes, made.untyped_storage().nbytes())
        return made


def largest_tensor(num_frames: int, most: int) -> tuple[int, int]:
    """In bytes, when a clip is encoded and when it is decoded."""
    lengths = chunk_lengths(num_frames, most)
    found = []
    for run in (
        lambda: NETWORK.encode_frames(torch.rand(1, 3, length, 32, 32) for length in lengths),
        lambda: NETWORK.decode_latents(torch.rand(1, 4, num_latent_frames(length), 4, 4) for length in lengths),
    ):
        with LargestTensor() as largest:
            for _ in run():
                pass
        found.append(largest.num_bytes)
    return found[0], found[1]


def test_memory_is_that_of_a_chunk():
    assert largest_tensor(29, 8) == largest_tensor(101, 8)
    whole = largest_tensor(101, 104)
    assert all(few < many / 8 for few, many in zip(largest_tensor(101, 8), whole, strict=True))


def test_the_past_is_two_frames_for_each_convolution_over_time():
    past, kept = Past(), []
    for length in (9, 8, 8, 4):
        NETWORK.encode(torch.rand(1, 3, length, 32, 32), past)
        assert {frames.shape for frames in past.frames.values()} == {(1, 16, 2, 4, 4)}
        kept.append(sum(frames.untyped_storage().nbytes() for frames in past.frames.values()))
    # Two blocks at each of two resolutions in time, 16 channels of 4 x 4 numbers of 4 bytes.
    assert kept == [4 * 2 * 16 * 4 * 4 * 4] * 4


@given(k=st.integers(0, 300), m=st.integers(1, 50))
def test_chunk_lengths(k, m):
    lengths = chunk_lengths(4 * k + 1, 4 * m)
    assert sum(lengths) == 4 * k + 1
    assert max(lengths) <= 4 * m
    assert [length % 4 for length in lengths] == [1] + [0] * (len(lengths) - 1)
    assert len(lengths) == -(-(4 * k + 1) // (4 * m))  # as few as can be
    assert sum(num_latent_frames(length) for length in lengths) == k + 1
    assert num_pixel_frames(k + 1) == 4 * k + 1


@pytest.mark.parametrize(("num_frames", "most"), [(8, 8), (9, 6), (9, 0)])
def test_chunks_that_do_not_fit_are_refused(num_frames, most):
    with pytest.raises(ValueError, match="cannot be cut"):
        chunk_lengths(num_frames, most)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 16, 16), (41, 48, 80), (41, 64, 272)])
def test_a_file_is_decoded_in_chunks(num_frames, height, width):
    content = encode_clip(moving_shapes(num_frames, 272)[:, :height, :width], 8)
    whole = decode_clip(content)
    for most in (4, 12, 44):
        lengths = chunk_lengths(num_frames, most)
        chunks = list(decode_chunks(content, lengths))
        assert [len(chunk) for chunk in chunks] == lengths
        np.testing.assert_array_equal(np.concatenate(chunks), whole)
    for wrong in {1, num_frames + 4} - {num_frames}:
        with pytest.raises(VideoError, match=f"it has {num_frames} frames and not the {wrong} of its record"):
            list(decode_chunks(content, [wrong]))


def test_latents_of_many_clips_are_decoded_some_at_a_time():
    latents = torch.randn(5, 4, 4, 2, 3)  # 13 frames each
    whole = [to_frames(pixels) for pixels in NETWORK.decode(latents)]
    for most in (4, 8, 12, 28, 512):
        clips = decode_clips(NETWORK, latents, most)
        for clip, expected in zip(clips, whole, strict=True):
            assert abs(clip.astype(int) - expected).max() <= 1  # a value on the edge between two levels
    assert all(np.array_equal(a, b) for a, b in zip(decode_clips(NETWORK, latents), whole, strict=True))


# ---------------------------------------------------------------- the stages

SETTINGS = EncodeConfig(chunk_frames=20, precision="fp32")


def write_clips(path: Path, lengths: Iterable[int], side: int) -> ShardRecord:
    """A shard of real files, and its index."""
    samples = []
    for number, num_frames in enumerate(lengths):
        bucket = Bucket(num_frames=num_frames, height=side, width=side, fps=8)
        samples.append((made_up_clip(number, bucket), encode_clip(moving_shapes(num_frames, side, number), 8)))
    shard, rows = write_shard(path, samples, VIDEO_MEMBER)
    write_index(path.parent, rows)
    return shard


def write_autoencoder(path: Path, config: AutoencoderConfig) -> Autoencoder:
    network = make_network(config)
    save_file(network.state_dict(), path, metadata={"config": config.model_dump_json()})
    return network


def encode_shard(folder: Path, shard: ShardRecord, config: EncodeConfig) -> dict[str, torch.Tensor]:
    """What the stage's actor writes, by key."""
    target = folder / f"latents-{shard.name}"
    Encoder(folder / AUTOENCODER_NAME, config, 1).encode(folder / shard.name, shard, target, "a test")
    return {record.key: load(payload)["mean"] for record, payload in read_shard(target, LATENT_MEMBER)}


def test_long_clips_beside_short_ones_are_encoded_in_chunks(tmp_path):
    network = write_autoencoder(tmp_path / AUTOENCODER_NAME, SMALL)
    lengths = [9, 401, 9, 1, 401, 33]
    shard = write_clips(tmp_path / "clips.tar", lengths, 64)
    latents = encode_shard(tmp_path, shard, SETTINGS)
    for (record, content), num_frames in zip(read_shard(tmp_path / "clips.tar", VIDEO_MEMBER), lengths, strict=True):
        whole = network.encode(to_pixels(decode_clip(content))[None]).mean[0]
        assert latents[record.key].shape == (4, num_latent_frames(num_frames), 8, 8)
        torch.testing.assert_close(latents[record.key], whole, rtol=0, atol=TOLERANCE)


def test_the_frames_of_a_call_are_bounded():
    config = EncodeConfig(batch=4, chunk_frames=64)
    for num_frames, sizes in ((1, [4, 3]), (13, [4, 3]), (17, [3, 3, 1]), (65, [1] * 7), (401, [1] * 7)):
        bucket = Bucket(num_frames=num_frames, height=64, width=64, fps=8)
        clips = [(made_up_clip(number, bucket), b"") for number in range(7)]
        batches = list(same_shape_batches(clips, config))
        assert [len(batch) for batch in batches] == sizes
        assert [clip for batch in batches for clip in batch] == clips


def test_latents_are_made_from_the_length_of_chunks_only_where_it_can_change_them():
    short, long = (Bucket(num_frames=num_frames, height=64, width=64, fps=8) for num_frames in (17, 401))
    one, other = EncodeConfig(), EncodeConfig(chunk_frames=272)  # 16 clips of 17 frames
    assert (
        output_settings(one, [short])
        == output_settings(other, [short])
        == {"batch": 16, "precision": "auto", "text": None}
    )
    assert output_settings(one, [short, long]) != output_settings(other, [short, long])
    assert output_settings(EncodeConfig(chunk_frames=268), [short]) != output_settings(one, [short])


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


def test_reconstruction_of_a_long_clip_is_measured_over_all_of_it(tmp_path):
    network = write_autoencoder(tmp_path / AUTOENCODER_NAME, SMALL)
    write_clips(tmp_path / "clips.tar", [CALL_FRAMES + 5, 17], 16)
    measured, (long, short) = measure_reconstruction(tmp_path, tmp_path / AUTOENCODER_NAME, 2, 2)
    values = []
    for shown in (long, short):
        pixels = to_pixels(shown.original)[None]
        with autocast("auto", torch.device("cpu")):
            reconstruction = network.decode(network.encode(pixels).mean)
        values.append(psnr_db(squared_error(pixels, reconstruction)).item())
        assert abs(to_frames(reconstruction[0]).astype(int) - shown.reconstruction).mean() < 0.5
    assert long.original.shape == (CALL_FRAMES + 5, 16, 16, 3)
    assert measured.num_clips == 2
    assert measured.psnr_db == pytest.approx(np.mean(values), abs=1e-3)
    assert measured.psnr_db_min == pytest.approx(min(values), abs=1e-3)
