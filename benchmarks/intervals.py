"""How often the confidence intervals of distances contain the true distance, with Gaussian features.

python -m benchmarks.intervals

Writes benchmarks/results/intervals.json: for each width of the features and size of the sets, the coverage of the 95 %
intervals, and the mean error of the plain and of the corrected estimate.
"""

import json
from pathlib import Path

import numpy as np

from pipeline.evaluate.distances import Gaussian, fit_gaussian, frechet_distance, kernel_distance
from pipeline.evaluate.intervals import jackknife

RESULT = Path(__file__).parent / "results" / "intervals.json"
FRECHET = ((2, 100, 2000), (8, 200, 1000), (16, 128, 1000), (32, 256, 400))
"""Width of the features, clips of each set, cases."""
KERNEL = ((8, 200, 1000),)


def draw(generator: np.random.Generator, number: int, factor: np.ndarray, shift: float) -> np.ndarray:
    """Features of `number` clips."""
    return shift + generator.normal(size=(number, len(factor))) @ factor.T


def factor_of(width: int) -> np.ndarray:
    """A root of the covariance of the second set."""
    return np.random.default_rng(width).normal(size=(width, width)) / np.sqrt(width) + np.eye(width)


def true_kernel_distance(width: int, factor: np.ndarray, shift: float) -> float:
    """The mean of the unbiased estimate over many large sets, which stands for the truth."""
    generator = np.random.default_rng(10**6)
    found = [
        kernel_distance(draw(generator, 2000, np.eye(width), 0.0), draw(generator, 2000, factor, shift))
        for _ in range(40)
    ]
    return float(np.mean(found))


def measure(kind: str, width: int, number: int, num_cases: int, shift: float = 0.3) -> dict[str, float | int | str]:
    """The coverage over independent cases."""
    factor, generator = factor_of(width), np.random.default_rng([width, number])
    if kind == "frechet":
        other = Gaussian(np.full(width, shift), factor @ factor.T)
        truth = frechet_distance(Gaussian(np.zeros(width), np.eye(width)), other)
    else:
        truth = true_kernel_distance(width, factor, shift)
    found = []
    for _ in range(num_cases):
        sets = draw(generator, number, np.eye(width), 0.0), draw(generator, number, factor, shift)
        if kind == "frechet":
            found.append(jackknife(frechet_distance, *sets, summarize=fit_gaussian, is_squared=True))
        else:
            found.append(jackknife(kernel_distance, *sets))
    return {
        "distance": kind,
        "width": width,
        "clips": number,
        "cases": num_cases,
        "truth": round(truth, 4),
        "coverage": round(float(np.mean([each.low <= truth <= each.high for each in found])), 4),
        "mean_plain": round(float(np.mean([each.value for each in found])), 4),
        "mean_corrected": round(float(np.mean([each.corrected for each in found])), 4),
    }


def main() -> None:
    """Measure, print and write."""
    rows = [measure("frechet", *case) for case in FRECHET] + [measure("kernel", *case) for case in KERNEL]
    for row in rows:
        print(row)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
