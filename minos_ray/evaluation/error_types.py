"""Errors by type, as in the paper's error analysis, and which of them a verifier sees."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.metrics import THRESHOLD

TYPES = ("unrelated", "accumulation", "calculation", "logical", "other")
UNTYPED = "untyped"


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


def rejected(
    scores: Mapping[str, np.ndarray], correct: np.ndarray, found: Errors
) -> dict[str, dict[str, dict[str, float]]]:
    """By verifier and type of the first error: wrong candidates, and the share of them scored below the threshold."""
    first = found.first()
    of_type = {kind: ~correct & (first == kind) for kind in named(first)}
    rows = {kind: chosen for kind, chosen in of_type.items() if chosen.any()}
    return {
        name: {
            kind: {"wrong": int(chosen.sum()), "share": float((score[chosen] < THRESHOLD).mean())}
            for kind, chosen in rows.items()
        }
        for name, score in scores.items()
    }
