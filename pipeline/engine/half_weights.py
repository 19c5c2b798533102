"""bfloat16 weights in a module, float32 master weights in its optimizer: ZeRO moves half the bytes.

Without them the module's weights are float32, and autocast casts them in every forward pass. With them the module holds
what autocast would make of the master weights, so that linear layers and convolutions compute the same; gathered
weights, gradients and their reductions take two bytes a value instead of four. Gradients are then rounded to bfloat16
before ranks add them, and parameters that autocast leaves in float32 (norms, embeddings, tables of modulation) are
rounded too; the networks compute with them in float32 all the same. Checkpoints hold master weights, moments and
averages in float32 as without, so a training resumes with either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.engine.deepspeed_internals import cast_parameter, whole_shape
from pipeline.engine.fragment import Fragment

HALF = torch.bfloat16


@dataclass(frozen=True)
class Initial:
    """Values of a parameter before it was cast."""

    start: int  # of the first value in the flattened parameter
    values: Tensor  # 1-D, float32; at the end padding, if any


def cast_weights(module: nn.Module) -> dict[str, Initial]:
    """Cast all parameters to bfloat16; returns what this rank holds of the values before of those that are trained."""
    initial = {}
    for name, parameter in module.named_parameters():
        values = cast_parameter(parameter, HALF)
        if parameter.requires_grad:
            is_whole = values.numel() == whole_shape(parameter).numel()
            initial[name] = Initial(0 if is_whole else dist.get_rank() * values.numel(), values)
    return initial


def set_masters(fragments: Sequence[Fragment], initial: Mapping[str, Initial]) -> None:
    """Give master weights the values before the cast, of which DeepSpeed saw those after."""
    for fragment in fragments:
        before = initial[fragment.name]
        start = fragment.start - before.start
        fragment.master.copy_(before.values[start : start + fragment.master.numel()])


def half_settings(accumulation_steps: int) -> dict[str, Any]:
    """Sections of DeepSpeed's configuration; gradients of several micro-batches are added in float32."""
    accumulated = {"data_types": {"grad_accum_dtype": "fp32"}} if accumulation_steps > 1 else {}
    return {"bf16": {"enabled": True}, **accumulated}
