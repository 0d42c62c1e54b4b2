"""Intervals and tests over problems: problems are resampled with replacement, their candidates stay as they are.

**A trend**: does a measure rise with the amount of critiques? Intervals, a slope and two permutation tests (`curve`).
Values are [seeds, amounts, problems]: what each trial reached on each problem. A measure that exists only for a whole
trial (F1, AUC) has one "problem".

Its intervals (95 %, percentile) come from a bootstrap of two levels, with the same resamples for every amount and for
means, differences and slopes, so that the latter two are paired. Problems are drawn with replacement. Seeds, mostly
three or five, get weights that make the interval for a mean of seeds alone exactly Student's t interval: three seeds
drawn with replacement give one that is far too narrow. (Where there is one "problem", that interval is computed, not
drawn.) Chance on one problem in one training shows in both levels; its share is taken off the problems' (moments of the
two-way layout of seeds and problems), else intervals would be too wide. With one seed nothing is known of the
training's own noise: the interval is then over problems only and speaks of these trained verifiers.

The statistic of its tests is the slope of the measure over the amounts, with an intercept for each block: as Page's L,
but with the values and the amounts themselves in place of ranks, for values share one scale and mostly tie. Under
"the amount does not matter" the values of a block may be exchanged; p is the fraction of such exchanges with a slope
at least as large (one-sided: critiques help).

- Blocks are seeds (`p_trials`): a training is the unit, so this is the test for a claim about critiques. It is valid
  with one seed, too: seven amounts can be put in 5,040 orders.
- Blocks are problems, with means over seeds (`p_problems`): the unit is a problem, the trained verifiers are given. It
  says whether *these* verifiers get better over the amounts, were it by the luck of their trainings.

All exchanges are counted where there are at most EXACT; else DRAWS seeded ones are, and p is (b + 1) / (DRAWS + 1).
"""

from collections.abc import Iterator, Sequence
from math import factorial, log, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
TAILS = (50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL))  # percentiles of a two-sided interval
FLIPS = 9_999
BLOCK = 4_000_000  # entries of a block of resampling weights
CACHED = 1 << 16  # entries drawn at a time: they stay in the processor's cache until they are counted
EXACT = 1_000_000
DRAWS = 9_999
ROUNDING = 1e-9
PER = 10_000  # critiques: the slope's unit
Ends = dict[str, float | None]


