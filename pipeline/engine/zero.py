"""Training a module with DeepSpeed ZeRO, and the part of every parameter that this rank holds.

ZeRO (Rajbhandari et al. 2020) partitions over the ranks: the optimizer state at stage 1, the gradients too at stage 2,
the parameters too at stage 3; stage 0 partitions nothing. At each stage a rank holds a `Fragment` (start and values) of
some parameters. Checkpoints and averages work on fragments, so no rank ever gathers the state of another.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT
from pipeline.engine.config import LossScaling, Offload, ZeroStage
from pipeline.engine.deepspeed_internals import (
    copy_master_to_module,
    gradients_by_group,
    import_deepspeed,
    local_extents,
    partition_gradients,
    set_collective_timeout,
    set_loss_scale,
    whole_shape,
)
from pipeline.engine.fragment import own_shares, view_fragments, whole_extents
from pipeline.engine.half_weights import cast_weights, half_settings, set_masters
from pipeline.engine.loss_scale import LossScaler
from pipeline.engine.parameter_groups import (
    EVERY,
    NETWORK,
    AdamWByTurns,
    ParameterGroup,
    is_due,
    optimizer_groups,
    set_learning_rate,
    updates_of,
)
from pipeline.engine.update_guard import UpdateGuard

BUCKET_PARAMETERS = 200_000_000  # largest number of values that one collective carries
PERSISTENT_PARAMETERS = 100_000  # stage 3 keeps a parameter of at most so many values whole on every rank


class _Autocast(nn.Module):
    """A module that computes in `dtype`. Inside the engine, because DeepSpeed disables an autocast around itself."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, device, dtype

    def forward(self, batch: Any) -> dict[str, Tensor]:  # noqa: ANN401 - the module's own type
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.module(batch)


