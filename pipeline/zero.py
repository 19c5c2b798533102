"""DeepSpeed ZeRO: the engine, and a view of what this rank holds of every parameter.

ZeRO (Rajbhandari et al. 2020) cuts the optimizer state (stage 1) and the gradients too (stage 2) into
one part per rank. DeepSpeed flattens all parameters of a group into one long vector and gives each
rank a slice of it, so a rank holds a `Fragment` (start, length) of some parameters. Everything that is
saved or averaged here works on fragments: no rank ever gathers another's state.
"""

import importlib
import logging
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps per value
BUCKET_PARAMETERS = 200_000_000  # how many values one collective carries at most


@dataclass(frozen=True)
class Fragment:
    """This rank's stretch of one parameter, as views into the optimizer's own float32 memory."""

    name: str
    start: int  # offset in the flattened parameter
    master: Tensor  # 1-D
    group: int  # index of the optimizer's flat vector
    offset: int  # of `master` in that vector


def import_deepspeed() -> Any:  # noqa: ANN401 - deepspeed is untyped
    """DeepSpeed, quiet, and on a CPU without its shared-memory operator, which would need a C++ compiler."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed = importlib.import_module("deepspeed")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    importlib.import_module("deepspeed.comm.torch")
    # `import deepspeed.comm.torch as m` would bind the top-level torch: deepspeed.comm has a name `torch` of its own
    if not torch.cuda.is_available():
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    return deepspeed


def leave_process_group() -> None:
    """Destroy the process group, and DeepSpeed's memory of it, so that another may follow in this process."""
    comm = import_deepspeed().comm
    if comm.is_initialized():
        comm.destroy_process_group()
    else:
        dist.destroy_process_group()


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

    Master weights are float32; with a `dtype` the forward pass computes in it under autocast.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype | None,
        stage: int,
        micro_batch: int,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float,
    ) -> None:
        deepspeed = import_deepspeed()
        self.world_size = dist.get_world_size()
        self.module = module
        decayed = [p for p in module.parameters() if p.ndim >= 2]
        others = [p for p in module.parameters() if p.ndim < 2]  # norms and biases
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        self.names = {id(parameter): name for name, parameter in module.named_parameters()}
        # torch's AdamW, not DeepSpeed's: the C++ one needs a compiler and is not bit-exact after a resume.
        self.adam = torch.optim.AdamW([g for g in groups if g["params"]], lr=1.0, betas=betas, eps=1e-8, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=_Autocast(module, device, dtype),
            optimizer=self.adam,
            config={
                "train_batch_size": micro_batch * self.world_size,
                "train_micro_batch_size_per_gpu": micro_batch,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": clip,
                "steps_per_print": 10**9,
                "zero_optimization": {
                    "stage": stage,
                    "overlap_comm": device.type == "cuda",
                    "contiguous_gradients": device.type == "cuda",  # guards a GPU's memory from fragments
                    "reduce_bucket_size": min(num_parameters, BUCKET_PARAMETERS),
                    "allgather_bucket_size": min(num_parameters, BUCKET_PARAMETERS),
                },
                "zero_allow_untested_optimizer": True,
            },
        )
        self.zero = self.engine.optimizer
        self.fragments = self._fragments()

    def step(self, batch: Any, learning_rate: float) -> dict[str, Tensor]:  # noqa: ANN401 - the module's own type
        """Forward, backward, update; returns this rank's losses."""
        for group in self.zero.param_groups:
            group["lr"] = learning_rate
        losses = self.engine(batch)
        self.engine.backward(losses["total"])
        self.engine.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping, over all ranks."""
        norm = self.engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _fragments(self) -> list[Fragment]:
        fragments = []
        for group, parameters in enumerate(self.zero.bit16_groups):
            for parameter in parameters:
                mapping = parameter._hp_mapping  # None: nothing of this parameter lies on this rank
                if mapping is not None:
                    fragments.append(
                        Fragment(
                            name=self.names[id(parameter)],
                            start=mapping.lp_fragment_address.start,
                            master=mapping.hp_fragment.detach(),
                            group=group,
                            offset=mapping.hp_fragment_address.start,
                        )
                    )
        return fragments

    def moment(self, fragment: Fragment, name: str) -> Tensor:
        """AdamW's running average `name` for a fragment, as a view; zeros before the first step."""
        flat = self.zero.single_partition_of_fp32_groups[fragment.group]
        state = self.adam.state[flat]
        if name not in state:
            state.update(step=torch.tensor(0.0), **{moment: torch.zeros_like(flat) for moment in MOMENTS})
        return state[name].narrow(0, fragment.offset, fragment.master.numel())

    def restore_step_count(self, num_steps: int) -> None:
        """Tell AdamW how many updates it has made, for its bias correction."""
        for flat in self.zero.single_partition_of_fp32_groups:
            if "step" in self.adam.state[flat]:
                self.adam.state[flat]["step"] = torch.tensor(float(num_steps))

    def publish_master(self) -> None:
        """Copy the restored master weights into the module on every rank."""
        self.zero.update_lp_params()
