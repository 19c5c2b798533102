"""Reference weights of an average: its profile unrolled step by step."""

import numpy as np

from pipeline.engine.ema_profile import FLATTEST

SIGMAS = (0.01, 0.05, 0.1, 0.2, FLATTEST)


def shares(profile, num_updates: int) -> np.ndarray:
    """What each update's weights count for after the last one, by unrolling the recursion; the start's come first."""
    found = np.zeros(num_updates + 1)
    found[0] = 1
    for update in range(1, num_updates + 1):
        weight = profile.weight(update)
        found *= 1 - weight
        found[update] += weight
    return found
