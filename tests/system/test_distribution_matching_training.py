"""A generator of one call that is trained by distribution matching, with a critic that is trained beside it."""

import torch

from models.flow.distribution_matching import generator_loss, matching_times, renoised
from models.flow.field import Field
from models.flow.objective import matching_loss
from models.flow.path import StraightPath
from testing.flow_maps import AffineMap
from testing.gaussians import GaussianData

PATH, MEAN, STD, LEARNING_RATE = StraightPath(), 0.7, 0.4, 0.05
STEPS, BATCH, CRITIC_UPDATES = 600, 128, 2


def test_a_generator_of_one_call_comes_to_the_data_that_only_its_teacher_knows():
    """Mean and standard deviation within 0.02, from a generator of other data, 2.5 of their deviations away."""
    torch.manual_seed(0)
    numbers = torch.Generator().manual_seed(0)
    teacher = GaussianData(PATH, MEAN, STD).field
    mean, std = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (-0.3, 1.0))
    network = AffineMap(16)
    critic = Field(lambda x, t: network(x, t, t), PATH)
    generators = torch.optim.Adam([mean, std], lr=LEARNING_RATE, betas=(0.5, 0.9))
    critics = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.5, 0.9))
    for step in range(STEPS):
        for optimizer in (generators, critics):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        noise, renoise, x_0 = torch.randn(3, BATCH, 1, generator=numbers, dtype=torch.float64)
        t, critic_t = torch.rand(2, BATCH, generator=numbers, dtype=torch.float64)
        made = mean + std * noise
        if step % CRITIC_UPDATES == 0:
            t = matching_times(t)
            with torch.no_grad():
                x_t = renoised(PATH, made, t, renoise)
                real, fake = teacher.data(x_t, t), critic.data(x_t, t)
            generators.zero_grad()
            generator_loss(made, real, fake).mean().backward()
            generators.step()
        point = PATH.sample(x_0, made.detach(), critic_t)
        critics.zero_grad()
        predicted = critic.velocity(point.x_t, critic_t)
        matching_loss(PATH, "velocity", predicted, x_0, made.detach(), critic_t).mean().backward()
        critics.step()
    assert abs(mean.item() - MEAN) < 0.02
    assert abs(std.item() - STD) < 0.02
