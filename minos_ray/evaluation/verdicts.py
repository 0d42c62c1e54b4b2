"""The verifier judged itself, without a generator: its scores against outcome labels and step labels.

The threshold of the verdicts is never chosen here: it is 0.5 or comes from other data.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.metrics import THRESHOLD, binary, harmonic

# Where a solution's first wrong step is not a step number; `Steps.first` gives the first of them.
ALL_RIGHT, UNKNOWN, UNSCORED = -1, -2, -3


class Steps(NamedTuple):
    """Values of the steps of all solutions one after the other, [steps], and how many each has, [solutions]."""

    values: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Where the values of each solution begin."""
        return np.cumsum(self.lengths) - self.lengths

    def some(self, chosen: np.ndarray) -> "Steps":
        """Some solutions, [solutions] of bool."""
        return Steps(self.values[np.repeat(chosen, self.lengths)], self.lengths[chosen])

    def first(self, found: np.ndarray) -> np.ndarray:
        """Number of the first step of each solution that is `found`, [steps] of bool; -1 without one."""
        starts, at = self.starts, np.append(np.flatnonzero(found), len(found))
        following = at[np.searchsorted(at, starts)]
        return np.where(following < starts + self.lengths, following - starts, -1)

    def lowest(self) -> np.ndarray:
        """The lowest value of each solution; all must have a step."""
        return np.minimum.reduceat(self.values, self.starts)

    def first_lowest(self) -> np.ndarray:
        """Number of the first step that has it."""
        return self.first(self.values == np.repeat(self.lowest(), self.lengths))


def flat(column: pa.ChunkedArray | pa.Array) -> Steps:
    """A column of lists (null is an empty one)."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    return Steps(pc.list_flatten(column).to_numpy().astype(np.float64), lengths)


def outcome(verifier: str, scores: np.ndarray, correct: np.ndarray, threshold: float = THRESHOLD) -> dict[str, Any]:
    """Outcome level: one row for the verifier (or the critic, whose score is its verdict)."""
    right = float(correct.mean()) if len(correct) else None
    facts = {"examples": len(scores), "right_share": right, "threshold": threshold}
    measures = {**facts, **binary(scores, correct, threshold), "unscored": int(np.isnan(scores).sum())}
    return {"verifier": verifier, "level": "outcome", **measures}


class Aligned(NamedTuple):
    """Step scores beside step labels; `whole` says which solutions have both, the first two hold only those."""

    scored: Steps
    labelled: Steps
    whole: np.ndarray
    labels: Steps

    @property
    def known(self) -> np.ndarray:
        """Which steps of the whole solutions are labelled."""
        return self.labelled.values >= 0

    def said(self, threshold: float) -> np.ndarray:
        """First wrong step that is claimed of every solution, UNSCORED where there are no scores."""
        said = np.full(len(self.whole), UNSCORED)
        said[self.whole] = said_first_errors(self.scored, threshold)
        return said


def aligned(step_scores: pa.ChunkedArray, step_labels: pa.ChunkedArray) -> Aligned:
    """Scores and labels of the steps of solutions; a solution is whole when it has as many of one as of the other."""
    scores, labels = flat(step_scores), flat(step_labels)
    whole = (scores.lengths == labels.lengths) & (labels.lengths > 0)
    return Aligned(scores.some(whole), labels.some(whole), whole, labels)


def steps(
    verifier: str,
    step_scores: pa.ChunkedArray,
    step_labels: pa.ChunkedArray,
    threshold: float = THRESHOLD,
    by_step: bool = False,
) -> dict[str, Any] | None:
    """Step level over labelled steps (label 0 or 1), with first errors; None without any labelled and scored step.

    A solution that could not be scored leaves the metrics of steps, and is a miss where first errors are counted: so
    there is a row for a verifier that scores steps (`by_step`), even when it could score no solution.
    """
    both = aligned(step_scores, step_labels)
    known = both.known
    if not known.any() and not (by_step and (both.labels.values >= 0).any()):
        return None
    scores, right = both.scored.values[known], both.labelled.values[known] == 1
    truth = first_errors(both.labels)
    return {
        **outcome(verifier, scores, right, threshold),
        "level": "step",
        "unscored": int(((both.labels.lengths > 0) & ~both.whole).sum()),
        "confusion": confusion(scores >= threshold, right),
        **first_error_f1(both.said(threshold), truth),
        "min": where_min_falls(both.scored, truth[both.whole]),
    }


def confusion(said: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """True and false positives and negatives; positive is right."""
    pairs = {"tp": said & truth, "fp": said & ~truth, "tn": ~said & ~truth, "fn": ~said & truth}
    return {name: int(pair.sum()) for name, pair in pairs.items()}


def first_errors(labels: Steps) -> np.ndarray:
    """Number of the first wrong step of each solution; ALL_RIGHT, or UNKNOWN when an unlabelled step leaves it open."""
    wrong, doubtful = labels.first(labels.values == 0), labels.first(labels.values != 1)
    return np.where((wrong == doubtful) & (labels.lengths > 0), wrong, UNKNOWN)


def said_first_errors(scores: Steps, threshold: float) -> np.ndarray:
    """Number of the first step scored below the threshold, ALL_RIGHT without one."""
    return scores.first(scores.values < threshold)


def first_error_f1(said: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """ProcessBench: exact match on wrong and on right solutions, and their harmonic mean (2412.06559)."""
    hit, wrong, right = said == truth, truth >= 0, truth == ALL_RIGHT
    shares = [float(hit[side].mean()) if side.any() else None for side in (wrong, right)]
    return {
        "first_error_f1": None if None in shares else harmonic(*shares),
        "accuracy_on_wrong": shares[0],
        "accuracy_on_right": shares[1],
        "wrong_solutions": int(wrong.sum()),
        "right_solutions": int(right.sum()),
    }


def where_min_falls(scores: Steps, truth: np.ndarray) -> dict[str, Any]:
    """Where the lowest step score lies: by step, and for wrong solutions before, at or after the first error."""
    lowest = scores.first_lowest() if len(scores.lengths) else np.zeros(0, np.int64)
    gap = (lowest - truth)[truth >= 0]
    sides = {"before": int((gap < 0).sum()), "at": int((gap == 0).sum()), "after": int((gap > 0).sum())}
    return {"by_step": np.bincount(lowest).tolist(), "first_error": sides}
