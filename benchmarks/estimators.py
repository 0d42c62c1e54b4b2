"""Do the intervals hold the truth, and what does pairing buy? Simulated verifiers whose truth is known.

python benchmarks/estimators.py [--studies 4000] [--figure docs/power.svg]

A population of 20,000 problems with 32 candidates each is evaluated once with our methods; its means are the truth. A
study draws problems from it at random, with replacement, and is given to our intervals.
"""

import argparse
from math import sqrt

import numpy as np
from simulated import Population, population, scores

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.comparison import choose
from minos_ray.evaluation.selection import Choice, best_of, rankings, voters
from minos_ray.evaluation.statistics import intervals, sign_test

PROBLEMS, CANDIDATES = 20_000, 32
SIZES = (250, 500, 1319, 2500, 5000, 10_000)
GAIN = 0.01


def gained(made: Population, base: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scores of a verifier whose best-of-N is `GAIN` above that of `base`, by bisection of its sharpness."""
    for _ in range(14):
        middle = (low + high) / 2
        found = scores(made, middle, np.random.default_rng(2))
        gain = (right(made, found) - right(made, base)).mean()
        low, high = (middle, high) if gain < GAIN else (low, middle)
    return found


def right(made: Population, score: np.ndarray) -> np.ndarray:
    """Best-of-N of each problem."""
    return best_of(score, made.clusters, [CANDIDATES])[:, 0]


def outcomes(made: Population, found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Accuracy of each problem by method at n = 8 (random subsets) and n = N."""
    section, names = Evaluate(trials=20), np.array([str(p) for p in range(PROBLEMS)])
    ns = [8, CANDIDATES]
    values = choose(made.clusters, found, {}, ns, section, names).values
    order = [Choice("pass@n"), *rankings(found, {}), *voters((0,), found, {})]
    named = {(c.method, c.verifier): values[i] for i, c in enumerate(order)}
    kept = [("self-consistency", ""), ("best-of-n", "base"), ("weighted-vote", "base"), ("best-of-n", "minos")]
    table = {f"{m} {v} n={n}".replace("  ", " "): named[m, v][:, j] for m, v in kept for j, n in enumerate(ns)}
    for method in ("best-of-n", "weighted-vote"):
        gap = named[method, "minos"] - named[method, "base"]
        table |= {f"{method} minos - base n={n}": gap[:, j] for j, n in enumerate(ns)}
    return table


def coverage(values: np.ndarray, size: int, studies: int, rng: np.random.Generator) -> float:
    """The share of studies of `size` problems whose 95 % interval holds the mean of the population."""
    drawn = values[rng.integers(len(values), size=(size, studies))]
    _, low, high = intervals(drawn, 1000, seed=int(rng.integers(2**31)))
    return float(((low <= values.mean()) & (values.mean() <= high)).mean())


def power(
    a: np.ndarray, b: np.ndarray, size: int, studies: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The share of studies that tell a from b: our paired interval, McNemar's test, an unpaired comparison."""
    at = rng.integers(len(a), size=(size, studies))
    x, y = a[at], b[at]
    _, low, high = intervals(x - y, 1000, seed=int(rng.integers(2**31)))
    mcnemar = np.mean([sign_test(column) < 0.05 for column in (x - y).T])
    z = (x.mean(axis=0) - y.mean(axis=0)) / np.sqrt((x.var(axis=0) + y.var(axis=0)) / size)
    return float(((low > 0) | (high < 0)).mean()), float(mcnemar), float((np.abs(z) > 1.96).mean())


def swapped(a: np.ndarray, b: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two verifiers that are equally good: on half of the problems they change places, and the rest is evened out."""
    coin = rng.random(len(a)) < 0.5
    first, second = np.where(coin, a, b), np.where(coin, b, a)
    # Every problem appears twice, once each way round, so that the population's difference is exactly zero.
    return np.concatenate([first, second]), np.concatenate([second, first])


def draw(table: dict[int, tuple[float, float, float]], path: str) -> None:
    """The power curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4))
    axis = figure.subplots()
    rows = np.array(list(table.values()))
    names = ("paired bootstrap interval", "McNemar's exact test", "unpaired comparison")
    for column, (name, colour, mark) in enumerate(zip(names, ("#1f6fb8", "#1d7f5c", "#b9660f"), "os^", strict=True)):
        axis.plot(list(table), 100 * rows[:, column], marker=mark, color=colour, label=name)
    axis.set_xscale("log")
    axis.set_xticks(list(table), [f"{size:,}" for size in table])
    axis.minorticks_off()
    axis.set_ylim(0, 100)
    axis.set_xlabel("test problems")
    axis.set_ylabel("studies that see it (%)")
    axis.set_title("A true gain of 1 point, best-of-32", fontsize=10)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Prints coverage and power."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--figure", default=None)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    made = population(PROBLEMS, CANDIDATES, rng)
    base = scores(made, 0.8, rng)
    minos, same = gained(made, base, 0.8, 1.4), scores(made, 0.8, np.random.default_rng(3))
    found = outcomes(made, {"base": base, "minos": minos})
    error = 100 * sqrt(0.95 * 0.05 / arguments.studies)
    print(f"coverage of 95 % intervals (%), {arguments.studies:,} studies each (standard error {error:.2f})")
    print(f"{'':34} {'truth':>8} {'500':>7} {'1,319':>7}  problems")
    for name, values in found.items():
        held = [100 * coverage(values, size, arguments.studies, rng) for size in (500, 1319)]
        print(f"{name:34} {100 * values.mean():8.2f} {held[0]:7.1f} {held[1]:7.1f}")
    print("\nstudies that tell two verifiers apart (%): paired interval, McNemar, unpaired")
    table, alike = {}, swapped(right(made, same), right(made, base), rng)
    for size in SIZES:
        table[size] = power(right(made, minos), right(made, base), size, arguments.studies // 2, rng)
        none = power(*alike, size, arguments.studies // 2, rng)
        shown = "  ".join(" ".join(f"{100 * v:6.1f}" for v in row) for row in (table[size], none))
        print(f"{size:7,} problems: {shown}   (gain of {100 * GAIN:.0f} point; second: two alike)")
    if arguments.figure:
        draw(table, arguments.figure)


if __name__ == "__main__":
    main()
