"""Does a measure rise with the amount of critiques? Intervals, a slope and two permutation tests; numpy alone.

Values are [seeds, amounts, problems]: what each trial reached on each problem. A measure that exists only for a whole
trial (F1, AUC) has one "problem".

**Intervals** (95 %, percentile) come from a bootstrap of two levels, with the same resamples for every amount and for
means, differences and slopes, so that the latter two are paired. Problems are drawn with replacement. Seeds, mostly
three or five, get weights that make the interval for a mean of seeds alone exactly Student's t interval: three seeds
drawn with replacement give one that is far too narrow. Chance on one problem in one training shows in both levels; its
share is taken off the problems' (moments of the two-way layout of seeds and problems), else intervals would be too
wide. With one seed nothing is known of the training's own noise: the interval is then over problems only and speaks of
these trained verifiers.

**Tests.** The statistic is the slope of the measure over the amounts, with an intercept for each block: as Page's L,
but with the values and the amounts themselves in place of ranks, for values share one scale and mostly tie. Under
"the amount does not matter" the values of a block may be exchanged; p is the share of such exchanges with a slope
at least as large (one-sided: critiques help).

- Blocks are seeds (`p_trials`): a training is the unit, so this is the test for a claim about critiques. It is valid
  with one seed, too: seven amounts can be put in 5,040 orders.
- Blocks are problems, with means over seeds (`p_problems`): the unit is a problem, the trained verifiers are given. It
  says whether *these* verifiers get better over the amounts, were it by the luck of their trainings.

All exchanges are counted where there are at most EXACT; else DRAWS seeded ones are, and p is (b + 1) / (DRAWS + 1).
"""

import math
from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np

from minos_ray.evaluation.statistics import BLOCK, LEVEL, one_more, resamples

NAME = "sweep/trend.json"
EXACT = 1_000_000
DRAWS = 9_999
PER = 10_000  # critiques: the slope's unit
ROUNDING = 1e-9


Ends = dict[str, float | None]


class PValue(NamedTuple):
    """One-sided p-value, and of how many exchanges; `exact` when those are all."""

    p: float
    exchanges: int
    exact: bool


def curve(values: np.ndarray, amounts: Sequence[int], count: int, seed: int) -> dict[str, Any]:
    """Mean, difference to the first amount and their intervals per amount, and the trend; shares, not per cent.

    Ends of intervals are None where there is neither a second seed nor a second problem; so is the trend of one amount.
    """
    means, size = values.mean(axis=(0, 2)), len(amounts)
    contrasts = np.concatenate([np.eye(size), np.eye(size) - np.eye(size)[0], slope_weights(amounts)[None]])
    known = values.shape[0] > 1 or values.shape[2] > 1
    found = [ends(column, known) for column in replicates(values, contrasts, count, seed).T]
    points = [
        {"critiques": amount, "mean": float(means[k]), **inside(found[k]), "difference": float(means[k] - means[0])}
        | {f"difference_{name}": end for name, end in found[size + k].items()}
        for k, amount in enumerate(amounts)
    ]
    return {"points": points, "trend": trend(values, amounts, found[-1], seed) if size > 1 else None}


def trend(
    values: np.ndarray, amounts: Sequence[int], slope_ends: Ends, seed: int
) -> dict[str, float | int | bool | None]:
    """The slope in shares per 10,000 critiques with its interval, and the p-values."""
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


def ends(drawn: np.ndarray, known: bool = True) -> Ends:
    """`ci_low` and `ci_high` of resampled values."""
    tail = 50 * (1 - LEVEL)
    low, high = map(float, np.percentile(drawn, [tail, 100 - tail])) if known else (None, None)
    return {"ci_low": low, "ci_high": high}


def inside(found: Ends) -> Ends:
    """The ends of an interval for a share, kept inside 0..1."""
    return {name: None if end is None else min(1.0, max(0.0, end)) for name, end in found.items()}


def replicates(values: np.ndarray, contrasts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """[count, contrasts]: each contrast [amounts] of the means, with resampled seeds and problems."""
    cells = np.einsum("sap,ca->scp", values, contrasts)
    by_seed, by_problem = cells.mean(axis=2), cells.mean(axis=0)
    centre = by_problem.mean(axis=1)
    weights = seed_weights(len(values), count, np.random.default_rng([seed, len(values)]))
    problems = by_problem.shape[1]
    means = np.concatenate([drawn @ by_problem.T / problems for drawn in resamples(problems, count, seed)])
    if problems > 1:  # as the intervals of the evaluation
        noise = np.random.default_rng([seed, 1]).standard_normal((count, 1))
        means += noise * one_more(by_problem.T) / problems
    return weights @ by_seed + shrink(cells, by_seed, by_problem) * (means - centre)


def shrink(cells: np.ndarray, by_seed: np.ndarray, by_problem: np.ndarray) -> np.ndarray:
    """[contrasts]: what is left of the problems' deviations without the chance that the seeds' show already."""
    seeds, contrasts, problems = cells.shape
    if seeds == 1 or problems == 1:
        return np.ones(contrasts)
    rest = cells - by_seed[:, :, None] - by_problem + by_problem.mean(axis=1)[:, None]
    chance = (rest**2).sum(axis=(0, 2)) / ((seeds - 1) * (problems - 1)) / seeds
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
    least = (blocks @ centred).sum() - ROUNDING * max(1.0, float(np.abs(blocks).sum()))
    exchanges = math.factorial(len(amounts)) ** len(blocks)
    if exchanges <= EXACT:
        return PValue(float((every_sum(blocks, centred) >= least).mean()), exchanges, True)
    reached = sum(int((sums >= least).sum()) for sums in drawn_sums(blocks, centred, np.random.default_rng(seed)))
    return PValue((reached + 1) / (DRAWS + 1), DRAWS, False)


def every_sum(blocks: np.ndarray, centred: np.ndarray) -> np.ndarray:
    """The statistic of every exchange."""
    orders = np.array(list(permutations(centred)))
    sums = np.zeros(1)
    for block in blocks:
        sums = np.add.outer(sums, orders @ block).ravel()
    return sums


def drawn_sums(blocks: np.ndarray, centred: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The statistic of DRAWS random exchanges, in pieces."""
    piece = max(1, BLOCK // blocks.size)
    for first in range(0, DRAWS, piece):
        shape = (min(piece, DRAWS - first), *blocks.shape)
        yield np.einsum("dba,ba->d", rng.permuted(np.broadcast_to(centred, shape), axis=2), blocks)
