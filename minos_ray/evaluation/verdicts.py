"""How good a verifier is by itself, without a generator: its scores against outcome labels and step labels, and errors
by type, as in the paper's error analysis, with those of them that it detects.

The positive class is `right`, predicted from a threshold on. The threshold is never chosen here: it is 0.5 or comes
from other data.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.schema import ERROR_TYPES
from minos_ray.evaluation.candidates import Block
from minos_ray.evaluation.statistics import wilson
from minos_ray.training.results import MARGIN, Platt, auc

THRESHOLD = 0.5
BINS = 10
PROBABILITIES = ("ece", "ece_equal_mass", "brier", "log_loss")
# In place of the number of a first wrong step: no step is wrong; labels leave it open; the solution has no scores.
ALL_RIGHT, UNKNOWN, UNSCORED = -1, -2, -3
UNTYPED = "untyped"
# Verifier -> type -> number of wrong candidates, and how many of them it rejects.
Rejected = dict[str, dict[str, tuple[int, int]]]


def binary(scores: np.ndarray, truth: np.ndarray, threshold: float = THRESHOLD) -> dict[str, float | None]:
    """Accuracy, F1, macro F1, AUC and the measures of `probabilities`; all None without any example.

    `scores` in 0..1 and `truth` are [examples]. An example without a score (NaN) counts as a wrong prediction, whatever
    is true, and is left out of all but accuracy, F1 and macro F1.
    """
    if not len(scores):
        return dict.fromkeys(("accuracy", "f1", "macro_f1", "auc", *PROBABILITIES))
    truth = truth.astype(bool)
    predicted = predict(scores, truth, threshold)
    counts = confusion(predicted, truth)
    by_class = {
        "accuracy": float((predicted == truth).mean()),
        "macro_f1": macro_f1(counts),
        "f1": f1(counts["tp"], counts["fp"], counts["fn"]),
    }
    scored = ~np.isnan(scores)
    area = auc(scores[scored], truth[scored]) if scored.any() else None
    return by_class | {"auc": area, **probabilities(scores, truth)}


def probabilities(scores: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """How far scores are from chances of being right: calibration errors, Brier score and log loss (natural).

    `ece` has `BINS` equally wide bins, `ece_equal_mass` bins between quantiles of the scores, which hold about equally
    many. Examples without a score (NaN) are left out; all None without any other.
    """
    scored = ~np.isnan(scores)
    scores, truth = scores[scored], truth[scored]
    if not len(scores):
        return dict.fromkeys(PROBABILITIES)
    # Of sorted scores: numpy sorts faster than it finds nine places.
    quantiles = np.quantile(np.sort(scores).astype(np.float64), np.linspace(0, 1, BINS + 1)[1:-1])
    scores = scores.astype(np.float64)
    bins = {"ece": equally_wide(scores), "ece_equal_mass": np.searchsorted(quantiles, scores)}
    sums = {name: bin_sums(scores, truth, place)[1:] for name, place in bins.items()}
    chances = np.clip(scores, MARGIN, 1 - MARGIN)
    return {name: float(np.abs(predicted - right).sum() / len(scores)) for name, (predicted, right) in sums.items()} | {
        "brier": float(((scores - truth) ** 2).mean()),
        "log_loss": float(-np.log(np.where(truth, chances, 1 - chances)).mean()),
    }


def equally_wide(scores: np.ndarray) -> np.ndarray:
    """[examples]: the bin of each score."""
    return np.minimum((scores * BINS).astype(int), BINS - 1)


def predict(scores: np.ndarray, truth: np.ndarray, threshold: float) -> np.ndarray:
    """[examples]: whether each is predicted to be right; without a score (NaN) always the opposite of the truth."""
    return np.where(np.isnan(scores), ~truth, scores >= threshold)


def confusion(predicted: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """True and false positives and negatives of two arrays of bool; positive is right."""
    hits, positive, right = int((predicted & truth).sum()), int(predicted.sum()), int(truth.sum())
    return {"tp": hits, "fp": positive - hits, "tn": len(truth) - positive - right + hits, "fn": right - hits}


# scikit-learn's f1_score, against which tests compare this, takes 20 times as long on 300,000 examples, and a second to
# import.
def f1(hits: int, false: int, missed: int) -> float:
    """Harmonic mean of precision and recall of a class; 0 where it is neither predicted nor true."""
    return 2 * hits / (2 * hits + false + missed) if hits + false + missed else 0.0


def macro_f1(counts: Mapping[str, int]) -> float:
    """Mean of the F1 of the classes right and wrong; `counts` as in `confusion`."""
    right = f1(counts["tp"], counts["fp"], counts["fn"])
    return (right + f1(counts["tn"], counts["fn"], counts["fp"])) / 2


def bin_sums(scores: np.ndarray, truth: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples, sum of scores and number of right ones in each of `BINS` bins; no score may be NaN."""
    return np.bincount(place, minlength=BINS), np.bincount(place, scores, BINS), np.bincount(place, truth, BINS)


