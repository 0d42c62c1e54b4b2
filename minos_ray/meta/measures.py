"""The measures of `minos meta`: thresholds, bootstrap intervals, means over sets, PRMScore, and everything as text.

Thresholds that are chosen on one labelled set for use on others are exact: they are tried half-way between all
neighbouring scores. For the 95 % intervals problems are drawn with all their solutions, since solutions of one problem
are alike and drawing them one by one gives intervals that are far too short.

PRMScore (PRMBench, 2501.03124) is 0.5 * F1 + 0.5 * F1_neg over the steps of a class. As in its own evaluation: F1 is
that of the class right, F1_neg that of wrong; the right controls are left out; a class is one score, a group the mean
of its classes, the overall score that of all steps together. `multi_solutions` has no wrong step, its score is F1.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.statistics import BLOCK, TAILS, bootstrap, one_more, resamples
from minos_ray.evaluation.verdicts import (
    ALL_RIGHT,
    PROBABILITIES,
    THRESHOLD,
    Aligned,
    f1,
    first_errors,
    macro_f1,
    predict,
)

PROCESSBENCH, MEAN = "processbench", "mean_first_error_f1"
PRMBENCH = "prmbench-"
CLASSES = {
    "redundency": "NR",
    "circular": "NCL",
    "counterfactual": "ES",
    "step_contradiction": "SC",
    "domain_inconsistency": "DC",
    "confidence": "CI",
    "missing_condition": "PS",
    "deception": "DR",
    "multi_solutions": "MS",
}
GROUPS = {"simplicity": ("NR", "NCL"), "soundness": ("ES", "SC", "DC", "CI"), "sensitivity": ("PS", "DR", "MS")}
WITHOUT_WRONG = "MS"
MEASURES = ("accuracy", "f1", "auc", "first_error_f1")
Confusion = Mapping[str, int]
Interval = list[float] | None


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """First-error F1 averaged over ProcessBench's sets, as published, and over the others; over all without any."""
    bench = [row for row in rows if row["set"].startswith(PROCESSBENCH)]
    others = [row for row in rows if not row["set"].startswith(PROCESSBENCH)]
    content = {}
    for key, sets in ((MEAN, bench or others), (f"{MEAN}_of_others", others if bench else [])):
        values: dict[str, list[float]] = {}
        for row in sets:
            if row.get("first_error_f1") is not None:
                values.setdefault(row["verifier"], []).append(row["first_error_f1"])
        content[key] = {name: float(np.mean(of_sets)) for name, of_sets in values.items()}
    return content


