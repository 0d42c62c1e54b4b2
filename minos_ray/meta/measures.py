"""Thresholds chosen on one labelled set for use on others, and 95 % bootstrap intervals of the measures of a set.

Both are exact or by problem: thresholds are tried half-way between all neighbouring scores, and problems are drawn with
all their solutions, since solutions of one problem are alike and drawing them one by one gives intervals that are far
too short.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.statistics import BLOCK, TAILS, bootstrap, one_more, resamples
from minos_ray.evaluation.verdicts import ALL_RIGHT, THRESHOLD, Aligned, first_errors, predict

Interval = list[float] | None


class Threshold(NamedTuple):
    """The lowest scores that count as right, of steps and of solutions, and their source: `given`, or a set."""

    step: float
    outcome: float
    source: str


def best_first_error(steps: Aligned) -> float | None:
    """The threshold of the highest first-error F1; None where right or wrong solutions are missing.

    A right solution is a hit when t is at most its lowest score; one whose first error is at step e when t is above the
    score of e and at most all scores before it. So each is a hit for t in an interval (low, high] of its own.
    """
    truth = first_errors(steps.labels)
    wrong, right = (truth >= 0).sum(), (truth == ALL_RIGHT).sum()
    if not wrong or not right or not steps.complete.any():
        return None
    scores, truth = steps.scored.values, truth[steps.complete]
    thresholds = midpoints(scores)
    first_error, start = truth[truth >= 0], steps.scored.starts[truth >= 0]
    ends = np.stack([start, start + first_error], axis=1).ravel()
    lowest_before = np.where(first_error > 0, np.minimum.reduceat(scores, ends)[::2], np.inf)
    on_wrong = count_containing(scores[start + first_error], lowest_before, thresholds) / wrong
    lowest = steps.scored.lowest()[truth == ALL_RIGHT]
    on_right = count_containing(np.full(len(lowest), -np.inf), lowest, thresholds) / right
    total = on_wrong + on_right
    f1 = np.divide(2 * on_wrong * on_right, total, out=np.zeros_like(total), where=total > 0)
    return argmax_near_half(thresholds, f1)


def best_outcome(scores: np.ndarray, correct: np.ndarray) -> float:
    """The threshold of the highest accuracy over scored solutions [solutions]; 0.5 without any."""
    if not len(scores):
        return THRESHOLD
    right, wrong = scores[correct], scores[~correct]
    # Below all scores everything is accepted, above all nothing: both count as thresholds, too.
    ends = [0.0] if scores.max() >= 1 else [0.0, (1 + scores.max()) / 2]
    thresholds = np.concatenate([midpoints(scores), ends])
    hits = count_containing(np.full(len(right), -np.inf), right, thresholds)
    return argmax_near_half(thresholds, hits + count_containing(wrong, np.full(len(wrong), np.inf), thresholds))


def count_containing(low: np.ndarray, high: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[points]: how many of the intervals (low, high] contain each."""
    real = low < high
    return np.searchsorted(np.sort(low[real]), points) - np.searchsorted(np.sort(high[real]), points)


def midpoints(values: np.ndarray) -> np.ndarray:
    """Half-way between neighbouring distinct values."""
    distinct = np.unique(values)
    return (distinct[1:] + distinct[:-1]) / 2


def argmax_near_half(thresholds: np.ndarray, quality: np.ndarray) -> float:
    """The threshold of the highest quality, of several the one nearest to 0.5; 0.5 without any."""
    if not len(thresholds):
        return THRESHOLD
    top = thresholds[quality >= quality.max() - 1e-12]
    return float(top[np.abs(top - THRESHOLD).argmin()])


def outcome_intervals(
    scores: np.ndarray,
    correct: np.ndarray,
    threshold: float,
    problem: np.ndarray,
    settings: Evaluate,
) -> dict[str, Interval]:
    """Of accuracy and AUC; all arrays are [solutions], `problem` numbers the problem of each. AUC is not smoothed."""
    hit, scored = predict(scores, correct, threshold) == correct, ~np.isnan(scores)
    accuracies = ratios(
        sum_by_problem(problem, hit[:, None]), sum_by_problem(problem, np.ones((len(hit), 1))), settings
    )
    _, scored_problem = np.unique(problem[scored], return_inverse=True)
    draws: Iterator[np.ndarray] = iter(())
    if len(scored_problem):
        draws = resamples(int(scored_problem.max()) + 1, settings.bootstrap, settings.seed)
    return {
        "accuracy_ci": interval(accuracies),
        "auc_ci": interval(aucs(draws_of_solutions(draws, scored_problem), scores[scored], correct[scored])),
    }


