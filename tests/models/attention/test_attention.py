"""Attention by every backend, and which one is chosen."""

from importlib.util import find_spec

import pytest
import torch

from models.attention.attention import attention
from models.attention.backends import BACKENDS, MATMUL_MAX_SCORES, choose_backend


@pytest.mark.gpu
@pytest.mark.parametrize("masked", [False, True])
def test_attention_on_the_gpu_equals_the_reference(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 65, 4, 64).bfloat16() for _ in range(3))
    mask = (torch.arange(65) < torch.tensor([[65], [30]])) if masked else None
    on_gpu = attention(q.cuda(), k.cuda(), v.cuda(), None if mask is None else mask.cuda())
    torch.testing.assert_close(on_gpu.cpu().double(), reference_attention(q, k, v, mask), rtol=3e-2, atol=3e-2)


@pytest.mark.gpu
def test_flash_attention_is_taken_where_it_is_installed():
    x = torch.zeros(1, 16, 2, 64, dtype=torch.bfloat16, device="cuda")
    assert choose_backend(x, x, None).name == ("flash-attn" if find_spec("flash_attn") else "sdpa")
    assert choose_backend(x, x, torch.ones(1, 16, dtype=torch.bool, device="cuda")).name == "sdpa"
    wide = torch.zeros(1, 16, 1, 384, dtype=torch.bfloat16, device="cuda")
    assert choose_backend(wide, wide, None).name == "sdpa"


def reference_attention(q, k, v, mask=None):
    """softmax(q k^T / sqrt(d)) v in float64, one head and sample at a time."""
    out = torch.empty_like(q, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            scores = q[b, :, h].double() @ k[b, :, h].double().T / q.shape[-1] ** 0.5
            if mask is not None:
                scores[:, ~mask[b]] = -torch.inf
            out[b, :, h] = scores.softmax(-1) @ v[b, :, h].double()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_reference(dtype, masked):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 7, 3, 8), torch.randn(2, 5, 3, 8), torch.randn(2, 5, 3, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]]) if masked else None
    q, k, v = (x.to(dtype) for x in (q, k, v))
    out = attention(q, k, v, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), reference_attention(q, k, v, mask), rtol=tolerance, atol=tolerance)
    assert out.dtype == dtype


@pytest.fixture(params=["highest", "medium"], ids=["MKL", "oneDNN"])
def products(request):
    """What computes float32 products, see `pipeline/run/precision.py`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_attention_kernel_choice(products):
    short, long = torch.zeros(1, 16, 1, 8), torch.zeros(1, MATMUL_MAX_SCORES // 16 + 1, 1, 8)
    assert choose_backend(short, short, None).name == ("matmul" if products == "medium" else "sdpa")
    assert choose_backend(short.double(), short.double(), None).name == "sdpa"
    supports = BACKENDS[1].supports
    compiled = torch.compile(lambda x: x + supports(x, x, None), backend="eager", fullgraph=True)  # one graph
    assert torch.equal(compiled(short), short + supports(short, short, None))
    assert choose_backend(short.bfloat16(), short.bfloat16(), None).name == "matmul"
    assert choose_backend(short.bfloat16(), long.bfloat16(), None).name == "sdpa"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_every_backend_that_supports_the_arguments_equals_the_reference(backend, dtype, masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 8).to(dtype) for length in (7, 5, 5))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]]) if masked else None
    if not backend.supports(q, k, mask):
        assert backend.name in {"flash-attn", "matmul"}
        return
    out = backend.run(q, k, v, mask)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(out.double(), reference_attention(q, k, v, mask), rtol=tolerance, atol=tolerance)


def test_the_last_backend_supports_everything():
    x = torch.zeros(1, 3, 1, 8)
    for query in (x, x.bfloat16(), x.half(), x.double()):
        for mask in (None, torch.ones(1, 3, dtype=torch.bool)):
            assert BACKENDS[-1].supports(query, query, mask)
