"""95 % percentile bootstrap intervals over solutions of the measures of `minos meta`."""

from collections.abc import Iterator

import numpy as np

from minos_ray.evaluation.meta import ALL_RIGHT, Aligned, first_errors
from minos_ray.evaluation.metrics import verdicts
from minos_ray.evaluation.statistics import LEVEL, resamples
from minos_ray.sections import Evaluate

Interval = list[float] | None


def outcome_intervals(
    scores: np.ndarray, correct: np.ndarray, threshold: float, unread: np.ndarray, settings: Evaluate
) -> dict[str, Interval]:
    """Of accuracy and AUC."""
    hit = verdicts(scores, correct, threshold, unread) == correct
    ones = np.ones(len(hit))
    return {
        "accuracy_ci": interval(ratios(weights(len(hit), settings), hit, ones)),
        "auc_ci": interval(aucs(weights(int((~unread).sum()), settings), scores[~unread], correct[~unread])),
    }


def step_intervals(both: Aligned, threshold: float, settings: Evaluate) -> dict[str, Interval]:
    """Of the accuracy over steps and of first-error F1; the steps of a solution stay together."""
    known = both.known
    hit = ((both.scored.values >= threshold) == (both.labelled.values == 1)) & known
    draws = weights(len(hit), settings)
    truth, said = first_errors(both.labels), both.said(threshold)
    return {
        "accuracy_ci": interval(ratios(draws, hit.sum(axis=1), known.sum(axis=1))),
        "first_error_f1_ci": interval(first_error_f1s(weights(len(truth), settings), said == truth, truth)),
    }


def weights(solutions: int, settings: Evaluate) -> Iterator[np.ndarray]:
    """How often each solution is drawn, in blocks of resamples; the same for the same number of solutions."""
    return resamples(solutions, settings.bootstrap, settings.seed) if solutions else iter(())


def ratios(draws: Iterator[np.ndarray], part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """One sum over another in each resample."""
    return np.concatenate([np.zeros(0), *(divided(w @ part, w @ whole) for w in draws)])


def first_error_f1s(draws: Iterator[np.ndarray], hit: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """First-error F1 of each resample; NaN where it has no wrong or no right solution."""
    wrong, right = truth >= 0, truth == ALL_RIGHT
    columns = np.stack([hit & wrong, wrong, hit & right, right], axis=1).astype(np.float64)
    found = [np.zeros(0)]
    for draw in draws:
        sums = draw @ columns
        a, b = divided(sums[:, 0], sums[:, 1]), divided(sums[:, 2], sums[:, 3])
        found.append(np.where(a + b == 0, 0.0, divided(2 * a * b, a + b)))
    return np.concatenate(found)


def aucs(draws: Iterator[np.ndarray], scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """AUC of each resample, ties counting half; NaN where only one class was drawn."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0])) if len(order) else order
    found = [np.zeros(0)]
    for draw in draws:
        ups, downs = (np.add.reduceat(draw[:, order] * side[order], starts, axis=1) for side in (truth, ~truth))
        below = np.cumsum(downs, axis=1) - downs / 2
        found.append(divided((ups * below).sum(axis=1), ups.sum(axis=1) * downs.sum(axis=1)))
    return np.concatenate(found)


def divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def interval(values: np.ndarray) -> Interval:
    """The middle 95 %; None when nothing is defined."""
    known = values[~np.isnan(values)]
    tail = 50 * (1 - LEVEL)
    return np.percentile(known, [tail, 100 - tail]).tolist() if len(known) else None
