"""Every kernel of this machine computes attention as float64 does: values and gradients, with and without a mask."""

import pytest
import torch

from models.attention.attention import attention
from models.attention.backends import BACKENDS, Backend, attention_backend
from models.attention.call import Call
from models.attention.packed import Segments, packed_attention
from testing.attention import reference_attention, reference_gradients

# (queries, keys, channels of a head): below, at and above a block of queries, and no multiple of anything
SHAPES = [(7, 5, 8), (128, 77, 64), (300, 131, 48), (1, 1, 16)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2, torch.float16: 6e-3}


def tensors(queries, keys, channels, dtype, device="cpu"):
    torch.manual_seed(0)
    q, k, v, upstream = (torch.randn(3, n, 2, channels) for n in (queries, keys, keys, queries))
    return [x.to(device, dtype) for x in (q, k, v, upstream)]


def mask_of(form, keys, device="cpu"):
    """None; or a mask of three samples: all keys, about a third of them, and, in form "empty", none."""
    if form == "full":
        return None
    lengths = torch.tensor([[keys], [keys // 3 + 1], [0 if form == "empty" else keys]])
    return (torch.arange(keys) < lengths).to(device)


def check(out, grads, q, k, v, upstream, mask):
    """Values and gradients against float64, relative to the largest of each."""
    tolerance = TOLERANCE[q.dtype]
    q, k, v, upstream = (x.detach().cpu() for x in (q, k, v, upstream))
    mask = None if mask is None else mask.cpu()
    expected = [reference_attention(q, k, v, mask), *reference_gradients(q, k, v, mask, upstream)]
    for computed, wanted in zip([out, *grads], expected, strict=True):
        assert computed.dtype == q.dtype
        scale = wanted.abs().max().item() or 1.0
        torch.testing.assert_close(computed.detach().cpu().double(), wanted, rtol=0, atol=tolerance * scale)


def run_and_check(backend: Backend, q, k, v, upstream, mask):
    q, k, v = inputs = [x.requires_grad_() for x in (q, k, v)]
    out = backend.run(q, k, v, mask)
    check(out, torch.autograd.grad(out, inputs, upstream), q, k, v, upstream, mask)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["full", "masked", "empty"])
def test_every_kernel_that_takes_a_call_computes_what_float64_does(backend, dtype, form):
    num_run = 0
    for shape in SHAPES:
        q, k, v, upstream = tensors(*shape, dtype)
        mask = mask_of(form, shape[1])
        if backend.why_not(Call.of(q, k, v, "full" if mask is None else "masked")) is None:
            run_and_check(backend, q, k, v, upstream, mask)
            num_run += 1
    assert num_run in (0, len(SHAPES))
    assert num_run or backend.name != "sdpa"


@pytest.fixture(params=["highest", "medium"])
def products(request):
    """What computes float32 products, see `pipeline/run/precision.py`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("form", ["full", "masked", "empty"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_whichever_kernel_is_chosen_it_is_attention(form, dtype, products):
    for shape in SHAPES:
        q, k, v, upstream = tensors(*shape, dtype)
        mask = mask_of(form, shape[1])
        q, k, v = inputs = [x.requires_grad_() for x in (q, k, v)]
        out = attention(q, k, v, mask)
        check(out, torch.autograd.grad(out, inputs, upstream), q, k, v, upstream, mask)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sample_without_keys_gets_zeros_and_gives_no_gradient(dtype):
    for queries, keys in ((7, 5), (700, 401)):
        q, k, v, upstream = tensors(queries, keys, 8, dtype)
        q, k, v = inputs = [x.requires_grad_() for x in (q, k, v)]
        out = attention(q, k, v, mask_of("empty", keys))
        assert torch.equal(out[2], torch.zeros_like(out[2]))
        for gradient in torch.autograd.grad(out, inputs, upstream):
            assert torch.equal(gradient[2], torch.zeros_like(gradient[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_mask_that_allows_everything_changes_no_bit(dtype):
    """So a batch without padding can leave its mask out."""
    for queries, keys in ((7, 5), (700, 401)):
        q, k, v, _ = tensors(queries, keys, 16, dtype)
        assert torch.equal(attention(q, k, v), attention(q, k, v, torch.ones(3, keys, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_does_not_depend_on_the_order_of_keys_and_follows_that_of_queries(dtype):
    q, k, v, _ = tensors(140, 131, 16, dtype)
    mask = torch.rand(3, 131) < 0.5
    of_queries, of_keys = torch.randperm(140), torch.randperm(131)
    shuffled = attention(q[:, of_queries], k[:, of_keys], v[:, of_keys], mask[:, of_keys])
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(shuffled, attention(q, k, v, mask)[:, of_queries], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_masked_is_packed(dtype):
    q, k, v, _ = tensors(9, 12, 16, dtype)
    lengths = [12, 5, 0]
    mask = torch.arange(12) < torch.tensor(lengths)[:, None]
    masked = attention(q, k, v, mask)
    packed = packed_attention(
        q.flatten(0, 1), k[mask], v[mask], Segments.of([9, 9, 9]), Segments.of(lengths)
    ).unflatten(0, (3, 9))
    torch.testing.assert_close(masked, packed, rtol=0, atol=TOLERANCE[dtype])


# --- on a GPU; last run: never ----------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["full", "masked", "empty"])
def test_every_kernel_of_the_gpu_computes_what_float64_does(backend, dtype, form):
    for shape in [*SHAPES, (513, 1000, 128), (64, 65, 256)]:
        q, k, v, upstream = tensors(*shape, dtype, "cuda")
        mask = mask_of(form, shape[1], "cuda")
        if backend.why_not(Call.of(q, k, v, "full" if mask is None else "masked")) is None:
            run_and_check(backend, q, k, v, upstream, mask)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", [each for each in BACKENDS if each.run_packed], ids=lambda backend: backend.name)
def test_every_packed_kernel_of_the_gpu_is_attention_within_the_segments(backend):
    query_lengths, key_lengths = [130, 7, 64, 30], [77, 130, 0, 1]
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(n), 2, 64).bfloat16() for n in (query_lengths, key_lengths, key_lengths))
    if backend.why_not(Call.of(q.cuda(), k.cuda(), v.cuda(), "packed")) is not None:
        return
    segments = [Segments.of(lengths, "cuda") for lengths in (query_lengths, key_lengths)]
    with attention_backend(backend.name):
        out = packed_attention(q.cuda(), k.cuda(), v.cuda(), *segments)
    parts = zip(q.split(query_lengths), k.split(key_lengths), v.split(key_lengths), strict=True)
    expected = torch.cat([reference_attention(a[None], b[None], c[None])[0] for a, b, c in parts])
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=4e-2)


@pytest.mark.gpu
def test_a_mask_does_not_wait_for_the_gpu():
    x = torch.randn(2, 64, 2, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    mask = torch.arange(64, device="cuda") < torch.tensor([[64], [9]], device="cuda")
    attention(x, x, x, mask).sum().backward()  # compiles and allocates
    torch.cuda.synchronize()
    with torch.cuda.device(0):
        torch.cuda.set_sync_debug_mode("error")
        try:
            attention(x, x, x, mask).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
