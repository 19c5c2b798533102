"""Latents as views of what was read, in memory that is lent again."""

import pytest
import torch
from safetensors.torch import load, save

from data.dataset.clip import LATENT_MEMBER
from data.dataset.latents import read_latents
from data.dataset.shards import write_shard
from data.errors import DatasetError
from data.stream.loader import Stream, Subset
from testing.records import SMALL, made_up_clip


def latent(number: int, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (2, 3, 4, 5)) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)


def in_one_piece(payloads: list[bytes]) -> list[memoryview]:
    whole, pieces = memoryview(bytearray(b"".join(payloads))), []
    for payload in payloads:
        pieces.append(whole[: len(payload)])
        whole = whole[len(payload) :]
    return pieces


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_latents_are_what_the_library_reads(dtype):
    for shape in ((2, 3, 4, 5), (1, 1, 1, 3)):  # the second of an odd number of bytes in half precision
        payloads = [save({"mean": latent(n, dtype, shape)}) for n in range(3)]
        expected = torch.stack([load(payload)["mean"] for payload in payloads])
        for given in (payloads, in_one_piece(payloads), [memoryview(payload) for payload in payloads]):
            read = read_latents(given)
            assert read.dtype == dtype
            assert torch.equal(read, expected)


def test_payloads_in_a_row_are_viewed_and_others_copied():
    payloads = in_one_piece([save({"mean": latent(n)}) for n in range(4)])
    read = read_latents(payloads[1:3])
    read[0, 0, 0, 0, 0] = 7.0
    assert load(bytes(payloads[1]))["mean"][0, 0, 0, 0] == 7.0
    for scattered in (payloads[::-1], payloads[::2], [payloads[0], memoryview(bytearray(payloads[1]))]):
        read = read_latents(scattered)
        assert torch.equal(read, torch.stack([load(bytes(payload))["mean"] for payload in scattered]))
        before = bytes(scattered[0])
        read.zero_()
        assert bytes(scattered[0]) == before


def test_read_only_payloads_are_never_written_to():
    payload = save({"mean": latent(0)})
    before = bytes(bytearray(payload))
    for given in (payload, memoryview(payload), memoryview(bytearray(payload)).toreadonly()):
        read_latents([given]).zero_()
        assert bytes(given) == before


def test_what_is_no_latent_is_refused():
    good, small = save({"mean": latent(0)}), save({"mean": latent(0, shape=(2, 3, 4, 4))})
    with pytest.raises(DatasetError, match="several shapes"):
        read_latents([good, small])
    with pytest.raises(DatasetError, match=f"{len(good) - 4} bytes, its header needs {len(good)}"):
        read_latents([good[:-4]])
    for damaged in (b"", good[:20], good.replace(b"mean", b"meat"), good.replace(b"F32", b"I32")):
        with pytest.raises(DatasetError, match="damaged header"):
            read_latents([damaged])
    with pytest.raises(DatasetError, match="has a contradictory header"):
        read_latents([good.replace(b"[2,3,4,5]", b"[2,3,4,6]")])


def test_batches_that_are_kept_stay_as_they_were_read(tmp_path):
    samples = [(made_up_clip(n), save({"mean": latent(n)})) for n in range(24)]
    subset = Subset(tmp_path, write_shard(tmp_path / "shard-0.tar", samples, LATENT_MEMBER)[1], SMALL)
    stream = Stream([subset], {SMALL.name: 4}, seed=0, rank=0, world_size=1)
    batches = stream.batches(0, lambda read: (read, read_latents([sample.payload for sample in read])), readers=2)
    kept = [next(batches) for _ in range(20)]
    batches.close()
    for read, latents in kept:
        assert torch.equal(latents, torch.stack([latent(int(sample.row.key, 16)) for sample in read]))
        assert latents.data_ptr() - torch.frombuffer(read[0].payload, dtype=torch.uint8).data_ptr() < 200  # a view
