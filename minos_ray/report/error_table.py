"""The table of errors by type: how many, and who rejects them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Shares = Mapping[str, float]


@dataclass(frozen=True)
class ErrorRow:
    """One type: wrong steps by split, test solutions with it as first error, and who rejects those."""

    kind: str
    steps: dict[str, int]
    shares: dict[str, float]
    first: int | None
    rejected: dict[str, float | None]
    paper: float | None


def steps_by_split(errors: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Wrong steps by type, for the splits that have any."""
    splits = errors.get("by_split", {})
    steps = {split: {kind: found["steps"] for kind, found in kinds.items()} for split, kinds in splits.items()}
    return {split: kinds for split, kinds in steps.items() if sum(kinds.values())}


def error_rows(errors: Mapping[str, Any], paper: Shares) -> list[ErrorRow]:
    """One row per type; none when no step has a type."""
    splits, rejected = steps_by_split(errors), errors.get("rejected", {})
    if not splits:
        return []
    kinds = [kind for found in (*splits.values(), *rejected.values()) for kind in found]
    return [error_row(kind, splits, rejected, paper) for kind in dict.fromkeys(kinds)]


def error_row(kind: str, splits: Mapping[str, Any], rejected: Mapping[str, Any], paper: Shares) -> ErrorRow:
    """The row of one type."""
    first = [found[kind]["wrong"] for found in rejected.values() if kind in found]
    return ErrorRow(
        kind=kind,
        steps={split: kinds.get(kind, 0) for split, kinds in splits.items()},
        shares={split: kinds.get(kind, 0) / sum(kinds.values()) for split, kinds in splits.items()},
        first=first[0] if first else None,
        rejected={name: found[kind]["share"] if kind in found else None for name, found in rejected.items()},
        paper=paper.get(kind),
    )
