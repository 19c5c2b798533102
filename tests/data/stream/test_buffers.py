"""A buffer is reused only when nothing refers to it."""

import gc

import torch

from data.stream.buffers import BufferPool


def test_memory_is_lent_again_only_when_nothing_refers_to_it():
    pool = BufferPool()
    first = pool.take(5000)
    address = torch.frombuffer(first, dtype=torch.uint8).data_ptr()
    view = torch.frombuffer(first[100:200], dtype=torch.uint8)
    first[:] = b"a" * 5000
    del first
    gc.collect()
    second = pool.take(5000)
    second[:] = b"b" * 5000
    assert set(view.tolist()) == {ord("a")}
    del view
    third = pool.take(8192)
    assert len(third) == 8192
    assert torch.frombuffer(third, dtype=torch.uint8).data_ptr() == address
    assert len(pool.take(1)) == 1
