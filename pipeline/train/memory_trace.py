"""The memory of a training step in time, found by running it on tensors that have shapes but no values.

torch's `FakeTensorMode` computes shapes alone, so the step of a network of any size takes seconds and no memory, and
what is counted follows the code: whatever a network keeps for its backward pass is in the figures.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import pad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.attention.attention import attention
from models.attention.config import AttentionBackend
from models.layers import BlockStack, Recompute
from models.networks.protocol import VelocityNetwork


@dataclass(frozen=True)
class Moment:
    """A stretch of a step between two gradients that became ready."""

    tensor_bytes: int
    """Most bytes of tensors that were alive at once, beside weights and the gradients of finished parameters."""
    num_finished: int
    """Values of the parameters whose gradient had become ready before."""


@dataclass(frozen=True)
class StepTrace:
    """A forward and a backward pass on one worker."""

    num_trained: int
    """Values of the parameters that are trained."""
    num_frozen: int
    """Values of the others."""
    largest_parameter: int
    """Values of the largest trained parameter."""
    parameter_sizes: tuple[int, ...]
    """Values of each trained parameter."""
    moments: tuple[Moment, ...]

    @property
    def peak_tensor_bytes(self) -> int:
        """Activations and temporary tensors at their peak."""
        return max(moment.tensor_bytes for moment in self.moments)


@dataclass(frozen=True)
class TraceOptions:
    """What the tensors of a step depend on, beside the network and the batch."""

    dtype: torch.dtype | None = None
    """The type that autocast computes in; None: float32."""
    half_weights: bool = False
    """The module's weights are bfloat16, see `pipeline/engine/half_weights.py`."""
    recompute: Recompute = False
    attention: AttentionBackend = "auto"
    sequence_parallel: int = 1


def trace_step(
    build: Callable[[], nn.Module], batch: Callable[[], Any], options: TraceOptions | None = None
) -> StepTrace:
    """Run one forward and backward pass without values.

    Args:
        build: the network inside its loss, as `TrainTask.build` makes it; called where tensors have no values.
        batch: what the module's forward takes; likewise.
    """
    options = options or TraceOptions()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"):
        module = build()
        if options.half_weights:
            for parameter in module.parameters():
                parameter.data = parameter.data.bfloat16()
        for part in module.modules():
            if isinstance(part, BlockStack):
                part.recompute, part.attention = options.recompute, options.attention
            if isinstance(part, VelocityNetwork) and options.sequence_parallel > 1:
                part.sequence_plan = _OneOfSeveral(options.sequence_parallel)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
        moments = _run(module, trained, batch, options.dtype)
    sizes = tuple(parameter.numel() for parameter in trained)
    return StepTrace(sum(sizes), sum(p.numel() for p in frozen), max(sizes), sizes, moments)


def _run(
    module: nn.Module, trained: list[nn.Parameter], batch: Callable[[], Any], dtype: torch.dtype | None
) -> tuple[Moment, ...]:
    moments: list[Moment] = []
    num_finished = 0
    living = _Living([*module.parameters(), *module.buffers()])

    def finish(parameter: Tensor) -> None:
        nonlocal num_finished
        moments.append(Moment(living.take_peak(), num_finished))
        num_finished += parameter.numel()
        parameter.grad = None  # what an engine keeps of it is added where its stage is known

    with living, _hooks(trained, finish):
        inputs = batch()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            loss = module(inputs)["total"]
        loss.backward()
    moments.append(Moment(living.take_peak(), num_finished))
    return tuple(moments)


@contextmanager
def _hooks(parameters: list[nn.Parameter], hook: Callable[[Tensor], None]) -> Iterator[None]:
    handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Living(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self, uncounted: list[Tensor]) -> None:
        super().__init__()
        self._bytes, self._peak = 0, 0
        self._known = {tensor.untyped_storage()._cdata: weakref.ref(tensor.untyped_storage()) for tensor in uncounted}

    def take_peak(self) -> int:
        """The most bytes since the last call."""
        peak, self._peak = self._peak, self._bytes
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401 - torch's
        if func is torch.ops.aten._local_scalar_dense.default:  # a check of values, which pass
            return args[0].dtype == torch.bool or 1
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return

        def forget(_: object) -> None:
            self._bytes -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self._bytes += size
        self._peak = max(self._peak, self._bytes)


class _OneOfSeveral:
    """The memory of one process of a sequence-parallel group, without the others: what they would send is repeated."""

    def __init__(self, size: int) -> None:
        self._size = size

    def shard(self, tokens: Float[Tensor, "... n d"], num_frames: int) -> Float[Tensor, "... m d"]:
        parts = rearrange(tokens, "... (t r s) d -> r ... (t s) d", t=num_frames, r=self._size)
        return parts[0]

    def join_caption(
        self, caption: Float[Tensor, "b m d"], mask: Bool[Tensor, "b m"], num_tokens: int
    ) -> tuple[Float[Tensor, "b k d"], Bool[Tensor, "b keys"]]:
        missing = -caption.shape[1] % self._size
        parts = rearrange(pad(caption, (0, 0, 0, missing)), "b (r m) d -> r b m d", r=self._size)
        masks = rearrange(pad(mask, (0, missing), value=False), "b (r m) -> b r m", r=self._size)
        return parts[0], rearrange(pad(masks, (num_tokens, 0), value=True), "b r k -> b (r k)")

    def attention(
        self,
        query: Float[Tensor, "b m heads d"],
        key: Float[Tensor, "b k heads d"],
        value: Float[Tensor, "b k heads d"],
        mask: Bool[Tensor, "b keys"] | None = None,
    ) -> Float[Tensor, "b m heads d"]:
        every_token = self._every_token
        attended = attention(every_token(query), every_token(key), every_token(value), mask)
        return torch.cat(attended.chunk(self._size, dim=1), dim=2)

    def _every_token(self, x: Float[Tensor, "b m heads d"]) -> Float[Tensor, "b n few d"]:
        """Every token of some heads."""
        return torch.cat([x[:, :, : x.shape[2] // self._size]] * self._size, dim=1)

    def gather(self, tokens: Float[Tensor, "b m d"], num_frames: int) -> Float[Tensor, "b n d"]:
        parts = torch.stack([tokens] * self._size)
        return rearrange(parts, "r b (t s) d -> b (t r s) d", t=num_frames)
