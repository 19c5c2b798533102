"""DeepSpeed ZeRO: the engine, and a view of what this rank holds of every parameter.

ZeRO (Rajbhandari et al. 2020) cuts the optimizer state (stage 1), the gradients too (stage 2) and the
weights too (stage 3) into one part per rank; stage 0 cuts nothing. Whatever the stage, a rank holds a
`Fragment` (start, length) of some parameters. Everything that is saved or averaged here works on
fragments: no rank ever gathers another's state.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import _set_pg_timeout

from pipeline.distributed.collectives import COLLECTIVE_TIMEOUT
from pipeline.engine.config import SMALLEST_SCALE, LossScaling, Offload, ZeroStage
from pipeline.engine.deepspeed_internals import import_deepspeed
from pipeline.engine.fragment import Fragment, share
from pipeline.engine.loss_scale import LossScaler

BUCKET_PARAMETERS = 200_000_000  # how many values one collective carries at most
PERSISTENT_PARAMETERS = 100_000  # stage 3 keeps a parameter whole on every rank up to this many values


def _places(offload: Offload, *, pin_memory: bool) -> dict[str, Any]:
    """What DeepSpeed is to keep in host memory."""
    host = {"device": "cpu", "pin_memory": pin_memory}
    parts = {"none": (), "optimizer": ("optimizer",), "optimizer_and_parameters": ("optimizer", "param")}[offload]
    return {f"offload_{part}": host for part in parts}


class _Autocast(nn.Module):
    """The module, computing in `dtype`. Inside the engine, because DeepSpeed turns an autocast around it off."""

    def __init__(self, module: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module, self.device, self.dtype = module, device, dtype

    def forward(self, batch: Any) -> dict[str, Tensor]:  # noqa: ANN401 - the module's own type
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            return self.module(batch)


class ZeroTrainer:
    """A DeepSpeed engine around a module whose forward returns a dictionary of losses with a "total".

    Master weights are float32; with a `dtype` the forward pass computes in it under autocast. With a `max_norm`, a step
    whose gradient, over all ranks and before clipping, is longer or not finite changes nothing. With a `loss_scaling`,
    which float16 needs, nor does one that overflows: whose gradient is not finite while a smaller scale is left.

    With `offload`, host memory holds the master weights, their moments and averages, and updates them (ZeRO-Offload,
    Ren et al. 2021; stages 2 and 3); at stage 3 also the parameters between their uses.

    Only parameters that require a gradient are learnt; the others stay as they are. `holdings` is what this rank's
    memory holds of the learnt ones, and `fragments` its share of that: the shares of all ranks tile every learnt
    parameter exactly once. They differ only at stage 0, where every rank holds everything.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        stage: ZeroStage,
        offload: Offload = "none",
        micro_batch: int,
        accumulate: int = 1,
        sequence_parallel: int = 1,
        max_norm: float | None = None,
        loss_scaling: LossScaling | None = None,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float,
    ) -> None:
        deepspeed = import_deepspeed()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # Which part of the data this rank computes: the ranks of a sequence group have the same.
        self.data_rank, self.data_world_size = self.rank // sequence_parallel, self.world_size // sequence_parallel
        self.device, self.stage, self.offload = device, stage, offload
        self.clip = clip
        self.max_norm = max_norm
        self.num_skipped = 0  # updates that were left out because the step was bad
        self.num_overflows = 0  # and because the loss was scaled too much
        self.overflowed = False  # the last step
        learnt = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        self.shapes = {name: list(parameter.shape) for name, parameter in learnt.items()}
        decayed = [p for p in learnt.values() if p.ndim >= 2]
        others = [p for p in learnt.values() if p.ndim < 2]  # norms and biases
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        num_parameters = sum(parameter.numel() for parameter in learnt.values())
        self.names = {id(parameter): name for name, parameter in learnt.items()}
        # torch's AdamW, not DeepSpeed's: the C++ one needs a compiler and is not bit-exact after a resume.
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, betas=betas, eps=1e-8, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=_Autocast(module, device, dtype),
            optimizer=self.adam,
            config={
                "train_batch_size": micro_batch * accumulate * self.world_size,
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": accumulate,
                "gradient_clipping": clip if stage > 0 else 0.0,  # at stage 0 DeepSpeed keeps the norm to itself
                "steps_per_print": 10**9,
                "zero_optimization": {
                    "stage": stage,
                    "overlap_comm": device.type == "cuda",
                    "contiguous_gradients": device.type == "cuda",  # guards a GPU's memory from fragments
                    "reduce_bucket_size": min(num_parameters, BUCKET_PARAMETERS),
                    "allgather_bucket_size": min(num_parameters, BUCKET_PARAMETERS),
                    "stage3_param_persistence_threshold": PERSISTENT_PARAMETERS,
                    **_places(offload, pin_memory=device.type == "cuda"),
                },
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
        )
        for group in (self.engine.data_parallel_group, self.engine.seq_data_parallel_group):
            _set_pg_timeout(COLLECTIVE_TIMEOUT, group)  # DeepSpeed makes its groups with torch's, of up to half an hour
        self.zero = self.engine.optimizer
        self.loss_scaler = None if loss_scaling is None else LossScaler(loss_scaling)
        self.holdings = self._holdings()
        self.fragments = self._shares()
        self._norm: float | Tensor = float("nan")

    def step(self, batches: Sequence[Any], learning_rate: float) -> dict[str, Tensor]:
        """Forward and backward of each micro-batch, then one update; returns the mean of this rank's losses."""
        for group in self.zero.param_groups:
            group["lr"] = learning_rate
        scale = 1.0
        if self.loss_scaler is not None:
            scale = self.loss_scaler.scale
            if self.stage > 0:  # left alone, DeepSpeed moves the scale before it divides: doubled, it halves a gradient
                self.zero.override_loss_scale(scale)
        sums: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, 1):
            losses = self.engine(batch)
            self.engine.backward(losses["total"] * scale if self.stage == 0 else losses["total"])
            if number == len(batches):
                self._prepare_update(scale)
            self.engine.step()  # an update only after the last one
            for name, loss in losses.items():
                sums[name] = sums[name] + loss.detach() if name in sums else loss.detach()
        self.adam.found_inf = None  # pyright: ignore[reportAttributeAccessIssue] - what GradScaler sets
        if self.stage > 0 and self.max_norm is None:
            self._norm = self.engine.get_global_grad_norm()
        self._note_outcome(scale)
        return {name: total / len(batches) if len(batches) > 1 else total for name, total in sums.items()}

    @property
    def skipped(self) -> bool:
        """Whether the last step made no update, because its gradient's norm was not within `max_norm`."""
        return not self.overflowed and not self._within_limit()

    def num_updates(self, num_steps: int) -> int:
        """How many of so many steps made an update."""
        return num_steps - self.num_skipped - self.num_overflows

    def _within_limit(self) -> bool:
        return self.max_norm is None or (math.isfinite(self._norm) and bool(self._norm <= self.max_norm))

    def _prepare_update(self, scale: float) -> None:
        """Once the gradients of a step are there: their norm where it decides whether there is an update at all."""
        if self.stage == 0 and scale != 1:
            torch._foreach_div_(self._gradients(), scale)  # beyond, DeepSpeed does
        if self.max_norm is not None:
            squares = torch.stack([gradient.float().square().sum() for gradient in self._gradients()]).sum()
            squares = squares.to(self.device)
            if self.stage > 0:
                dist.all_reduce(squares)
            self._norm = float(squares.sqrt()) / (scale if self.stage > 0 else 1)
        if self.stage == 0:
            norm = torch.nn.utils.clip_grad_norm_(self.engine.module.parameters(), self.clip)
            self._norm = norm if self.max_norm is None else self._norm
        if self.max_norm is not None or (self.stage == 0 and self.loss_scaler is not None):
            update = self._within_limit() and (self.loss_scaler is None or math.isfinite(self._norm))
            # The flag of mixed-precision training: AdamW leaves weights, moments and its count as they are.
            found = torch.tensor(float(not update), device=self.device if self.offload == "none" else "cpu")
            self.adam.found_inf = found  # pyright: ignore[reportAttributeAccessIssue] - what GradScaler sets

    def _note_outcome(self, scale: float) -> None:
        """After a step: count it if it made no update, and move the scale of the loss."""
        if self.loss_scaler is not None:
            finite = math.isfinite(self._norm) and self._norm >= 0  # DeepSpeed's invalid is -1
            self.overflowed = not finite and scale > SMALLEST_SCALE
            self.num_overflows += self.overflowed
            self.loss_scaler.update(not finite)
        self.num_skipped += self.skipped

    def _gradients(self) -> list[Tensor]:
        """The gradients that this rank is going to update with: of everything at stage 0, of its part beyond."""
        if self.stage == 0:
            return [p.grad for p in self.engine.module.parameters() if p.grad is not None]
        if self.offload != "none":
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # they are copied to the host beside the backward pass
            masters = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else None
            return [flat.grad for flat in masters or self.zero.single_partition_of_fp32_groups]
        return list(chain.from_iterable(self.zero.averaged_gradients.values()))

    @torch.no_grad()
    def evaluate(self, batch: Any) -> dict[str, Tensor]:  # noqa: ANN401 - the module's own type
        """Forward alone, in evaluation mode. At stage 3 the ranks call it equally often: it gathers the weights."""
        module = self.engine.module
        module.eval()
        try:
            return module(batch)
        finally:
            module.train()

    @property
    def norm(self) -> float | Tensor:
        """Norm of the last step's gradient before clipping, over all ranks; a tensor where nobody has waited for it."""
        return self._norm

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping, over all ranks."""
        return float(self._norm)

    def restore_step_count(self, num_steps: int) -> None:
        """Tell AdamW how many updates it has made, for its bias correction."""
        for state in self.adam.state.values():
            state["step"].fill_(num_steps)

    def publish_master(self) -> None:
        """Copy the restored master weights into the module on every rank; called by all."""
        if self.stage in (1, 2):
            self.zero.update_lp_params()
        elif self.stage == 3:
            self.zero._partition_all_parameters()
            for sub_group in range(len(self.zero.fp16_groups)):
                self.zero._reassign_or_swap_out_partitioned_parameters(sub_group)
            if self.zero.persistent_parameters:  # those that stay whole are gathered once, not at every forward
                self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    def _holdings(self) -> list[Fragment]:
        if self.stage == 0:
            parameters = [parameter for group in self.adam.param_groups for parameter in group["params"]]
            return [self._fragment(p, p, offset=0, start=0, size=p.numel()) for p in parameters]
        return self._partitions() if self.stage == 3 else self._slices()

    def _shares(self) -> list[Fragment]:
        if self.stage > 0:
            return self.holdings
        cuts = [(held, *share(held.master.numel(), self.rank, self.world_size)) for held in self.holdings]
        return [held.part(start, stop) for held, start, stop in cuts if start < stop]

    def _slices(self) -> list[Fragment]:
        """Stages 1 and 2: each rank has one slice of the vector that all parameters of a group form."""
        fragments = []
        for group, parameters in enumerate(self.zero.bit16_groups):
            flat = self.zero.single_partition_of_fp32_groups[group]
            for parameter in parameters:
                mapping = parameter._hp_mapping  # None: nothing of this parameter lies on this rank
                if mapping is not None:
                    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                    fragments.append(self._fragment(parameter, flat, here.start, there.start, here.numel))
        return fragments

    def _partitions(self) -> list[Fragment]:
        """Stage 3: each rank has an even part of every parameter, the last part padded."""
        fragments = []
        for parameters, flat in zip(self.zero.fp16_groups, self.zero.fp32_partitioned_groups_flat, strict=True):
            offset = 0
            for parameter in parameters:
                start, stop = share(parameter.ds_numel, self.rank, self.world_size)
                if start < stop:
                    fragments.append(self._fragment(parameter, flat, offset, start, stop - start))
                offset += parameter.partition_numel()
        return fragments

    def _fragment(self, parameter: Tensor, flat: Tensor, offset: int, start: int, size: int) -> Fragment:
        """The values `offset` to `offset + size` of an optimizer's vector, which begin at `start` of the parameter."""
        state = self.adam.state[flat]
        if not state:  # as AdamW makes it at its first update, but here before it, to be viewed and filled
            state["step"] = torch.zeros((), device=flat.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        vectors = {"master": flat, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        views = {kind: vector.detach().view(-1)[offset : offset + size] for kind, vector in vectors.items()}
        return Fragment(self.names[id(parameter)], start, **views)