def step_intervals(steps: Aligned, threshold: float, problem: np.ndarray, settings: Evaluate) -> dict[str, Interval]:
    """Of the accuracy over steps and of first-error F1; `problem` [solutions] numbers the problem of each."""
    labelled = steps.has_label
    hit = (steps.scored.values[labelled] >= threshold) == (steps.labelled.values[labelled] == 1)
    of_step = np.repeat(problem[steps.complete], steps.labelled.lengths)[labelled]
    sizes = sum_by_problem(of_step, np.ones((len(hit), 1)))
    predicted, truth = steps.predicted_first_errors(threshold), first_errors(steps.labels)
    return {
        "accuracy_ci": interval(ratios(sum_by_problem(of_step, hit[:, None]), sizes, settings)),
        "first_error_f1_ci": interval(first_error_f1s(predicted, truth, problem, settings)),
    }


def sum_by_problem(problem: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[problems, columns]: sums of `values` [rows, columns] over the rows of each problem that has one."""
    numbers, index = np.unique(problem, return_inverse=True)
    sums = np.zeros((len(numbers), values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def ratios(hits: np.ndarray, sizes: np.ndarray, settings: Evaluate) -> np.ndarray:
    """[resamples, columns]: smoothed bootstrap of sum(hits) / sum(sizes), both [problems, columns], cut to 0..1.

    NaN where no problem with a size was drawn. One problem more has the mean size.
    """
    if not len(hits):
        return np.zeros((0, hits.shape[1]))
    mean_size = np.where(sizes.any(axis=0), sizes.mean(axis=0), 1.0)
    step = one_more(hits / mean_size) / len(hits)
    return np.clip(bootstrap(hits, sizes, step, settings.bootstrap, settings.seed, hits.shape[1]), 0, 1)


def first_error_f1s(predicted: np.ndarray, truth: np.ndarray, problem: np.ndarray, settings: Evaluate) -> np.ndarray:
    """[resamples]: first-error F1 of each; NaN where it has no wrong or no right solution. Arrays are [solutions]."""
    sides = np.stack([truth >= 0, truth == ALL_RIGHT], axis=1)
    determined = sides.any(axis=1)
    hits = sum_by_problem(problem[determined], (sides & (predicted == truth)[:, None])[determined])
    return harmonic_means(ratios(hits, sum_by_problem(problem[determined], sides[determined]), settings))


def harmonic_means(pairs: np.ndarray) -> np.ndarray:
    """[rows]: harmonic means of [rows, 2]; 0 where both are 0."""
    total = pairs.sum(axis=1)
    return np.where(total == 0, 0.0, divide(2 * pairs.prod(axis=1), total))


def draws_of_solutions(draws: Iterator[np.ndarray], problem: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks [resamples, solutions] of at most `BLOCK` entries: each solution is drawn as often as its problem."""
    for draw in draws:
        for part in np.array_split(draw, -(-len(draw) * len(problem) // BLOCK)):
            yield part[:, problem]


def aucs(draws: Iterator[np.ndarray], scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[resamples]: AUC of each, ties counting half; NaN where only one class was drawn.

    All resamples of a block at once: scikit-learn's roc_auc_score takes one set of weights.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(scores[order]) > 0])) if len(order) else order
    values = [np.zeros(0)]
    for draw in draws:
        right, wrong = (np.add.reduceat(draw[:, order] * side[order], starts, axis=1) for side in (truth, ~truth))
        below = np.cumsum(wrong, axis=1) - wrong / 2
        values.append(divide((right * below).sum(axis=1), right.sum(axis=1) * wrong.sum(axis=1)))
    return np.concatenate(values)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, NaN where b is 0."""
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def interval(values: np.ndarray) -> Interval:
    """The middle 95 % of the defined values; None when none is."""
    defined = values[~np.isnan(values)]
    return np.percentile(defined, TAILS).tolist() if len(defined) else None
