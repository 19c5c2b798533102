"""Flow maps of Gaussian data: in closed form, and small ones that learn it."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.quasirandom import SobolEngine

from models.flow.flow_map import MeanVelocity, drawn_jumps, jump_target
from models.flow.path import Path, expand
from models.flow.spec import FlowMapSpec
from testing.gaussians import GaussianData

LARGEST_DAMPING, SMALLEST_DAMPING = 1e-2, 1e-9


def mean_and_deviation(path: Path, mean: float, std: float, t: Tensor) -> tuple[Tensor, Tensor]:
    """Of x_t, for data N(mean, std²)."""
    at = path.coefficients(t)
    return at.a * mean, ((at.a * std) ** 2 + at.b**2).sqrt()


def exact_map(path: Path, mean: float, std: float) -> MeanVelocity:
    """The mean velocity of N(mean, std²): quantiles stay what they are (arXiv 2505.18825, section 2)."""

    def u(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (m_t, d_t), (m_s, d_s) = (mean_and_deviation(path, mean, std, time) for time in (t, s))
        jumped = m_s[:, None] + (d_s / d_t)[:, None] * (x - m_t[:, None])
        velocity = GaussianData(path, mean, std).velocity(x, t)
        length = (s - t)[:, None]
        return torch.where(length > 0, (jumped - x) / length.clamp(min=1e-12), velocity)

    return u


class AffineMap(nn.Module):
    """A mean velocity u(x, t, s) that is affine in the state, as that of Gaussian data; the rest is to be learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, x: Float[Tensor, "b 1"], t: Float[Tensor, " b"], s: Float[Tensor, " b"]) -> Float[Tensor, "b 1"]:
        """u(x, t, s)."""
        slope, offset = self.layers(torch.stack([t, s], 1)).chunk(2, 1)
        return slope * x + offset


class StateMap(nn.Module):
    """A mean velocity u(x, t, s) of which nothing is known beforehand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        self.layers = nn.Sequential(*layers).double()

    def forward(self, x: Float[Tensor, "b 1"], t: Float[Tensor, " b"], s: Float[Tensor, " b"]) -> Float[Tensor, "b 1"]:
        """u(x, t, s)."""
        return self.layers(torch.cat([x, t[:, None], s[:, None]], 1))


def learn_map(network: nn.Module, data: GaussianData, spec: FlowMapSpec, num_steps: int, batch: int) -> None:
    """Train on the loss of the product: jumps by `jump_target`, and the exact velocity where they have no length.

    Steps are those of Levenberg and Marquardt for that squared error, whose targets are fixed within a step: gradients
    alone come down to an error of 1e-2 in the same time. Points are a Sobol sequence, which is the same for all.
    """
    parameters = dict(network.named_parameters())
    points, damping = SobolEngine(6, scramble=True, seed=0), LARGEST_DAMPING

    def one(values: dict[str, Tensor], x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return functional_call(network, values, (x[None], t[None], s[None]))[0, 0]

    gradients = vmap(grad(one), (None, 0, 0, 0))
    for _ in range(num_steps):
        uniform = points.draw(batch, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
        jump = drawn_jumps(spec, uniform[:, 3], uniform[:, :3])
        normal = torch.special.ndtri(uniform[:, 4:])
        x_t = data.path.sample(normal[:, :1], data.mean + data.std * normal[:, 1:], jump.t).x_t
        target = jump_target(spec, network, x_t, jump)
        target = torch.where(expand(jump.s > jump.t, x_t), target, data.velocity(x_t, jump.t))
        with torch.no_grad():
            values = {name: parameter.detach() for name, parameter in parameters.items()}
            error = (target - network(x_t, jump.t, jump.s))[:, 0]
            by_parameter = gradients(values, x_t, jump.t, jump.s)
            jacobian = torch.cat([by_parameter[name].flatten(1) for name in values], 1)
            curvature, slope = jacobian.T @ jacobian / batch, jacobian.T @ error / batch
            for _ in range(6):
                change = torch.linalg.solve(curvature + damping * torch.eye(len(slope)), slope)
                parts = change.split([value.numel() for value in values.values()])
                moved = {
                    name: value + part.reshape(value.shape)
                    for (name, value), part in zip(values.items(), parts, strict=True)
                }
                after = target - functional_call(network, moved, (x_t, jump.t, jump.s))
                if after.square().mean() < error.square().mean():
                    for name, parameter in parameters.items():
                        parameter.copy_(moved[name])
                    damping = max(damping / 3, SMALLEST_DAMPING)
                    break
                damping *= 4
