"""The verifier judged itself, without a generator: its scores against outcome labels and step labels.

Every verdict uses the threshold 0.5, fixed in advance.
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


def outcome(verifier: str, scores: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    """Outcome level: one row for the verifier (or the critic, whose score is its verdict)."""
    right = float(correct.mean()) if len(correct) else None
    facts = {"examples": len(scores), "right_share": right, "threshold": THRESHOLD}
    return {"verifier": verifier, "level": "outcome", **facts, **binary(scores, correct)}


def steps(verifier: str, step_scores: pa.ChunkedArray, step_labels: pa.ChunkedArray) -> dict[str, Any] | None:
    """Step level over labelled steps (label 0 or 1), with first errors; None without any labelled and scored step.

    A solution that could not be scored leaves the metrics of steps, and is a miss where first errors are counted.
    """
    scores, labels = padded(step_scores, np.inf), padded(step_labels, -1)
    whole = (scores.lengths == labels.lengths) & (labels.lengths > 0)
    width = min(scores.values.shape[1], labels.values.shape[1])
    scored, labelled = scores.some(whole, width), labels.some(whole, width)
    known = labelled.values >= 0
    if not known.any():
        return None
    row = outcome(verifier, scored.values[known], labelled.values[known] == 1)
    truth = first_errors(labels)
    said = np.full(len(truth), UNSCORED)
    said[whole] = said_first_errors(scored)
    return {**row, "level": "step", **first_error_f1(said, truth), "min": where_min_falls(scored, truth[whole])}


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


def said_first_errors(scores: Steps) -> np.ndarray:
    """Number of the first step scored below the threshold, ALL_RIGHT without one."""
    below = scores.values < THRESHOLD
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
