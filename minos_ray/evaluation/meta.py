"""The verifier judged itself, without a generator: its scores against outcome labels and step labels.

The threshold of the verdicts is never chosen here: it is 0.5 or comes from other data.
"""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.metrics import THRESHOLD, binary, harmonic

# Where a solution's first wrong step is not a step number.
ALL_RIGHT, UNKNOWN, UNSCORED = -1, -2, -3


class Steps(NamedTuple):
    """Values of the steps of each solution, [solutions, most steps], and how many steps each has."""

    values: np.ndarray
    lengths: np.ndarray

    def some(self, chosen: np.ndarray, width: int) -> "Steps":
        """Some solutions, cut to `width` steps."""
        return Steps(self.values[chosen, :width], self.lengths[chosen])


def padded(column: pa.ChunkedArray | pa.Array, fill: float) -> Steps:
    """A column of lists (null is an empty one) as a matrix, with `fill` behind the last step."""
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    values = np.full((len(lengths), int(lengths.max(initial=0))), fill)
    values[np.arange(values.shape[1]) < lengths[:, None]] = pc.list_flatten(column).to_numpy()
    return Steps(values, lengths)


def outcome(
    verifier: str,
    scores: np.ndarray,
    correct: np.ndarray,
    threshold: float = THRESHOLD,
    unread: np.ndarray | None = None,
) -> dict[str, Any]:
    """Outcome level: one row for the verifier (or the critic, whose score is its verdict)."""
    right = float(correct.mean()) if len(correct) else None
    facts = {"examples": len(scores), "right_share": right, "threshold": threshold}
    return {"verifier": verifier, "level": "outcome", **facts, **binary(scores, correct, threshold, unread)}


class Aligned(NamedTuple):
    """Step scores beside step labels; `whole` says which solutions have both, the first two hold only those."""

    scored: Steps
    labelled: Steps
    whole: np.ndarray
    labels: Steps

    @property
    def known(self) -> np.ndarray:
        """Which steps are labelled, [whole solutions, steps]."""
        return self.labelled.values >= 0

    def said(self, threshold: float) -> np.ndarray:
        """First wrong step that is claimed of every solution, UNSCORED where there are no scores."""
        said = np.full(len(self.whole), UNSCORED)
        said[self.whole] = said_first_errors(self.scored, threshold)
        return said


def aligned(step_scores: pa.ChunkedArray, step_labels: pa.ChunkedArray) -> Aligned:
    """Scores and labels of the steps of solutions; a solution is whole when it has as many of one as of the other."""
    scores, labels = padded(step_scores, np.inf), padded(step_labels, -1)
    whole = (scores.lengths == labels.lengths) & (labels.lengths > 0)
    width = min(scores.values.shape[1], labels.values.shape[1])
    return Aligned(scores.some(whole, width), labels.some(whole, width), whole, labels)


def steps(
    verifier: str, step_scores: pa.ChunkedArray, step_labels: pa.ChunkedArray, threshold: float = THRESHOLD
) -> dict[str, Any] | None:
    """Step level over labelled steps (label 0 or 1), with first errors; None without any labelled and scored step.

    A solution that could not be scored leaves the metrics of steps, and is a miss where first errors are counted.
    """
    both = aligned(step_scores, step_labels)
    known = both.known
    if not known.any():
        return None
    scores, right = both.scored.values[known], both.labelled.values[known] == 1
    truth = first_errors(both.labels)
    return {
        **outcome(verifier, scores, right, threshold),
        "level": "step",
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
    if not labels.values.shape[1]:
        return np.full(len(labels.lengths), UNKNOWN)
    inside = np.arange(labels.values.shape[1]) < labels.lengths[:, None]
    doubtful = inside & (labels.values != 1)
    place = doubtful.argmax(axis=1)
    wrong = labels.values[np.arange(len(place)), place] == 0
    found = np.where(doubtful.any(axis=1), np.where(wrong, place, UNKNOWN), ALL_RIGHT)
    return np.where(labels.lengths > 0, found, UNKNOWN)


def said_first_errors(scores: Steps, threshold: float) -> np.ndarray:
    """Number of the first step scored below the threshold, ALL_RIGHT without one."""
    below = scores.values < threshold
    return np.where(below.any(axis=1), below.argmax(axis=1), ALL_RIGHT)


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
    lowest = scores.values.argmin(axis=1)
    gap = (lowest - truth)[truth >= 0]
    sides = {"before": int((gap < 0).sum()), "at": int((gap == 0).sum()), "after": int((gap > 0).sum())}
    return {"by_step": np.bincount(lowest).tolist(), "first_error": sides}
