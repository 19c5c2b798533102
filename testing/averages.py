"""Reference weights of an average: its profile unrolled step by step."""

import numpy as np

from pipeline.engine.ema_profile import FLATTEST, FixedDecay, PowerFunction

SIGMAS = (0.01, 0.05, 0.1, 0.2, FLATTEST)


def shares(profile: FixedDecay | PowerFunction, num_updates: int) -> np.ndarray:
    """The coefficient of each update's weights in the final average (num_updates + 1), the initial weights first."""
    found = np.zeros(num_updates + 1)
    found[0] = 1
    for update in range(1, num_updates + 1):
        weight = profile.weight(update)
        found *= 1 - weight
        found[update] += weight
    return found
