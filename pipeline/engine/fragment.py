"""The part of a parameter that a rank holds."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """A stretch of one flattened parameter and of AdamW's two averages, as views into the optimizer's own memory."""

    name: str
    start: int  # offset in the flattened parameter
    master: Tensor  # 1-D, float32, like the others
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """The three views by the names a checkpoint files them under."""
        return {"master": self.master, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    def part(self, start: int, stop: int) -> "Fragment":
        """The fragment of the values `start` to `stop` of this one."""
        views = {kind: tensor[start:stop] for kind, tensor in self.tensors().items()}
        return Fragment(self.name, self.start + start, **views)


def share(num_values: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where the part of `rank` starts and stops when a flattened parameter is cut evenly, the last part shorter."""
    size = -(-num_values // world_size)
    return min(rank * size, num_values), min((rank + 1) * size, num_values)
