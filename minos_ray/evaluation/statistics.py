"""Intervals over problems: problems are resampled with replacement, candidates stay as they are."""

from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
FLIPS = 9_999
BLOCK = 4_000_000  # entries of a block of resampling weights


def resamples(problems: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks [some resamples, problems]: how often each problem was drawn."""
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // max(1, problems))
    for first in range(0, count, block):
        rows = min(block, count - first)
        drawn = rng.integers(problems, size=(rows, problems)) + np.arange(rows)[:, None] * problems
        yield np.bincount(drawn.ravel(), minlength=rows * problems).reshape(rows, problems).astype(np.float64)


def intervals(values: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the 95 % bootstrap interval of each column of `values` [problems, columns].

    A NaN means that the problem does not enter that column (some must); the same resamples serve every column. The
    bootstrap is smoothed by as much as one problem more would change, up or down: when hardly any problem differs
    between two methods, or all are solved, the plain percentile interval is far too short (docs/evaluation.md).
    """
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    # Mostly nothing is missing; then one product is enough.
    entering = None if there.all() else there.astype(np.float64)
    means = np.concatenate([resampled_means(w, filled, entering) for w in resamples(len(values), count, seed)])
    means += np.random.default_rng([seed, 1]).standard_normal((count, 1)) * one_more(filled) / there.sum(axis=0)
    tail = 50 * (1 - LEVEL)
    low, high = (np.percentile if entering is None else np.nanpercentile)(means, [tail, 100 - tail], axis=0)
    return filled.sum(axis=0) / there.sum(axis=0), low, high


def one_more(values: np.ndarray) -> np.ndarray:
    """[columns]: the root mean square of the entries that are not 0, and 1 where all are."""
    counted = np.count_nonzero(values, axis=0)
    return np.where(counted, np.sqrt((values**2).sum(axis=0) / np.maximum(counted, 1)), 1.0)


def resampled_means(weights: np.ndarray, filled: np.ndarray, there: np.ndarray | None) -> np.ndarray:
    """[resamples, columns]: means with how often each problem was drawn; NaN where none that enters was."""
    drawn = weights.sum(axis=1, keepdims=True) if there is None else weights @ there
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ filled) / drawn


def sign_test(differences: np.ndarray) -> float:
    """Exact two-sided p-value that problems go either way alike; with outcomes 0 and 1 this is McNemar's exact test."""
    ups, downs = int((differences > 0).sum()), int((differences < 0).sum())
    term = tail = 1
    for k in range(min(ups, downs)):
        term = term * (ups + downs - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2 ** (ups + downs))


def flip_test(differences: np.ndarray, seed: int) -> float:
    """Two-sided p-value that the mean is zero: the sign of each problem's difference is flipped at random.

    (b + 1) / (m + 1) with m = `FLIPS` seeded draws, b of them with a mean at least as far from zero. NaNs are left out.
    """
    moved = differences[np.nan_to_num(differences) != 0]
    rng, least, reached = np.random.default_rng(seed), abs(moved.sum()) - 1e-9, 0
    block = max(1, BLOCK // max(1, len(moved)))
    for first in range(0, FLIPS, block):
        signs = rng.integers(2, size=(min(block, FLIPS - first), len(moved)), dtype=np.int8)
        reached += int((np.abs((2.0 * signs - 1) @ moved) >= least).sum())
    return (reached + 1) / (FLIPS + 1)
