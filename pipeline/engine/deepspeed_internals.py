"""Every private or undocumented name of DeepSpeed that the engine uses, behind functions that say what they do.

These names may change with any release, so `import_deepspeed` refuses versions that were not tested.
"""

import importlib
import logging
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from data.errors import ReelflowError
from pipeline.engine.fragment import Extent, share

SUPPORTED_VERSIONS = ">=0.19.8,<0.20"
"""The same range as in pyproject.toml."""


class DeepSpeedVersionError(ReelflowError, ImportError):
    """The installed DeepSpeed is not one that reelflow was tested with; the message says how to install another."""


def import_deepspeed() -> Any:  # noqa: ANN401 - deepspeed is untyped
    """DeepSpeed with its log limited to errors and, on a CPU, without the operator that needs a C++ compiler.

    Raises:
        DeepSpeedVersionError: the installed version is not supported.
    """
    check_version(version("deepspeed"))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # again: importing DeepSpeed sets its own level
    _import_muon()
    importlib.import_module("deepspeed.comm.torch")
    # `import deepspeed.comm.torch as m` would bind the top-level torch: deepspeed.comm has its own name `torch`.
    if not torch.cuda.is_available():
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    return deepspeed


def check_version(installed: str) -> None:
    """Refuse a version of DeepSpeed outside `SUPPORTED_VERSIONS`.

    Raises:
        DeepSpeedVersionError: names the installed version and the command that installs a supported one.
    """
    if not SpecifierSet(SUPPORTED_VERSIONS).contains(installed, prereleases=True):
        raise DeepSpeedVersionError(
            f"DeepSpeed {installed} is installed, but reelflow uses names inside DeepSpeed that were tested with "
            f"{SUPPORTED_VERSIONS} only: pip install 'deepspeed{SUPPORTED_VERSIONS}'"
        )


def _import_muon() -> None:
    """Import the Muon optimizer, which DeepSpeed does at every start, without torch's compiler: it takes 1.5 s."""
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compiled


def set_collective_timeout(engine: Any, timeout: timedelta) -> None:  # noqa: ANN401 - deepspeed is untyped
    """Give the process groups that DeepSpeed created the timeout of all others; its default is half an hour."""
    for group in (engine.data_parallel_group, engine.seq_data_parallel_group):
        _set_pg_timeout(timeout, group)


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, also where a rank holds only a part of it (stage 3)."""
    return getattr(parameter, "ds_shape", parameter.shape)


def cast_parameter(parameter: nn.Parameter, dtype: torch.dtype) -> Tensor:
    """Cast a parameter, or what this rank holds of one that is partitioned.

    Returns:
        the values before, in one dimension; at their end the padding of a part, if there is any.
    """
    partitioned: Any = parameter
    held = getattr(parameter, "ds_tensor", parameter)
    before = held.data
    held.data = before.to(dtype)
    if held is not parameter:
        if before.is_pinned():
            held.data = held.data.pin_memory()
        partitioned.data = partitioned.data.to(dtype)  # an empty tensor
    return before.view(-1)


def parameter_partitioner(device: torch.device, *, offloaded: bool) -> Callable[[nn.Parameter], None]:
    """A function that leaves of a whole parameter this rank's part, as stage 3 does with one that is not partitioned.

    It copies this part alone, to `device` or, if offloaded, into host memory; the parameter itself may lie elsewhere,
    such as in a mapped file. No collective, but all ranks partition the same parameters in the same order.
    """
    # The empty module: like a module given to the engine, it makes torch's linear function the one of stage 3.
    init = import_deepspeed().zero.Init(
        module=nn.Module(),
        dtype=torch.float32,
        remote_device="cpu" if offloaded else None,
        pin_memory=device.type == "cuda",
    )

    def partition(parameter: nn.Parameter) -> None:
        init._convert_to_deepspeed_param(parameter)
        partitioned: Any = parameter
        partitioned.partition()
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=device)  # where it is gathered

    return partition


def set_loss_scale(optimizer: Any, scale: float) -> None:  # noqa: ANN401 - deepspeed is untyped
    """Multiply the loss of the next backward pass by `scale` and divide its gradients by it; stages 1 to 3.

    Set before each step, because DeepSpeed's own scaler changes the scale between the two: a scale that doubles then
    halves the gradient.
    """
    optimizer.override_loss_scale(scale)


def partition_gradients(optimizer: Any, stage: int, *, offloaded: bool) -> list[Tensor]:  # noqa: ANN401
    """The accumulated gradients, still multiplied by the loss scale, of this rank's partition; stages 1 to 3."""
    if offloaded:
        return [vector.grad for vector in _master_vectors(optimizer, stage)]
    return list(chain.from_iterable(optimizer.averaged_gradients.values()))


def copy_master_to_module(optimizer: Any, stage: int) -> None:  # noqa: ANN401 - deepspeed is untyped
    """Copy changed master weights into the module's parameters on every rank; called by all ranks, stages 1 to 3."""
    if stage < 3:
        optimizer.update_lp_params()
        return
    optimizer._partition_all_parameters()
    for sub_group in range(len(optimizer.fp16_groups)):
        optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
    if optimizer.persistent_parameters:  # those that stay whole are gathered once, not in every forward pass
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def local_extents(optimizer: Any, stage: int, rank: int, world_size: int) -> list[Extent]:  # noqa: ANN401
    """Which values this rank updates at stages 1 to 3, in the order of parameter groups."""
    return _even_parts(optimizer, rank, world_size) if stage == 3 else _slices(optimizer)


def _master_vectors(optimizer: Any, stage: int) -> list[Any]:  # noqa: ANN401 - deepspeed is untyped
    return optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups


def _slices(optimizer: Any) -> list[Extent]:  # noqa: ANN401 - deepspeed is untyped
    """Stages 1 and 2: a rank has one slice of the vector in which all parameters of a group lie one after another."""
    extents = []
    for parameters, vector in zip(optimizer.bit16_groups, _master_vectors(optimizer, 2), strict=True):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: this rank has no part of the parameter
                master, model = mapping.hp_fragment_address, mapping.lp_fragment_address
                extents.append(Extent(parameter, vector, master.start, model.start, master.numel))
    return extents


def _even_parts(optimizer: Any, rank: int, world_size: int) -> list[Extent]:  # noqa: ANN401 - deepspeed is untyped
    """Stage 3: a rank has an even part of every parameter, the last part padded."""
    extents = []
    for parameters, vector in zip(optimizer.fp16_groups, _master_vectors(optimizer, 3), strict=True):
        offset = 0
        for parameter in parameters:
            start, stop = share(parameter.ds_numel, rank, world_size)
            if start < stop:
                extents.append(Extent(parameter, vector, offset, start, stop - start))
            offset += parameter.partition_numel()
    return extents
