"""How often the sweep's intervals hold the truth and its tests find a trend: simulated studies with a known answer.

A study: 7 amounts of critiques up to 30,000, 1,319 problems, accuracy 86.6 % without critiques and `rise` points more
at 30,000 (the paper: 1.6). Problems differ in difficulty, every training has a quality of its own (`noise`: standard
deviation in points of accuracy), the rest is chance.

    python benchmarks/trend.py [--studies 200] [--out trend.json]
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist

import numpy as np

from minos_ray.evaluation import statistics

AMOUNTS = tuple(range(0, 30_001, 5_000))
PROBLEMS, START, DIFFICULTY = 1_319, 0.866, 2.0
RESAMPLES, LEVEL = 1_000, 0.05
SETTINGS = [
    (seeds, rise, noise) for seeds in (1, 3, 5) for rise, noise in ((0, 0.3), (0.8, 0.3), (1.6, 0.3), (1.6, 0.8))
]
NORMAL = NormalDist()


def study(seeds: int, rise: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Outcomes [seeds, amounts, problems]: a normal quantity is above zero; `rise` and `noise` in points."""
    goals = START + rise / 100 * np.array(AMOUNTS) / AMOUNTS[-1] + rng.normal(0, noise / 100, (seeds, len(AMOUNTS)))
    latent = np.vectorize(NORMAL.inv_cdf)(goals) * (1 + DIFFICULTY**2) ** 0.5
    quantity = latent[..., None] + rng.normal(0, DIFFICULTY, PROBLEMS) + rng.standard_normal((*goals.shape, PROBLEMS))
    return (quantity > 0).astype(np.float64)


def verdicts(seeds: int, rise: float, noise: float, studies: int) -> Iterator[dict[str, bool]]:
    """Per study: whether intervals hold the truth, and whether each test finds a trend."""
    slope = rise / 100 * statistics.PER / AMOUNTS[-1]
    for number in range(studies):
        rng = np.random.default_rng([seeds, round(100 * rise), round(100 * noise), number])
        values = study(seeds, rise, noise, rng)
        found = statistics.curve(values, AMOUNTS, RESAMPLES, number)
        first, rising = found["points"][0], found["trend"]
        yield {
            "mean held": first["ci_low"] <= START <= first["ci_high"],
            "slope held": rising["ci_low"] <= slope <= rising["ci_high"],
            "trials find it": rising["p_trials"] <= LEVEL,
            "problems find it": rising["p_problems"] <= LEVEL,
        }


def main() -> None:
    """Prints a row per setting."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    statistics.DRAWS = 999
    table = []
    for seeds, rise, noise in SETTINGS:
        found = list(verdicts(seeds, rise, noise, arguments.studies))
        shares = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        table.append({"seeds": seeds, "rise": rise, "noise": noise, **shares})
        print("  ".join(f"{name} {value:g}" for name, value in table[-1].items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
