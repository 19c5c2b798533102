"""The values of a parameter that one rank holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A range of one flattened parameter and of AdamW's two averages, as views into the optimizer's own memory."""

    name: str
    start: int  # of the range in the flattened parameter
    master: Tensor  # 1-D, float32, as the other two
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The three views by their names in a checkpoint."""
        return {"master": self.master, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def part(self, start: int, stop: int) -> "Fragment":
        """The values `start` to `stop` of this fragment, as a fragment of the same parameter."""
        views = {kind: tensor[start:stop] for kind, tensor in self.tensors().items()}
        return Fragment(self.name, self.start + start, **views)


@dataclass(frozen=True)
class Extent:
    """Values of one parameter that this rank holds, and where they lie in a tensor that AdamW updates."""

    parameter: Tensor
    vector: Tensor  # float32: a parameter, or the vector of master weights of a parameter group
    offset: int  # of the first value in the flattened `vector`
    start: int  # of the first value in the flattened `parameter`
    length: int


def share(num_values: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and stop of the part of `rank` when a flattened parameter is split evenly; the last part is shorter."""
    size = -(-num_values // world_size)
    return min(rank * size, num_values), min((rank + 1) * size, num_values)


def whole_extents(adam: torch.optim.AdamW) -> list[Extent]:
    """All values of all parameters of an optimizer."""
    parameters = [parameter for group in adam.param_groups for parameter in group["params"]]
    return [Extent(parameter, parameter, offset=0, start=0, length=parameter.numel()) for parameter in parameters]


def view_fragments(extents: Sequence[Extent], adam: torch.optim.AdamW, names: Mapping[int, str]) -> list[Fragment]:
    """Views of the master weights and moments of `extents`.

    AdamW creates the moments in its first update; here they are created before it, so that they can be viewed and
    restored.

    Args:
        names: of parameters, by their id.
    """
    fragments = []
    for extent in extents:
        vector, state = extent.vector, adam.state[extent.vector]
        if not state:
            state["step"] = torch.zeros((), device=vector.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(vector), torch.zeros_like(vector)
        tensors = {"master": vector, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        stop = extent.offset + extent.length
        views = {kind: tensor.detach().view(-1)[extent.offset : stop] for kind, tensor in tensors.items()}
        fragments.append(Fragment(names[id(extent.parameter)], extent.start, **views))
    return fragments


def own_shares(fragments: Sequence[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """This rank's part of fragments that every rank holds; fragments of which it has no part are left out."""
    parts = [(fragment, *share(fragment.master.numel(), rank, world_size)) for fragment in fragments]
    return [fragment.part(start, stop) for fragment, start, stop in parts if start < stop]
