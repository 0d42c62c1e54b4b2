"""Accuracy, F1 and AUC of logits against labels."""

import numpy as np


def classification(logits: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Accuracy, F1 of the class `correct` and AUC; the verdict is `correct` when the logit is above 0.

    AUC is None when only one class is there; F1 is 0 when nothing correct was found.
    """
    said, truth = logits > 0, labels > 0.5
    hits = int((said & truth).sum())
    wanted = int(said.sum()) + int(truth.sum())
    return {
        "accuracy": float((said == truth).mean()),
        "f1": 2 * hits / wanted if wanted else 0.0,
        "auc": auc(logits, truth),
    }


def auc(scores: np.ndarray, truth: np.ndarray) -> float | None:
    """Chance that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[inverse][truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))
