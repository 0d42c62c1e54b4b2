"""How well scores in 0..1 tell right from wrong. The positive class is `right`; the verdict is right from 0.5 on."""

import numpy as np

from minos_ray.training.metrics import auc

THRESHOLD = 0.5
BINS = 10


def binary(scores: np.ndarray, truth: np.ndarray) -> dict[str, float | None]:
    """Accuracy, F1, macro F1, AUC, expected calibration error and Brier score; all None without any example."""
    if not len(scores):
        return dict.fromkeys(("accuracy", "f1", "macro_f1", "auc", "ece", "brier"))
    truth = truth.astype(bool)
    said = scores >= THRESHOLD
    right = f1(said, truth)
    return {
        "accuracy": float((said == truth).mean()),
        "f1": right,
        "macro_f1": (right + f1(~said, ~truth)) / 2,
        "auc": auc(scores, truth),
        "ece": calibration_error(scores, truth),
        "brier": float(((scores - truth) ** 2).mean()),
    }


def f1(said: np.ndarray, truth: np.ndarray) -> float:
    """Harmonic mean of precision and recall of the class True; 0 when neither says it."""
    wanted = int(said.sum()) + int(truth.sum())
    return 2 * int((said & truth).sum()) / wanted if wanted else 0.0


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance between score and share of right ones over ten equally wide bins, weighted by their size."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, scores, BINS) - np.bincount(bins, truth, BINS)
    return float(np.abs(gaps).sum() / len(scores))


def bins(scores: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Of ten equally wide bins those that hold an example: mean score, share of right ones, and how many."""
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    sizes = np.bincount(place, minlength=BINS)
    sums, right = np.bincount(place, scores, BINS), np.bincount(place, truth, BINS)
    return [{"score": sums[k] / n, "correct": right[k] / n, "rows": int(n)} for k, n in enumerate(sizes) if n]


def harmonic(a: float, b: float) -> float:
    """Harmonic mean, 0 when both are."""
    return 2 * a * b / (a + b) if a + b else 0.0