def prmbench(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """PRMScores by verifier: overall, groups and classes; None for what needs a class that is missing."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for row in rows:
        name = CLASSES.get(row["set"].removeprefix(PRMBENCH)) if row["set"].startswith(PRMBENCH) else None
        if name and row["level"] == "step":
            # Added up, for a class may lie in several sets.
            counts.setdefault(row["verifier"], {}).setdefault(name, Counter()).update(row["confusion"])
    scores = {}
    for verifier, classes in counts.items():
        by_class = {
            name: f1(of_class["tp"], of_class["fp"], of_class["fn"]) if name == WITHOUT_WRONG else macro_f1(of_class)
            for name, of_class in classes.items()
        }
        pooled = {key: sum(of_class[key] for of_class in classes.values()) for key in ("tp", "fp", "tn", "fn")}
        overall = macro_f1(pooled) if len(classes) == len(CLASSES) else None
        in_order = {name: by_class[name] for name in CLASSES.values() if name in by_class}
        scores[verifier] = {"overall": overall, **groups(by_class), "classes": in_order}
    return scores


def groups(by_class: Mapping[str, float]) -> dict[str, float | None]:
    """The mean of the classes of each group; None where one is missing."""
    return {
        group: sum(by_class[name] for name in names) / len(names) if by_class.keys() >= set(names) else None
        for group, names in GROUPS.items()
    }


def as_text(content: Mapping[str, Any]) -> list[str]:
    """The content of meta.json as lines: the rows, means over sets, PRMScores, and the source of thresholds."""
    bench = any(row["set"].startswith(PROCESSBENCH) for row in content["rows"])
    titles = {MEAN: "ProcessBench" if bench else "sets", f"{MEAN}_of_others": "other sets"}
    means = []
    for key, title in titles.items():
        if content[key]:
            lines = [f"{name:24} {value:.3f}" for name, value in content[key].items()]
            means += ["", f"first-error F1, mean over {title}", *lines]
    table = prmbench_lines(content["prmbench"])
    source = content["threshold_from"]
    threshold = f"thresholds chosen on {source}" if source else f"threshold {content['threshold']:g}, given"
    return [
        *row_lines(content["rows"]),
        *calibration_lines(content["rows"]),
        *means,
        *([""] if table else []),
        *table,
        "",
        threshold,
    ]


def row_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table."""
    head = f"{'set':28} {'verifier':20} {'kind':8} {'level':7} {'examples':>8} {'unscored':>8} {'threshold':>9} "
    lines = [head + " ".join(f"{name:>20}" for name in MEASURES)]
    for row in rows:
        facts = f"{row['set']:28} {row['verifier']:20} {row['kind']:8} {row['level']:7} {row['examples']:8} "
        facts += f"{row['unscored']:8} {row['threshold']:9.4g} "
        measures = []
        for name in MEASURES:  # with its interval; a dash where it is not defined
            value, ends = row.get(name), row.get(f"{name}_ci")
            text = "-" if value is None else f"{value:.3f}"
            measures.append(f"{text} [{ends[0]:.3f}, {ends[1]:.3f}]" if value is not None and ends else text)
        lines.append(facts + " ".join(f"{text:>20}" for text in measures))
    return lines


def calibration_lines(rows: list[dict[str, Any]]) -> list[str]:
    """How far the scores of calibrated verifiers are from probabilities, before and after; empty without one."""
    lines = [
        f"{row['set']:28} {row['verifier']:20} {row['level']:7} "
        + " ".join(f"{row['uncalibrated'][name]:>10.4f} -> {row[name]:.4f}" for name in PROBABILITIES)
        for row in rows
        if row.get("uncalibrated", {}).get("brier") is not None
    ]
    head = f"{'Platt scaling':28} {'':20} {'':7} " + " ".join(f"{name.replace('_', ' '):>20}" for name in PROBABILITIES)
    return ["", head, *lines] if lines else []


def prmbench_lines(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """PRMScores as a table, in per cent as published; empty without any."""
    if not scores:
        return []
    columns = ("overall", *GROUPS)
    head = f"{'PRMScore':24} " + " ".join(f"{name:>11}" for name in columns)
    lines = [f"{head} {' '.join(f'{name:>5}' for name in CLASSES.values())}"]
    for verifier, row in scores.items():
        totals = " ".join(f"{percent(row[name]):>11}" for name in columns)
        of_classes = " ".join(f"{percent(row['classes'].get(name)):>5}" for name in CLASSES.values())
        lines.append(f"{verifier:24} {totals} {of_classes}")
    return lines


def percent(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"


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
    # First-error F1 of a resample has no value where it has no wrong or no right solution.
    predicted, truth = steps.predicted_first_errors(threshold), first_errors(steps.labels)
    sides = np.stack([truth >= 0, truth == ALL_RIGHT], axis=1)
    determined = sides.any(axis=1)
    hits = sum_by_problem(problem[determined], (sides & (predicted == truth)[:, None])[determined])
    of_sides = ratios(hits, sum_by_problem(problem[determined], sides[determined]), settings)
    return {
        "accuracy_ci": interval(ratios(sum_by_problem(of_step, hit[:, None]), sizes, settings)),
        "first_error_f1_ci": interval(harmonic_means(of_sides)),
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
