"""Errors by type, as in the paper's error analysis, and which of them a verifier detects."""

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
from minos_ray.evaluation.verdicts import THRESHOLD

UNTYPED = "untyped"
# Verifier -> type -> number of wrong candidates, and how many of them it rejects.
Rejected = dict[str, dict[str, tuple[int, int]]]


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
    """Wrong steps by type, wrong candidates, and which of them each verifier rejects, over the blocks of a split."""

    types: dict[str, Counter[str]] = field(
        default_factory=lambda: {kind: Counter(steps=0, candidates=0, first=0) for kind in ERROR_TYPES}
    )
    wrong: int = 0
    rejected: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Adds the candidates of a block."""
        candidates = block.candidates
        wrong_steps = errors(candidates.rows["error_types"])
        not_wrong = candidates.correct | ~candidates.graded
        self.wrong += int((~not_wrong).sum())
        for kind, number in counts(wrong_steps).items():
            self.types.setdefault(kind, Counter()).update(number)
        scores = {name: table.score for name, table in block.scores.items()}
        for name, of_type in rejected(scores, not_wrong, wrong_steps).items():
            for kind, (wrong, rejects) in of_type.items():
                counter = self.rejected.setdefault(name, {}).setdefault(kind, Counter())
                counter.update(wrong=wrong, rejected=rejects)

    def merge(self, block: "ErrorTally") -> None:
        """Adds what another block has added up."""
        self.wrong += block.wrong
        for kind, number in block.types.items():
            self.types.setdefault(kind, Counter()).update(number)
        for name, of_type in block.rejected.items():
            for kind, counter in of_type.items():
                self.rejected.setdefault(name, {}).setdefault(kind, Counter()).update(counter)

    def by_type(self) -> dict[str, dict[str, int]]:
        """By type: wrong steps, candidates with such a step, candidates whose first error it is."""
        return {kind: dict(self.types[kind]) for kind in paper_types_first(self.types)}

    def rejected_fractions(self) -> dict[str, dict[str, dict[str, float]]]:
        """By verifier and type of the first error: wrong candidates, and the fraction of them that it rejects."""
        return {
            name: {
                kind: {"wrong": of_type[kind]["wrong"], "share": of_type[kind]["rejected"] / of_type[kind]["wrong"]}
                for kind in paper_types_first(of_type)
                if kind in of_type
            }
            for name, of_type in self.rejected.items()
        }


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
