"""95 % bootstrap intervals of the measures of `minos meta`: problems are drawn, each with all its solutions.

Solutions of one problem are alike, so that drawing them one by one gives intervals that are far too short.
"""

from collections.abc import Iterator

import numpy as np

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.metrics import verdicts
from minos_ray.evaluation.statistics import BLOCK, LEVEL, one_more, resampled_means, resamples
from minos_ray.evaluation.verdicts import ALL_RIGHT, Aligned, first_errors

Interval = list[float] | None


def outcome_intervals(
    scores: np.ndarray,
    correct: np.ndarray,
    threshold: float,
    problem: np.ndarray,
    settings: Evaluate,
) -> dict[str, Interval]:
    """Of accuracy and AUC; `problem` numbers the problem of each solution. AUC is not smoothed."""
    hit, scored = verdicts(scores, correct, threshold) == correct, ~np.isnan(scores)
    whole = by_problem(problem, np.ones((len(hit), 1)))
    _, drawn = np.unique(problem[scored], return_inverse=True)
    draws = resamples(int(drawn.max()) + 1, settings.bootstrap, settings.seed) if len(drawn) else iter(())
    return {
        "accuracy_ci": interval(shares(by_problem(problem, hit[:, None]), whole, settings)),
        "auc_ci": interval(aucs(of_solutions(draws, drawn), scores[scored], correct[scored])),
    }


def step_intervals(both: Aligned, threshold: float, problem: np.ndarray, settings: Evaluate) -> dict[str, Interval]:
    """Of the accuracy over steps and of first-error F1; `problem` numbers the problem of each solution."""
    known = both.known
    hit = (both.scored.values[known] >= threshold) == (both.labelled.values[known] == 1)
    of_step = np.repeat(problem[both.whole], both.labelled.lengths)[known]
    whole = by_problem(of_step, np.ones((len(hit), 1)))
    said, truth = both.said(threshold), first_errors(both.labels)
    return {
        "accuracy_ci": interval(shares(by_problem(of_step, hit[:, None]), whole, settings)),
        "first_error_f1_ci": interval(first_error_f1s(said, truth, problem, settings)),
    }


def by_problem(problem: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of [rows, columns] over the rows of each problem that has one: [problems, columns]."""
    names, at = np.unique(problem, return_inverse=True)
    found = np.zeros((len(names), values.shape[1]))
    np.add.at(found, at, values)
    return found


def shares(part: np.ndarray, whole: np.ndarray, settings: Evaluate) -> np.ndarray:
    """Resampled sum(part) / sum(whole) of [problems, columns], in 0..1: [resamples, columns]; NaN where whole is 0.

    Smoothed as `statistics.intervals` does: by one problem more of the mean size.
    """
    if not len(part):
        return np.zeros((0, part.shape[1]))
    draws = resamples(len(part), settings.bootstrap, settings.seed)
    means = np.concatenate([resampled_means(draw, part, whole) for draw in draws])
    size = np.where(whole.any(axis=0), whole.mean(axis=0), 1.0)
    noise = np.random.default_rng([settings.seed, 1]).standard_normal(means.shape)
    return np.clip(means + noise * one_more(part / size) / len(part), 0, 1)


def first_error_f1s(said: np.ndarray, truth: np.ndarray, problem: np.ndarray, settings: Evaluate) -> np.ndarray:
    """First-error F1 of each resample; NaN where it has no wrong or no right solution."""
    sides = np.stack([truth >= 0, truth == ALL_RIGHT], axis=1)
    told = sides.any(axis=1)
    hit = by_problem(problem[told], (sides & (said == truth)[:, None])[told])
    return harmonics(shares(hit, by_problem(problem[told], sides[told]), settings))


def harmonics(pairs: np.ndarray) -> np.ndarray:
    """Harmonic means of [resamples, 2]."""
    total = pairs.sum(axis=1)
    return np.where(total == 0, 0.0, divided(2 * pairs.prod(axis=1), total))


def of_solutions(draws: Iterator[np.ndarray], problem: np.ndarray) -> Iterator[np.ndarray]:
    """How often each solution is drawn, as often as its problem, in blocks that are no larger."""
    for draw in draws:
        for some in np.array_split(draw, -(-len(draw) * len(problem) // BLOCK)):
            yield some[:, problem]


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
