"""Where the weights of a new network go, one at a time as they are read: no rank makes a second copy of the network.

Values that lie in a mapped file take no memory until they are copied. At ZeRO stage 3 a rank copies its own part of
each parameter alone, and so never holds the whole network.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.engine.config import Offload, ZeroStage
from pipeline.engine.deepspeed_internals import parameter_partitioner


@dataclass(frozen=True)
class Placement:
    """The device that a network computes on, and what the engine that it is made for will partition and offload."""

    device: torch.device
    stage: ZeroStage = 0
    offload: Offload = "none"

    def place(self, network: nn.Module, values: Iterable[tuple[str, Tensor]]) -> None:
        """Give a network that was built under torch.device("meta") its weights; at stage 3, this rank's part of them.

        All ranks call it with the same names in the same order, because DeepSpeed numbers parameters as they come.

        Args:
            values: every parameter's name and whole value on the CPU. Each is copied before the next is taken.

        Raises:
            ValueError: a value has another shape than the parameter, or a tensor of the network has no value.
        """
        partition = None
        if self.stage == 3:
            partition = parameter_partitioner(self.device, offloaded=self.offload == "optimizer_and_parameters")
        for name, value in values:
            layer_name, _, own_name = name.rpartition(".")
            layer = network.get_submodule(layer_name)
            expected = layer.get_parameter(own_name)
            if value.shape != expected.shape:
                raise ValueError(
                    f"the value of {name} is {list(value.shape)}, but the parameter {list(expected.shape)}"
                )
            whole = value if partition is not None else value.to(self.device, copy=True)
            parameter = nn.Parameter(whole, expected.requires_grad)
            if partition is not None:
                partition(parameter)
            layer.register_parameter(own_name, parameter)
        tensors = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
        if empty := [name for name, tensor in tensors if tensor.is_meta]:
            raise ValueError(f"no value was given for {', '.join(empty)}")


WHOLE = Placement(torch.device("cpu"))
"""Everything in host memory: for networks outside an engine."""
