"""Does a measure rise with the amount of critiques? Intervals, a slope and two permutation tests.

Values are [seeds, amounts, problems]: what each trial reached on each problem. A measure that exists only for a whole
trial (F1, AUC) has one "problem".

**Intervals** (95 %, percentile) come from a bootstrap of two levels, with the same resamples for every amount and for
means, differences and slopes, so that the latter two are paired. Problems are drawn with replacement. Seeds, mostly
three or five, get weights that make the interval for a mean of seeds alone exactly Student's t interval: three seeds
drawn with replacement give one that is far too narrow. (Where there is one "problem", that interval is computed, not
drawn.) Chance on one problem in one training shows in both levels; its share is taken off the problems' (moments of the
two-way layout of seeds and problems), else intervals would be too wide. With one seed nothing is known of the
training's own noise: the interval is then over problems only and speaks of these trained verifiers.

**Tests.** The statistic is the slope of the measure over the amounts, with an intercept for each block: as Page's L,
but with the values and the amounts themselves in place of ranks, for values share one scale and mostly tie. Under
"the amount does not matter" the values of a block may be exchanged; p is the fraction of such exchanges with a slope
at least as large (one-sided: critiques help).

- Blocks are seeds (`p_trials`): a training is the unit, so this is the test for a claim about critiques. It is valid
  with one seed, too: seven amounts can be put in 5,040 orders.
- Blocks are problems, with means over seeds (`p_problems`): the unit is a problem, the trained verifiers are given. It
  says whether *these* verifiers get better over the amounts, were it by the luck of their trainings.

All exchanges are counted where there are at most EXACT; else DRAWS seeded ones are, and p is (b + 1) / (DRAWS + 1).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from minos_ray.evaluation.statistics import BLOCK, LEVEL, one_more, resamples

NAME = "sweep/trend.json"
EXACT = 1_000_000
DRAWS = 9_999
ROUNDING = 1e-9
PER = 10_000  # critiques: the slope's unit
Ends = dict[str, float | None]


class PValue(NamedTuple):
    """One-sided p-value, and of how many exchanges; `exact` when those are all."""

    p: float
    exchanges: int
    exact: bool


def curve(values: np.ndarray, amounts: Sequence[int], count: int, seed: int) -> dict[str, Any]:
    """Mean, difference to the first amount and their intervals per amount, and the trend; fractions, not per cent.

    Ends of intervals are None where there is neither a second seed nor a second problem; so is the trend of one amount.
    """
    means, size = values.mean(axis=(0, 2)), len(amounts)
    contrasts = np.concatenate([np.eye(size), np.eye(size) - np.eye(size)[0], slope_weights(amounts)[None]])
    if values.shape[2] == 1:
        ends = [student(column) for column in (values[:, :, 0] @ contrasts.T).T]
    else:
        ends = [percentiles(column) for column in replicates(values, contrasts, count, seed).T]
    points = []
    for k, amount in enumerate(amounts):
        inside = {name: None if end is None else min(1.0, max(0.0, end)) for name, end in ends[k].items()}
        differences = {f"difference_{name}": end for name, end in ends[size + k].items()}
        mean, difference = float(means[k]), float(means[k] - means[0])
        points.append({"critiques": amount, "mean": mean, **inside, "difference": difference, **differences})
    return {"points": points, "trend": trend(values, amounts, ends[-1], seed) if size > 1 else None}


def trend(
    values: np.ndarray, amounts: Sequence[int], slope_ends: Ends, seed: int
) -> dict[str, float | int | bool | None]:
    """The slope in fractions per 10,000 critiques with its interval, and the p-values."""
    trials = rising(values.mean(axis=2), amounts, seed)
    problems = rising(values.mean(axis=0).T, amounts, seed) if values.shape[2] > 1 else None
    return {
        "slope": float(values.mean(axis=(0, 2)) @ slope_weights(amounts)),
        **slope_ends,
        "p_trials": trials.p,
        "exchanges": trials.exchanges,
        "exact": trials.exact,
        "p_problems": problems.p if problems else None,
    }


def slope_weights(amounts: Sequence[int]) -> np.ndarray:
    """What the means are multiplied with to give the least-squares slope per 10,000 critiques; one amount has none."""
    centred = np.array(amounts, dtype=np.float64) - np.mean(amounts)
    return PER * centred / (centred @ centred or 1.0)


def student(values: np.ndarray) -> Ends:
    """Student's t interval for the mean of independent values [seeds]; None for a single one."""
    if len(values) == 1:
        return {"ci_low": None, "ci_high": None}
    half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
    return {"ci_low": float(values.mean() - half), "ci_high": float(values.mean() + half)}


