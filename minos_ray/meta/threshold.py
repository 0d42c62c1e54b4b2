"""Thresholds chosen on one labelled set for use on others: for first errors and for outcomes, exactly.

At a threshold t a solution is judged rightly when t lies in an interval (low, high] of its own, so that the counts for
all thresholds come from sorting the ends. Thresholds are tried half-way between neighbouring scores.
"""

from typing import NamedTuple

import numpy as np

from minos_ray.evaluation.metrics import THRESHOLD
from minos_ray.evaluation.verdicts import ALL_RIGHT, Aligned, first_errors


class Threshold(NamedTuple):
    """What a verdict takes at least, of steps and of whole solutions, and where that comes from (`given`, or a set)."""

    step: float
    outcome: float
    source: str


def best_first_error(both: Aligned) -> float | None:
    """The threshold of the highest first-error F1; None where right or wrong solutions are missing.

    A right solution is a hit when t is at most its lowest score, one whose first error is at step e when t is above
    the score of e and at most all before it.
    """
    truth = first_errors(both.labels)
    wrong, right = (truth >= 0).sum(), (truth == ALL_RIGHT).sum()
    if not wrong or not right or not both.whole.any():
        return None
    values, truth = both.scored.values, truth[both.whole]
    at = between(values)
    place, start = truth[truth >= 0], both.scored.starts[truth >= 0]
    ends = np.stack([start, start + place], axis=1).ravel()
    before = np.where(place > 0, np.minimum.reduceat(values, ends)[::2], np.inf)
    found = hits(values[start + place], before, at) / wrong
    lowest = both.scored.lowest()[truth == ALL_RIGHT]
    kept = hits(np.full(len(lowest), -np.inf), lowest, at) / right
    total = found + kept
    return best(at, np.divide(2 * found * kept, total, out=np.zeros_like(total), where=total > 0))


def best_outcome(scores: np.ndarray, correct: np.ndarray) -> float:
    """The threshold of the highest accuracy, for solutions that have a score; 0.5 without any."""
    if not len(scores):
        return THRESHOLD
    right, wrong = scores[correct], scores[~correct]
    ends = [0.0] if scores.max() >= 1 else [0.0, (1 + scores.max()) / 2]
    at = np.concatenate([between(scores), ends])
    return best(at, hits(np.full(len(right), -np.inf), right, at) + hits(wrong, np.full(len(wrong), np.inf), at))


def hits(low: np.ndarray, high: np.ndarray, at: np.ndarray) -> np.ndarray:
    """How many of the intervals (low, high] hold each of `at`."""
    real = low < high
    return np.searchsorted(np.sort(low[real]), at) - np.searchsorted(np.sort(high[real]), at)


def between(values: np.ndarray) -> np.ndarray:
    """Half-way between neighbours."""
    distinct = np.unique(values)
    return (distinct[1:] + distinct[:-1]) / 2


def best(at: np.ndarray, quality: np.ndarray) -> float:
    """The one of the highest quality; of several the one nearest to 0.5, which it is when there is none."""
    if not len(at):
        return THRESHOLD
    top = at[quality >= quality.max() - 1e-12]
    return float(top[np.abs(top - THRESHOLD).argmin()])