def calibration(scores: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """The bins that hold a scored example: mean score, fraction of right ones, and number of examples."""
    scored = ~np.isnan(scores)
    scores, truth = scores[scored].astype(np.float64), truth[scored]
    columns = zip(*bin_sums(scores, truth, equally_wide(scores)), strict=True)
    return [{"score": total / n, "correct": right / n, "rows": int(n)} for n, total, right in columns if n]


class Steps(NamedTuple):
    """Values of the steps of all solutions one after the other [steps], and the number of steps of each [solutions]."""

    values: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """[solutions]: index of the first value of each."""
        return np.cumsum(self.lengths) - self.lengths

    def select(self, solutions: np.ndarray) -> "Steps":
        """The solutions chosen by a mask, [solutions] of bool."""
        return Steps(self.values[np.repeat(solutions, self.lengths)], self.lengths[solutions])

    def first_true(self, mask: np.ndarray) -> np.ndarray:
        """[solutions]: number of the first step for which `mask`, [steps] of bool, is true; -1 without one."""
        starts, true = self.starts, np.append(np.flatnonzero(mask), len(mask))
        following = true[np.searchsorted(true, starts)]
        return np.where(following < starts + self.lengths, following - starts, -1)

    def lowest(self) -> np.ndarray:
        """[solutions]: the lowest value of each; all must have a step."""
        return np.minimum.reduceat(self.values, self.starts)

    def first_lowest(self) -> np.ndarray:
        """[solutions]: number of the first step with the lowest value of each; all must have a step."""
        return self.first_true(self.values == np.repeat(self.lowest(), self.lengths))


def flat(column: pa.ChunkedArray | pa.Array) -> Steps:
    """A column of lists; null counts as an empty list."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    return Steps(pc.list_flatten(column).to_numpy().astype(np.float64), lengths)


class Aligned(NamedTuple):
    """Step scores beside step labels.

    `complete`, [solutions] of bool, marks those that have as many scores as labels, and at least one; `scored` and
    `labelled` hold only these. `labels` are those of all solutions.
    """

    scored: Steps
    labelled: Steps
    complete: np.ndarray
    labels: Steps

    @property
    def has_label(self) -> np.ndarray:
        """[steps of `labelled`]: whether the step is labelled right or wrong."""
        return self.labelled.values >= 0

    def predicted_first_errors(self, threshold: float) -> np.ndarray:
        """[solutions]: number of the first step below the threshold; ALL_RIGHT without one, UNSCORED without scores."""
        predicted = np.full(len(self.complete), UNSCORED)
        predicted[self.complete] = self.scored.first_true(self.scored.values < threshold)
        return predicted


def align_steps(step_scores: pa.ChunkedArray, step_labels: pa.ChunkedArray) -> Aligned:
    """Two columns of lists, one list for each solution, as arrays side by side."""
    scores, labels = flat(step_scores), flat(step_labels)
    complete = (scores.lengths == labels.lengths) & (labels.lengths > 0)
    return Aligned(scores.select(complete), labels.select(complete), complete, labels)


def any_label(labels: pa.ChunkedArray) -> pa.Array:
    """[solutions] of bool: which have a step labelled right or wrong."""
    steps = flat(labels)
    owners = np.repeat(np.arange(len(steps.lengths)), steps.lengths)
    return pa.array(np.bincount(owners[steps.values >= 0], minlength=len(steps.lengths)) > 0)


def outcome_row(verifier: str, scores: np.ndarray, correct: np.ndarray, threshold: float = THRESHOLD) -> dict[str, Any]:
    """The row of `meta` in evaluation.json for solutions; `scores` and `correct` are [solutions].

    A critic's score is its verdict.
    """
    return {
        "verifier": verifier,
        "level": "outcome",
        "examples": len(scores),
        "right_share": float(correct.mean()) if len(correct) else None,
        "threshold": threshold,
        **binary(scores, correct, threshold),
        "unscored": int(np.isnan(scores).sum()),
    }


def step_row(
    verifier: str,
    step_scores: pa.ChunkedArray,
    step_labels: pa.ChunkedArray,
    threshold: float = THRESHOLD,
    by_step: bool = False,
    platt: Platt | None = None,
) -> dict[str, Any] | None:
    """The row of `meta` for labelled steps (label 0 or 1), with first errors; None without a labelled and scored step.
    Of a calibrated verifier also what its scores were before.

    A solution that could not be scored is left out of the measures of steps, and is a miss where first errors are
    counted: so a verifier that scores steps (`by_step`) has a row even when it could score no solution.
    """
    steps = align_steps(step_scores, step_labels)
    labelled = steps.has_label
    if not labelled.any() and not (by_step and (steps.labels.values >= 0).any()):
        return None
    scores, right = steps.scored.values[labelled], steps.labelled.values[labelled] == 1
    truth = first_errors(steps.labels)
    return {
        **outcome_row(verifier, scores, right, threshold),
        "level": "step",
        "unscored": int(((steps.labels.lengths > 0) & ~steps.complete).sum()),
        "confusion": confusion(scores >= threshold, right),
        **first_error_f1(steps.predicted_first_errors(threshold), truth),
        "min": where_min_falls(steps.scored, truth[steps.complete]),
        **({"uncalibrated": probabilities(platt.before(scores), right)} if platt else {}),
    }


def first_errors(labels: Steps) -> np.ndarray:
    """[solutions]: number of the first wrong step; ALL_RIGHT, or UNKNOWN when an unlabelled step leaves it open."""
    wrong, not_right = labels.first_true(labels.values == 0), labels.first_true(labels.values != 1)
    return np.where((wrong == not_right) & (labels.lengths > 0), wrong, UNKNOWN)


def first_error_f1(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Exact match on wrong and on right solutions, and their harmonic mean (ProcessBench, 2412.06559).

    Both are [solutions] of numbers of first wrong steps; solutions whose truth is UNKNOWN are left out.
    """
    hit, wrong, right = predicted == truth, truth >= 0, truth == ALL_RIGHT
    on_wrong, on_right = (float(hit[side].mean()) if side.any() else None for side in (wrong, right))
    harmonic = None
    if on_wrong is not None and on_right is not None:
        harmonic = 2 * on_wrong * on_right / (on_wrong + on_right) if on_wrong + on_right else 0.0
    return {
        "first_error_f1": harmonic,
        "accuracy_on_wrong": on_wrong,
        "accuracy_on_right": on_right,
        "wrong_solutions": int(wrong.sum()),
        "right_solutions": int(right.sum()),
    }


def where_min_falls(scores: Steps, truth: np.ndarray) -> dict[str, Any]:
    """Where the lowest step score lies: by step number, and before, at or after the first error of wrong solutions."""
    steps = scores.first_lowest() if len(scores.lengths) else np.zeros(0, np.int64)
    gap = (steps - truth)[truth >= 0]
    sides = {"before": int((gap < 0).sum()), "at": int((gap == 0).sum()), "after": int((gap > 0).sum())}
    return {"by_step": np.bincount(steps).tolist(), "first_error": sides}


class Errors(NamedTuple):
    """Wrong steps in order: the candidate (row) and the type of each, both [wrong steps]."""

    candidates: int
    owners: np.ndarray
    types: np.ndarray

    def first(self) -> np.ndarray:
        """[candidates]: the type of each candidate's first wrong step; `untyped` when no step has a type."""
        types = np.full(self.candidates, UNTYPED, dtype=object)
        owners, places = np.unique(self.owners, return_index=True)
        types[owners] = self.types[places]
        return types


def errors(column: pa.ChunkedArray) -> Errors:
    """The wrong steps in a column `error_types`, where a right step has an empty text."""
    lists = column.combine_chunks()
    flat = pc.list_flatten(lists)
    typed = pc.not_equal(flat, "")
    owners, types = pc.list_parent_indices(lists).filter(typed), flat.filter(typed)
    return Errors(len(lists), owners.to_numpy(), types.to_numpy(zero_copy_only=False))


def counts(errors: Errors) -> dict[str, dict[str, int]]:
    """By type: wrong steps, candidates with such a step, candidates whose first error it is."""
    steps = Counter(errors.types.tolist())
    first = Counter(errors.types[np.unique(errors.owners, return_index=True)[1]].tolist())
    candidates = Counter(kind for _, kind in set(zip(errors.owners.tolist(), errors.types.tolist(), strict=True)))
    return {
        kind: {"steps": steps[kind], "candidates": candidates[kind], "first": first[kind]}
        for kind in paper_types_first(steps)
    }


def paper_types_first(types: Iterable[str]) -> list[str]:
    """All of the paper's types, then the others that occur (`untyped`, and those of imported labels)."""
    return [*ERROR_TYPES, *sorted(set(types) - set(ERROR_TYPES))]


def rejected(scores: Mapping[str, np.ndarray], correct: np.ndarray, errors: Errors) -> Rejected:
    """By verifier and type of the first error: wrong candidates, and those of them scored below the threshold.

    A candidate without a score (NaN) is not rejected.
    """
    rows = {UNTYPED: ~correct}
    if len(errors.owners):
        first = errors.first()
        rows = {kind: ~correct & (first == kind) for kind in paper_types_first(first)}
    return {
        name: {
            kind: (int(mask.sum()), int((score[mask] < THRESHOLD).sum())) for kind, mask in rows.items() if mask.any()
        }
        for name, score in scores.items()
    }


@dataclass
class ErrorTally:
    """Wrong candidates over the blocks of a split; wrong steps by type and by what is counted, as in `counts`; and
    `wrong` and `rejected` candidates by verifier and by the type of their first error."""

    wrong: int = 0
    types: Counter[tuple[str, str]] = field(default_factory=Counter)
    rejected: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, block: Block) -> None:
        """Adds the candidates of a block."""
        candidates = block.candidates
        wrong_steps = errors(candidates.rows["error_types"])
        not_wrong = candidates.correct | ~candidates.graded
        self.wrong += int((~not_wrong).sum())
        for kind, numbers in counts(wrong_steps).items():
            self.types.update({(kind, name): number for name, number in numbers.items()})
        scores = {name: table.score for name, table in block.scores.items()}
        for name, of_type in rejected(scores, not_wrong, wrong_steps).items():
            for kind, (wrong, rejects) in of_type.items():
                self.rejected.update({(name, kind, "wrong"): wrong, (name, kind, "rejected"): rejects})

    def merge(self, block: "ErrorTally") -> None:
        """Adds what another block has added up."""
        self.wrong += block.wrong
        self.types.update(block.types)
        self.rejected.update(block.rejected)

    def by_type(self) -> dict[str, dict[str, int]]:
        """By type: wrong steps, candidates with such a step, candidates whose first error it is."""
        names, kinds = ("steps", "candidates", "first"), paper_types_first(kind for kind, _ in self.types)
        return {kind: {name: self.types[kind, name] for name in names} for kind in kinds}

    def rejected_fractions(self) -> dict[str, dict[str, dict[str, float]]]:
        """By verifier and type of the first error: wrong candidates, and the fraction of them that it rejects."""
        fractions: dict[str, dict[str, dict[str, float]]] = {name: {} for name, *_ in self.rejected}
        for kind in paper_types_first(kind for _, kind, _ in self.rejected):
            for name, of_type in fractions.items():
                if wrong := self.rejected[name, kind, "wrong"]:
                    of_type[kind] = {"wrong": wrong, "share": self.rejected[name, kind, "rejected"] / wrong}
        return fractions


def by_critic(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The critic's types of wrong steps (rows of `error_types`): counts by source and type, and where the type is known
    the confusion matrix `[known][type]`, the accuracy and its 95 % Wilson interval over steps."""
    by_source: dict[str, Counter[str]] = {}
    matrix = {kind: dict.fromkeys(ERROR_TYPES, 0) for kind in ERROR_TYPES}
    unread: Counter[str] = Counter()
    for row in rows:
        if row["type"] is None:
            unread[row["status"]] += 1
            continue
        by_source.setdefault(row["source"], Counter())[row["type"]] += 1
        if row["known"]:
            matrix[row["known"]][row["type"]] += 1
    right, steps = sum(matrix[kind][kind] for kind in matrix), sum(sum(line.values()) for line in matrix.values())
    accuracy = None
    if steps:
        low, high = wilson(right, steps)
        accuracy = {"value": right / steps, "ci_low": low, "ci_high": high, "steps": steps}
    return {
        "by_source": {name: {kind: count[kind] for kind in ERROR_TYPES} for name, count in sorted(by_source.items())},
        "unread": dict(unread),
        "confusion": matrix if steps else {},
        "accuracy": accuracy,
    }