def percentiles(resampled: np.ndarray) -> Ends:
    """The interval that holds the middle of resampled values."""
    tail = 50 * (1 - LEVEL)
    low, high = map(float, np.percentile(resampled, [tail, 100 - tail]))
    return {"ci_low": low, "ci_high": high}


def replicates(values: np.ndarray, contrasts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[count, contrasts]: each contrast [amounts] of the means, with resampled seeds and problems."""
    cells = np.einsum("sap,ca->scp", values, contrasts)
    by_seed, by_problem = cells.mean(axis=2), cells.mean(axis=0)
    centre = by_problem.mean(axis=1)
    weights = seed_weights(len(values), count, np.random.default_rng([seed, len(values)]))
    problems = by_problem.shape[1]
    means = np.concatenate([drawn @ by_problem.T / problems for drawn in resamples(problems, count, seed)])
    noise = np.random.default_rng([seed, 1]).standard_normal((count, 1))
    means += noise * one_more(by_problem.T) / problems  # smoothed as the intervals of the evaluation
    return weights @ by_seed + shrink(cells, by_seed, by_problem) * (means - centre)


def shrink(cells: np.ndarray, by_seed: np.ndarray, by_problem: np.ndarray) -> np.ndarray:
    """[contrasts]: what is left of the problems' deviations without the chance that the seeds' show already."""
    seeds, contrasts, problems = cells.shape
    if seeds == 1:
        return np.ones(contrasts)
    residuals = cells - by_seed[:, :, None] - by_problem + by_problem.mean(axis=1)[:, None]
    chance = (residuals**2).sum(axis=(0, 2)) / ((seeds - 1) * (problems - 1)) / seeds
    spread = by_problem.var(axis=1, ddof=1)
    return np.sqrt(np.clip(1 - chance / np.where(spread > 0, spread, np.inf), 0, 1))


def seed_weights(seeds: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count, seeds], rows that sum to 1: weighted means are distributed as Student's t around the mean.

    Normal deviations from equal weights give the mean the variance s^2 / seeds; a chi-square makes it Student's.
    """
    if seeds == 1:
        return np.ones((count, 1))
    normal = rng.standard_normal((count, seeds))
    deviations = normal - normal.mean(axis=1, keepdims=True)
    return 1 / seeds + deviations / np.sqrt(seeds * rng.chisquare(seeds - 1, (count, 1)))


def rising(blocks: np.ndarray, amounts: Sequence[int], seed: int) -> PValue:
    """Permutation test within the rows of `blocks` [blocks, amounts] for a rise over the amounts."""
    centred = np.array(amounts, dtype=np.float64) - np.mean(amounts)
    centred /= np.abs(centred).max()
    blocks = blocks[np.ptp(blocks, axis=1) > 0]  # constant ones add the same whatever their order
    if not len(blocks):
        return PValue(1.0, 1, True)

    def slope(*values: np.ndarray, axis: int) -> np.ndarray:
        return sum(block @ centred for block in values) / len(values)

    exchanges = math.factorial(len(amounts)) ** len(blocks)
    exact = exchanges <= EXACT
    test = stats.permutation_test(
        tuple(blocks - blocks.mean(axis=1, keepdims=True)),
        slope,
        permutation_type="pairings",
        alternative="greater",
        vectorized=True,
        n_resamples=exchanges if exact else DRAWS,
        batch=max(1, BLOCK // blocks.size),
        rng=np.random.default_rng(seed),
    )
    # Exchanges that differ by rounding alone are ties, which count as reached; scipy's own tolerance is too small.
    tolerance = ROUNDING * np.abs(test.null_distribution).max()
    reached = int((test.null_distribution >= test.statistic - tolerance).sum())
    p = reached / exchanges if exact else (reached + 1) / (DRAWS + 1)
    return PValue(p, exchanges if exact else DRAWS, exact)