def resamples(problems: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yields `count` bootstrap resamples as blocks [resamples, problems] of how often each problem was drawn."""
    rng, block = np.random.default_rng(seed), max(1, BLOCK // max(1, problems))
    few = max(1, CACHED // max(1, problems))
    for first in range(0, count, block):
        weights = np.empty((min(block, count - first), problems))
        for row in range(0, len(weights), few):
            rows = weights[row : row + few]
            drawn = rng.integers(problems, size=rows.shape) + np.arange(len(rows))[:, None] * problems
            rows[:] = np.bincount(drawn.ravel(), minlength=rows.size).reshape(rows.shape)
        yield weights


def resampled_means(weights: np.ndarray, sums: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """[resamples, columns]: ratios of the weighted sums of `sums` and `sizes`, both [problems, columns].

    `weights` is [resamples, problems]. Without `sizes` each problem counts once. NaN where no problem with a size was
    drawn.
    """
    total = weights.sum(axis=1, keepdims=True) if sizes is None else weights @ sizes
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ sums) / total


def bootstrap(
    sums: np.ndarray, sizes: np.ndarray | None, step: np.ndarray, count: int, seed: int, noise_columns: int = 1
) -> np.ndarray:
    """[count, columns]: resampled ratios of `sums` to `sizes` (as in `resampled_means`), smoothed by normal noise.

    The noise has the standard deviation `step` [columns]: by how much one problem more would move the ratio. The plain
    percentile interval is far too short when hardly any problem differs between two methods, or all are solved
    (docs/evaluation.md). With a single noise column all columns move together, as they do with the resamples.
    """
    means = np.concatenate([resampled_means(weights, sums, sizes) for weights in resamples(len(sums), count, seed)])
    return means + smoothing(count, seed, noise_columns) * step


def smoothing(count: int, seed: int, columns: int) -> np.ndarray:
    """[count, columns]: the noise of `bootstrap`, with deviation 1."""
    return np.random.default_rng([seed, 1]).standard_normal((count, columns))


def one_more(values: np.ndarray) -> np.ndarray:
    """[columns]: the root mean square of the entries of [problems, columns] that are not 0; 1 where all are."""
    nonzero = np.count_nonzero(values, axis=0)
    squares = [(some**2).sum(axis=0) for some in np.array_split(values, max(1, values.shape[1] // 32), axis=1)]
    return np.where(nonzero, np.sqrt(np.concatenate(squares) / np.maximum(nonzero, 1)), 1.0)


def intervals(
    values: np.ndarray, count: int, seed: int, pairs: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the smoothed 95 % bootstrap interval of each column of [problems, columns], then of
    the difference of each of the `pairs` of columns.

    A NaN means that the problem does not enter that column; each column needs one that does, and both of a pair have
    the same. All share their resamples.
    """
    entering = ~np.isnan(values)
    gaps = np.flatnonzero(~entering.all(axis=0))
    sums, sizes = np.where(entering, values, 0.0) if len(gaps) else values, entering.sum(axis=0)
    with_gaps = entering[:, gaps].astype(np.float64)
    a, b = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    steps = np.concatenate([one_more(sums), one_more(sums[:, a] - sums[:, b])])
    sizes = np.concatenate([sizes, sizes[a]])
    noise, resampled, first = smoothing(count, seed, 1), np.empty((count, len(sizes))), 0
    for weights in resamples(len(values), count, seed):
        means = resampled_means(weights, sums, None)
        if len(gaps):
            with np.errstate(invalid="ignore", divide="ignore"):  # of a resample without any problem of a column
                means[:, gaps] *= len(values) / (weights @ with_gaps)
        block = slice(first, first + len(means))
        np.concatenate([means, means[:, a] - means[:, b]], axis=1, out=resampled[block])
        resampled[block] += noise[block] * (steps / sizes)
        first += len(means)
    centre = sums.sum(axis=0)
    centre = np.concatenate([centre, centre[a] - centre[b]]) / sizes
    low, high = np.percentile(resampled, TAILS, axis=0)
    if len(undrawn := np.flatnonzero(np.isnan(low))):
        low[undrawn], high[undrawn] = np.nanpercentile(resampled[:, undrawn], TAILS, axis=0)
    return centre, low, high


def bounded_intervals(
    values: np.ndarray, accuracies: int, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`intervals` of accuracies, in the first columns, which lie in 0..1, and of differences, which lie in -1..1."""
    mean, low, high = intervals(values, count, seed)
    lowest = np.where(np.arange(values.shape[1]) < accuracies, 0.0, -1.0)
    return mean, np.maximum(low, lowest), np.minimum(high, 1.0)


class Measured(NamedTuple):
    """A row of results that waits for an interval, stored as `name`_low and `name`_high: of the mean of `values`
    [problems] (NaN: does not enter), which lies in 0..1, or of the difference to that of `minus`, in -1..1."""

    row: dict[str, Any]
    name: str
    values: np.ndarray
    minus: np.ndarray | None = None


def fill_intervals(measured: Sequence[Measured], count: int, seed: int) -> None:
    """Writes the ends into the rows. All over equally many problems share their resamples, which take longer to draw
    than to use, and an array that several rows name is resampled once."""
    for problems in dict.fromkeys(len(entry.values) for entry in measured):
        entries = [entry for entry in measured if len(entry.values) == problems]
        arrays = {id(array): array for entry in entries for array in (entry.values, entry.minus) if array is not None}
        column = {name: place for place, name in enumerate(arrays)}
        pairs = [(column[id(e.values)], column[id(e.minus)]) for e in entries if e.minus is not None]
        values = np.stack([array.astype(np.float64, copy=False) for array in arrays.values()]).T
        _, low, high = intervals(values, count, seed, pairs)
        place_of_pair = iter(range(len(arrays), len(low)))
        for entry in entries:
            alone = entry.minus is None
            place = column[id(entry.values)] if alone else next(place_of_pair)
            lowest, highest = max(0.0 if alone else -1.0, float(low[place])), min(1.0, float(high[place]))
            entry.row.update({f"{entry.name}_low": lowest, f"{entry.name}_high": highest})


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval for a fraction; `trials` > 0."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)  # scipy.stats, whose binomtest gives the same, takes a second to import
    share, weight = hits / trials, z**2 / trials
    middle, half = share + weight / 2, sqrt(weight * (share * (1 - share) + weight / 4))
    low, high = (middle - half) / (1 + weight), (middle + half) / (1 + weight)
    return 0.0 if hits == 0 else low, 1.0 if hits == trials else high  # exactly, whatever was rounded


def sign_test(differences: np.ndarray) -> float:
    """Exact two-sided p-value of the sign test; with outcomes 0 and 1 this is McNemar's exact test.

    Zeros and NaNs are left out; 1 when nothing else remains.
    """
    ups, downs = int((differences > 0).sum()), int((differences < 0).sum())
    if abs(ups - downs) <= 1:
        return 1.0
    fewer = np.arange(1, min(ups, downs) + 1)
    # The binomial distribution in logarithms, from 0 on: scipy.special takes a quarter of a second to import.
    chances = np.cumsum(np.append(-log(2) * (ups + downs), np.log((ups + downs + 1 - fewer) / fewer)))
    return float(min(1.0, 2 * np.exp(chances).sum()))


def flip_test(differences: np.ndarray, seed: int) -> float:
    """Two-sided p-value that the mean is zero: the sign of each problem's difference is flipped at random.

    (b + 1) / (m + 1) with m = `FLIPS` seeded draws, b of them with a mean at least as far from zero. NaNs are left out.
    """
    # scipy's permutation_test doubles the smaller tail instead, and holds all flips of a thousand problems in memory.
    moved = differences[np.nan_to_num(differences) != 0]
    rng, least, reached = np.random.default_rng(seed), abs(moved.sum()) - 1e-9, 0
    block = max(1, BLOCK // max(1, len(moved)))
    for first in range(0, FLIPS, block):
        signs = rng.integers(2, size=(min(block, FLIPS - first), len(moved)), dtype=np.int8)
        reached += int((np.abs((2.0 * signs - 1) @ moved) >= least).sum())
    return (reached + 1) / (FLIPS + 1)


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
    from scipy import stats  # a second

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
    centre, (seeds, _, problems) = by_problem.mean(axis=1), cells.shape
    means = np.concatenate([drawn @ by_problem.T / problems for drawn in resamples(problems, count, seed)])
    # Smoothed as the intervals of the evaluation.
    deviations = means + smoothing(count, seed, 1) * one_more(by_problem.T) / problems - centre
    if seeds == 1:
        return by_seed + deviations
    # Weights of the seeds, rows that sum to 1: weighted means are distributed as Student's t around the mean. Normal
    # deviations from equal weights give the mean the variance s^2 / seeds; a chi-square makes it Student's.
    rng = np.random.default_rng([seed, seeds])
    normal = rng.standard_normal((count, seeds))
    apart = normal - normal.mean(axis=1, keepdims=True)
    weights = 1 / seeds + apart / np.sqrt(seeds * rng.chisquare(seeds - 1, (count, 1)))
    # What is left of the problems' deviations without the chance that the seeds' show already.
    residuals = cells - by_seed[:, :, None] - by_problem + centre[:, None]
    chance = (residuals**2).sum(axis=(0, 2)) / ((seeds - 1) * (problems - 1)) / seeds
    spread = by_problem.var(axis=1, ddof=1)
    return weights @ by_seed + np.sqrt(np.clip(1 - chance / np.where(spread > 0, spread, np.inf), 0, 1)) * deviations


def rising(blocks: np.ndarray, amounts: Sequence[int], seed: int) -> PValue:
    """Permutation test within the rows of `blocks` [blocks, amounts] for a rise over the amounts."""
    from scipy import stats

    centred = np.array(amounts, dtype=np.float64) - np.mean(amounts)
    centred /= np.abs(centred).max()
    blocks = blocks[np.ptp(blocks, axis=1) > 0]  # constant ones add the same whatever their order
    if not len(blocks):
        return PValue(1.0, 1, True)

    def slope(*values: np.ndarray, axis: int) -> np.ndarray:
        return sum(block @ centred for block in values) / len(values)

    exchanges = factorial(len(amounts)) ** len(blocks)
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
