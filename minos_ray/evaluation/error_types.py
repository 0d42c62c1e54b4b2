"""Errors by type, as in the paper's error analysis, and which of them a verifier sees."""

from collections import Counter
from collections.abc import Iterable, Mapping
from math import sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.metrics import THRESHOLD

TYPES = ("unrelated", "accumulation", "calculation", "logical", "other")
UNTYPED = "untyped"


# Verifier -> type -> wrong candidates, and how many of them it rejects.
Rejected = dict[str, dict[str, tuple[int, int]]]


class Errors(NamedTuple):
    """Wrong steps in order: the candidate (row) of each and its type."""

    candidates: int
    owners: np.ndarray
    kinds: np.ndarray

    def first(self) -> np.ndarray:
        """The type of each candidate's first wrong step; `untyped` when no step has a type."""
        found = np.full(self.candidates, UNTYPED, dtype=object)
        owners, at = np.unique(self.owners, return_index=True)
        found[owners] = self.kinds[at]
        return found


def errors(column: pa.ChunkedArray) -> Errors:
    """The wrong steps in a column `error_types`, where a right step has an empty text."""
    lists = column.combine_chunks()
    flat = pc.list_flatten(lists)
    typed = pc.not_equal(flat, "")
    owners, kinds = pc.list_parent_indices(lists).filter(typed), flat.filter(typed)
    return Errors(len(lists), owners.to_numpy(), kinds.to_numpy(zero_copy_only=False))


def counts(found: Errors) -> dict[str, dict[str, int]]:
    """By type: wrong steps, candidates with such a step, candidates whose first error it is."""
    steps, first = Counter(found.kinds.tolist()), Counter(found.first().tolist())
    candidates = Counter(kind for _, kind in set(zip(found.owners.tolist(), found.kinds.tolist(), strict=True)))
    return {kind: {"steps": steps[kind], "candidates": candidates[kind], "first": first[kind]} for kind in named(steps)}


def named(found: Iterable[str]) -> list[str]:
    """The paper's types, then any other that occurs."""
    return [*TYPES, *sorted(set(found) - set(TYPES))]


def rejected(scores: Mapping[str, np.ndarray], correct: np.ndarray, found: Errors) -> Rejected:
    """By verifier and type of the first error: wrong candidates, and those of them scored below the threshold.

    One without a score (NaN) is not rejected.
    """
    first = found.first()
    of_type = {kind: ~correct & (first == kind) for kind in named(first)}
    rows = {kind: chosen for kind, chosen in of_type.items() if chosen.any()}
    return {
        name: {kind: (int(chosen.sum()), int((score[chosen] < THRESHOLD).sum())) for kind, chosen in rows.items()}
        for name, score in scores.items()
    }


def by_critic(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What the critic said of wrong steps (rows of `error_types`): counts by source and type, and, where the type is
    known, the confusion matrix `[known][type]`, the accuracy and its 95 % Wilson interval over steps."""
    counts: dict[str, Counter[str]] = {}
    matrix = {kind: dict.fromkeys(TYPES, 0) for kind in TYPES}
    unread: Counter[str] = Counter()
    for row in rows:
        if row["type"] is None:
            unread[row["status"]] += 1
            continue
        counts.setdefault(row["source"], Counter())[row["type"]] += 1
        if row["known"]:
            matrix[row["known"]][row["type"]] += 1
    right, all_ = sum(matrix[kind][kind] for kind in TYPES), sum(sum(found.values()) for found in matrix.values())
    found = {"by_source": {name: {kind: c[kind] for kind in TYPES} for name, c in sorted(counts.items())}}
    return found | {"unread": dict(unread), "confusion": matrix if all_ else {}, "accuracy": share(right, all_)}


def share(hits: int, trials: int) -> dict[str, float] | None:
    """A share with its 95 % Wilson score interval; None of nothing."""
    if not trials:
        return None
    z = NormalDist().inv_cdf(0.975)
    value, width = hits / trials, z * z / trials
    middle = (value + width / 2) / (1 + width)
    half = z * sqrt(value * (1 - value) / trials + width / trials / 4) / (1 + width)
    return {"value": value, "ci_low": max(0.0, middle - half), "ci_high": min(1.0, middle + half), "steps": trials}
