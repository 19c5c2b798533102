"""How AdamW updates the parameters of each network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

import torch
from torch import nn

from pipeline.engine.deepspeed_internals import whole_shape

# Entries of torch's groups beside those of torch:
LEARNING_RATE_SCALE = "learning_rate_scale"
NETWORK = "network"  # number of the group here
EVERY = "every"


@dataclass(frozen=True)
class ParameterGroup:
    """Settings of AdamW for the parameters of one network, such as a generator or its discriminator.

    Weight decay applies to matrices and kernels, not to biases and norms (parameters of fewer than two axes).
    """

    weight_decay: float
    betas: tuple[float, float]
    prefix: str = ""  # of the names of its parameters, such as "discriminator."; empty: all parameters
    learning_rate_scale: float = 1.0  # multiplies the learning rate of each step
    every: int = 1  # updates of the optimizer, of which the first one of so many updates these parameters


def optimizer_groups(module: nn.Module, groups: Sequence[ParameterGroup]) -> list[dict[str, Any]]:
    """The trainable parameters in torch's form: per group those with weight decay, then those without.

    Raises:
        ValueError: a trainable parameter is in none of the groups, or in several.
    """
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in trainable:
        prefixes = [group.prefix for group in groups if name.startswith(group.prefix)]
        if len(prefixes) != 1:
            raise ValueError(f"parameter {name} must be in one group, but is in those of the prefixes {prefixes}")
    optimized: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        own = [parameter for name, parameter in trainable.items() if name.startswith(group.prefix)]
        decayed = [parameter for parameter in own if len(whole_shape(parameter)) >= 2]
        others = [parameter for parameter in own if len(whole_shape(parameter)) < 2]
        for parameters, weight_decay in ((decayed, group.weight_decay), (others, 0.0)):
            if parameters:
                settings = {"weight_decay": weight_decay, "betas": group.betas, NETWORK: number, EVERY: group.every}
                optimized.append({"params": parameters, **settings, LEARNING_RATE_SCALE: group.learning_rate_scale})
    return optimized


def set_learning_rate(groups: list[dict[str, Any]], learning_rate: float) -> None:
    """Set the learning rate of every group in torch's form, times its own scale."""
    for group in groups:
        group["lr"] = learning_rate * group[LEARNING_RATE_SCALE]


def is_due(group: dict[str, Any], num_updates: int) -> bool:
    """Whether a group in torch's form is updated after `num_updates` updates of the optimizer."""
    return num_updates % group[EVERY] == 0


def updates_of(every: int, num_updates: int) -> int:
    """How often a group was updated in `num_updates` updates of the optimizer."""
    return -(-num_updates // every)


class AdamWByTurns(torch.optim.AdamW):
    """AdamW that leaves the groups alone whose turn it is not: their weights, their moments and their step count.

    torch hides these methods from torch.compile, by wrappers that load it: more than a second in each worker of a
    training that compiles nothing. Here they are what the wrappers hold.
    """

    num_updates: int = 0
    """Updates so far; whoever makes them counts them."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the groups whose turn it is."""
        groups = self.param_groups  # DeepSpeed puts one group there at a time
        self.param_groups = [group for group in groups if is_due(group, self.num_updates)]
        try:
            return unwrap(torch.optim.AdamW.step)(self, closure)
        finally:
            self.param_groups = groups
