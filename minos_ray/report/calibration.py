"""How often solutions with about the same score are right: the points of the calibration picture."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.metrics import BINS
from minos_ray.store import Run

Bin = dict[str, float]


def calibration(run: Run, verifiers: Iterable[str], problems: Sequence[str] | None = None) -> dict[str, list[Bin]]:
    """Per verifier with scores: the bins that hold a candidate, each with mean score, share of right ones and count.

    `problems` are those whose candidates count; None: all.
    """
    if run.artefact("labels").manifest() is None:
        return {}
    labels = run.artefact("labels").read_where("problem_id", problems, ["candidate_id", "correct", "status"])
    labels = labels.filter(pc.not_equal(labels["status"], "timeout"))
    there = [name for name in verifiers if run.artefact(f"scores/{name}").manifest() is not None]
    scores = {
        n: run.artefact(f"scores/{n}").read_where("problem_id", problems, ["candidate_id", "score"]) for n in there
    }
    return {name: bins(*joined(rows, labels)) for name, rows in scores.items()}


def joined(rows: pa.Table, labels: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Scores and outcomes of the candidates that have both."""
    at = pc.index_in(rows["candidate_id"], value_set=labels["candidate_id"].combine_chunks())
    known = rows.filter(at.is_valid())
    return known["score"].to_numpy(), labels["correct"].take(at.drop_null()).to_numpy()


def bins(scores: np.ndarray, correct: np.ndarray) -> list[Bin]:
    """Ten equally wide bins over 0..1; empty ones are left out."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    sizes = np.bincount(place, minlength=BINS)
    sums, right = np.bincount(place, scores, BINS), np.bincount(place, correct, BINS)
    return [{"score": sums[k] / n, "correct": right[k] / n, "rows": int(n)} for k, n in enumerate(sizes) if n]
