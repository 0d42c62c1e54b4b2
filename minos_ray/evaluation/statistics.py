"""Intervals and tests over problems: problems are resampled with replacement, their candidates stay as they are."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.95
TAILS = (50 * (1 - LEVEL), 100 - 50 * (1 - LEVEL))  # percentiles of a two-sided interval
FLIPS = 9_999
BLOCK = 4_000_000  # entries of a block of resampling weights


def resamples(problems: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yields `count` bootstrap resamples as blocks [resamples, problems] of how often each problem was drawn."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(1, problems))
    for first in range(0, count, block):
        rows = min(block, count - first)
        drawn = rng.integers(problems, size=(rows, problems)) + np.arange(rows)[:, None] * problems
        yield np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems).astype(np.float64)


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
    return means + np.random.default_rng([seed, 1]).standard_normal((count, noise_columns)) * step


def one_more(values: np.ndarray) -> np.ndarray:
    """[columns]: the root mean square of the entries of [problems, columns] that are not 0; 1 where all are."""
    nonzero = np.count_nonzero(values, axis=0)
    squares = [(some**2).sum(axis=0) for some in np.array_split(values, max(1, values.shape[1] // 32), axis=1)]
    return np.where(nonzero, np.sqrt(np.concatenate(squares) / np.maximum(nonzero, 1)), 1.0)


def intervals(values: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the smoothed 95 % bootstrap interval of each column of [problems, columns].

    A NaN means that the problem does not enter that column; each column needs one that does. All columns share their
    resamples.
    """
    entering = ~np.isnan(values)
    complete = bool(entering.all())  # the usual case: one matrix product instead of two, and no NaN among the means
    sums, sizes = values if complete else np.where(entering, values, 0.0), entering.sum(axis=0)
    weights = None if complete else entering.astype(np.float64)
    means = bootstrap(sums, weights, one_more(sums) / sizes, count, seed)
    low, high = (np.percentile if complete else np.nanpercentile)(means, TAILS, axis=0)
    return sums.sum(axis=0) / sizes, low, high


def bounded_intervals(
    values: np.ndarray, accuracies: int, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`intervals` of accuracies, in the first columns, which lie in 0..1, and of differences, which lie in -1..1."""
    mean, low, high = intervals(values, count, seed)
    lowest = np.where(np.arange(values.shape[1]) < accuracies, 0.0, -1.0)
    return mean, np.maximum(low, lowest), np.minimum(high, 1.0)


class Measured(NamedTuple):
    """A row of results that waits for an interval: of the mean of `values` [problems] (NaN: does not enter), stored as
    `name`_low and `name`_high. An accuracy lies in 0..1, a difference in -1..1."""

    row: dict[str, Any]
    name: str
    values: np.ndarray
    difference: bool = False


def fill_intervals(measured: Sequence[Measured], count: int, seed: int) -> None:
    """Writes the ends into the rows; all share their resamples, which take longer to draw than to use."""
    if not measured:
        return
    ordered = sorted(measured, key=lambda entry: entry.difference)
    accuracies = sum(not entry.difference for entry in ordered)
    _, low, high = bounded_intervals(np.column_stack([entry.values for entry in ordered]), accuracies, count, seed)
    for k, entry in enumerate(ordered):
        entry.row.update({f"{entry.name}_low": float(low[k]), f"{entry.name}_high": float(high[k])})


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % Wilson score interval for a fraction; `trials` > 0."""
    from scipy.stats import binomtest

    low, high = binomtest(hits, trials).proportion_ci(LEVEL, "wilson")
    return float(low), float(high)


def sign_test(differences: np.ndarray) -> float:
    """Exact two-sided p-value of the sign test; with outcomes 0 and 1 this is McNemar's exact test.

    Zeros and NaNs are left out; 1 when nothing else remains.
    """
    from scipy.stats import binomtest

    ups, downs = int((differences > 0).sum()), int((differences < 0).sum())
    return float(binomtest(ups, ups + downs).pvalue) if ups + downs else 1.0


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