class ZeroTrainer:
    """A DeepSpeed engine around a module whose forward returns a dictionary of scalar losses, one of them "total".

    Master weights are float32; with a `dtype`, the forward pass runs under autocast to it. With a `max_norm`, a step
    whose gradient, over all ranks and before clipping, is longer or not finite makes no update. With `loss_scaling`,
    which float16 needs, neither does a step whose gradient is not finite while a smaller scale is left.

    With `offload`, host memory holds the master weights, their moments and averages, and the CPU updates them
    (ZeRO-Offload, Ren et al. 2021; stages 2 and 3); at stage 3 optionally also the parameters between their uses.

    The gradient is clipped to `clip_norm`; that of each parameter group on its own if there are several, or the longer
    one would shorten the other. Groups that are not updated every time have no gradient in between, whatever the loss
    is (`ParameterGroup.every`).

    With `half_weights` the module's parameters are bfloat16, at stages 1 to 3, see `half_weights.py`; `dtype` must be
    bfloat16, and at stage 1 `accumulation_steps` 1.

    Parameters that require no gradient are not trained. `local_fragments` is what this rank's memory holds of the
    trained ones, and `fragments` is the part of it that this rank saves and averages: over all ranks these parts cover
    every trained parameter exactly once. The two differ at stage 0 only, where every rank holds everything.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: Sequence[ParameterGroup],
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        stage: ZeroStage,
        offload: Offload = "none",
        micro_batch: int,
        accumulation_steps: int = 1,
        sequence_parallel: int = 1,
        max_norm: float | None = None,
        loss_scaling: LossScaling | None = None,
        clip_norm: float,
        half_weights: bool = False,
    ) -> None:
        deepspeed = import_deepspeed()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # Which part of the data this rank computes: the ranks of a sequence group have the same one.
        self.data_rank, self.data_world_size = self.rank // sequence_parallel, self.world_size // sequence_parallel
        self.device, self.stage, self.offload, self.clip_norm = device, stage, offload, clip_norm
        self._num_networks = len(groups)
        self.guard = UpdateGuard(max_norm, None if loss_scaling is None else LossScaler(loss_scaling))
        trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.shapes = {name: list(whole_shape(parameter)) for name, parameter in trained.items()}
        # torch's AdamW, not DeepSpeed's: the one in C++ needs a compiler and is not bit-exact after a resume.
        initial = cast_weights(module) if half_weights else {}
        self.adam = AdamWByTurns(optimizer_groups(module, groups), lr=1.0, eps=1e-8, fused=True)
        every = {id(each): group[EVERY] for group in self.adam.param_groups for each in group["params"]}
        self.engine, *_ = deepspeed.initialize(
            model=_Autocast(module, device, dtype),
            optimizer=self.adam,
            config={
                "train_batch_size": micro_batch * accumulation_steps * self.world_size,
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulation_steps,
                # Clipped here at stage 0, where DeepSpeed hides the norm, and where there are several networks.
                "gradient_clipping": clip_norm if stage > 0 and self._num_networks == 1 else 0.0,
                "steps_per_print": 10**9,
                "zero_optimization": _zero_settings(stage, offload, device, sum(map(prod, self.shapes.values()))),
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                **(half_settings(accumulation_steps) if half_weights else {}),
            },
        )
        set_collective_timeout(self.engine, COLLECTIVE_TIMEOUT)
        self.zero = self.engine.optimizer
        extents = whole_extents(self.adam)
        if stage > 0:
            extents = local_extents(self.zero, stage, self.rank, self.world_size)
        self._every = {extent.vector: every[id(extent.parameter)] for extent in extents}
        names = {id(parameter): name for name, parameter in trained.items()}
        self.local_fragments = view_fragments(extents, self.adam, names)
        set_masters(self.local_fragments if half_weights else (), initial)
        self.fragments = (
            self.local_fragments if stage > 0 else own_shares(self.local_fragments, self.rank, self.world_size)
        )

    def step(self, batches: Sequence[Any], learning_rate: float) -> dict[str, Tensor]:
        """Forward and backward of each micro-batch, then one update; returns the mean of this rank's losses."""
        set_learning_rate(self.zero.param_groups, learning_rate)
        scale = self.guard.scale
        if self.guard.loss_scaler is not None and self.stage > 0:
            set_loss_scale(self.zero, scale)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, 1):
            losses = self.engine(batch)
            self.engine.backward(losses["total"] * scale if self.stage == 0 else losses["total"])
            if number == len(batches):
                self._prepare_update(scale)
            self.engine.step()  # updates the weights after the last micro-batch only
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        self.adam.found_inf = None  # pyright: ignore[reportAttributeAccessIssue] - the flag of torch's GradScaler
        if self.stage > 0 and self.guard.max_norm is None and self._num_networks == 1:
            self.guard.norm = self.engine.get_global_grad_norm()
        self.guard.finish_step(scale)
        self.adam.num_updates += not (self.guard.skipped or self.guard.overflowed)
        return {name: total / len(batches) if len(batches) > 1 else total for name, total in sums.items()}

    @torch.no_grad()
    def evaluate(self, batch: Any) -> dict[str, Tensor]:  # noqa: ANN401 - the module's own type
        """The losses in evaluation mode. All ranks call it equally often, because stage 3 gathers weights in it."""
        module = self.engine.module
        module.eval()
        try:
            return module(batch)
        finally:
            module.train()

    def restore_step_count(self, num_updates: int) -> None:
        """Set how many updates AdamW has made, for its bias correction and for whose turn it is."""
        self.adam.num_updates = num_updates
        for vector, every in self._every.items():
            self.adam.state[vector]["step"].fill_(updates_of(every, num_updates))

    def publish_master(self) -> None:
        """Copy changed master weights into the module on every rank; called by all ranks."""
        if self.stage > 0:
            copy_master_to_module(self.zero, self.stage)

    def _prepare_update(self, scale: float) -> None:
        """Measure the accumulated gradients and decide on the update; at stage 0 also unscale and clip them.

        At the other stages DeepSpeed unscales them in `engine.step`, and clips those of a single network.
        """
        guard = self.guard
        if self.stage == 0 and scale != 1:
            torch._foreach_div_(self._gradients(), scale)
        if self._num_networks > 1:
            guard.norm = self._clip_networks(scale)
        elif guard.max_norm is not None:
            guard.norm = self._gradient_norm(scale)
        if self.stage == 0 and self._num_networks == 1:
            norm = torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.clip_norm)
            guard.norm = norm if guard.max_norm is None else guard.norm
        if guard.max_norm is not None or (self.stage == 0 and guard.loss_scaler is not None):
            # The flag of torch's GradScaler: where it is 1, AdamW leaves weights, moments and step count unchanged.
            device = self.device if self.offload == "none" else "cpu"
            flag = torch.tensor(float(not guard.allows_update()), device=device)
            self.adam.found_inf = flag  # pyright: ignore[reportAttributeAccessIssue] - as above

    def _gradient_norm(self, scale: float) -> float:
        """Norm of the whole gradient over all ranks, without the loss scale."""
        squares = torch.stack([gradient.float().square().sum() for gradient in self._gradients()]).sum()
        squares = squares.to(self.device)
        if self.stage > 0:
            dist.all_reduce(squares)
        return float(squares.sqrt()) / (scale if self.stage > 0 else 1)

    def _clip_networks(self, scale: float) -> float:
        """Clip the gradient of each network on its own; returns the norm of both together before that, unscaled."""
        networks: list[list[Tensor]] = [[] for _ in range(self._num_networks)]
        for number, gradients in self._gradients_by_group():
            group = self.adam.param_groups[number]
            if is_due(group, self.adam.num_updates):  # stage 3 keeps the gradients of earlier steps for the others
                networks[group[NETWORK]] += gradients
        zero = torch.zeros((), device=self.device)
        sums = [sum((gradient.float().square().sum() for gradient in part), zero) for part in networks]
        squares = torch.stack([total.to(self.device) for total in sums])
        if self.stage > 0:
            dist.all_reduce(squares)
            squares = squares / scale**2
        for part, factor in zip(networks, (self.clip_norm / (squares.sqrt() + 1e-6)).tolist(), strict=True):
            if part and not factor >= 1:  # also where it is not a number
                torch._foreach_mul_(part, factor)
        return float(squares.sum().sqrt())

    def _gradients_by_group(self) -> list[tuple[int, list[Tensor]]]:
        """As `_gradients`, with the number of the optimizer's group that they are of."""
        if self.stage == 0:
            parameters = [group["params"] for group in self.adam.param_groups]
            return [(n, [p.grad for p in own if p.grad is not None]) for n, own in enumerate(parameters)]
        offloaded = self._wait_for_offload()
        return gradients_by_group(self.zero, self.stage, offloaded=offloaded)

    def _gradients(self) -> list[Tensor]:
        """The gradients this rank updates weights with: all of them at stage 0, those of its partition otherwise."""
        if self.stage == 0:
            return [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        return partition_gradients(self.zero, self.stage, offloaded=self._wait_for_offload())

    def _wait_for_offload(self) -> bool:
        """Whether gradients are offloaded; if so, they have arrived in host memory."""
        offloaded = self.offload != "none"
        if offloaded and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # copies to the host run beside the backward pass
        return offloaded


def _zero_settings(stage: ZeroStage, offload: Offload, device: torch.device, num_parameters: int) -> dict[str, Any]:
    """The section `zero_optimization` of DeepSpeed's configuration."""
    cuda = device.type == "cuda"
    offloaded = {"none": (), "optimizer": ("optimizer",), "optimizer_and_parameters": ("optimizer", "param")}[offload]
    return {
        "stage": stage,
        "overlap_comm": cuda,
        "contiguous_gradients": cuda,  # avoids fragmentation of GPU memory
        "reduce_bucket_size": min(num_parameters, BUCKET_PARAMETERS),
        "allgather_bucket_size": min(num_parameters + num_parameters % 2, BUCKET_PARAMETERS),  # DeepSpeed wants it even
        "stage3_param_persistence_threshold": PERSISTENT_PARAMETERS,
        **{f"offload_{part}": {"device": "cpu", "pin_memory": cuda} for part in offloaded},
    }
