"""How well scores in 0..1 tell right from wrong. The positive class is `right`, said from a threshold on."""

import numpy as np

from minos_ray.training.log import auc

THRESHOLD = 0.5
BINS = 10


def binary(scores: np.ndarray, truth: np.ndarray, threshold: float = THRESHOLD) -> dict[str, float | None]:
    """Accuracy, F1, macro F1, AUC, expected calibration error and Brier score; all None without any example.

    What has no score (NaN) is a wrong verdict, whatever is true, and left out of the measures of scores.
    """
    if not len(scores):
        return dict.fromkeys(("accuracy", "f1", "macro_f1", "auc", "ece", "brier"))
    truth = truth.astype(bool)
    said = verdicts(scores, truth, threshold)
    right = f1(said, truth)
    verdict = {"accuracy": float((said == truth).mean()), "macro_f1": (right + f1(~said, ~truth)) / 2, "f1": right}
    scores, truth = scores[~np.isnan(scores)], truth[~np.isnan(scores)]
    if not len(scores):
        return verdict | dict.fromkeys(("auc", "ece", "brier"))
    return verdict | {
        "auc": auc(scores, truth),
        "ece": calibration_error(scores, truth),
        "brier": float(((scores - truth) ** 2).mean()),
    }


def verdicts(scores: np.ndarray, truth: np.ndarray, threshold: float) -> np.ndarray:
    """Whether each is said to be right; of what has no score (NaN), what is not so."""
    return np.where(np.isnan(scores), ~truth, scores >= threshold)


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
    """Of ten equally wide bins those that hold a scored example: mean score, share of right ones, and how many."""
    scores, truth = scores[~np.isnan(scores)], truth[~np.isnan(scores)]
    place = np.minimum((scores * BINS).astype(int), BINS - 1)
    sizes = np.bincount(place, minlength=BINS)
    sums, right = np.bincount(place, scores, BINS), np.bincount(place, truth, BINS)
    return [{"score": sums[k] / n, "correct": right[k] / n, "rows": int(n)} for k, n in enumerate(sizes) if n]


def harmonic(a: float, b: float) -> float:
    """Harmonic mean, 0 when both are."""
    return 2 * a * b / (a + b) if a + b else 0.0
