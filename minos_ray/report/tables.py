"""Tables of the report beside the accuracies: errors by type, lowest step scores, learning curves, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minos_ray.evaluation.verdicts import flat
from minos_ray.store.run import Manifest, Run
from minos_ray.training.log import first_at

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
    steps = {split: {kind: counts["steps"] for kind, counts in kinds.items()} for split, kinds in splits.items()}
    return {split: kinds for split, kinds in steps.items() if sum(kinds.values())}


def error_rows(errors: Mapping[str, Any], paper: Shares) -> list[ErrorRow]:
    """One row per type; none when no step has a type."""
    splits, rejected = steps_by_split(errors), errors.get("rejected", {})
    if not splits:
        return []
    kinds = dict.fromkeys(kind for table in (*splits.values(), *rejected.values()) for kind in table)
    totals = {split: sum(counts.values()) for split, counts in splits.items()}
    return [
        ErrorRow(
            kind=kind,
            steps={split: counts.get(kind, 0) for split, counts in splits.items()},
            shares={split: counts.get(kind, 0) / totals[split] for split, counts in splits.items()},
            first=next((by_kind[kind]["wrong"] for by_kind in rejected.values() if kind in by_kind), None),
            rejected={name: by_kind[kind]["share"] if kind in by_kind else None for name, by_kind in rejected.items()},
            paper=paper.get(kind),
        )
        for kind in kinds
    ]


@dataclass(frozen=True)
class TypeRow:
    """One type: how many steps of each source the critic sorts under it, their shares, and the paper's share."""

    kind: str
    steps: dict[str, int]
    shares: dict[str, float]
    paper: float


def type_rows(by_critic: Mapping[str, Any] | None, paper: Shares) -> list[TypeRow]:
    """One row per type; none when the critic was not asked to sort errors."""
    sources = {name: kinds for name, kinds in (by_critic or {}).get("by_source", {}).items() if sum(kinds.values())}
    return [
        TypeRow(
            kind,
            {name: kinds[kind] for name, kinds in sources.items()},
            {name: kinds[kind] / sum(kinds.values()) for name, kinds in sources.items()},
            paper[kind],
        )
        for kind in (paper if sources else ())
    ]


@dataclass(frozen=True)
class MinRow:
    """One verifier: solutions by the step of the minimum; `last` is the share of scored solutions with it at the end.

    `sides` counts wrong solutions by where the minimum lies against the first wrong step.
    """

    verifier: str
    by_step: list[int]
    last: float | None
    sides: dict[str, int]

    @property
    def solutions(self) -> int:
        """Solutions with scored and labelled steps."""
        return sum(self.by_step)

    @property
    def first(self) -> float:
        """The share with the minimum at the first step."""
        return self.by_step[0] / self.solutions

    def side(self, name: str) -> float | None:
        """The share of wrong solutions on one side, None without any."""
        wrong = sum(self.sides.values())
        return self.sides[name] / wrong if wrong else None


def min_rows(meta: Sequence[Mapping[str, Any]], last: Mapping[str, float]) -> list[MinRow]:
    """One row per PRM (or critic) that was judged by steps; `meta` and `last` as in evaluation.json and `last_shares`.

    The score of an ORM is the last step's, so its lowest says nothing.
    """
    judged = [m for m in meta if m["level"] == "step" and not m["verifier"].startswith("orm")]
    return [
        MinRow(m["verifier"], m["min"]["by_step"], last.get(m["verifier"]), m["min"]["first_error"])
        for m in judged
        if sum(m["min"]["by_step"])
    ]


def last_shares(run: Run, verifiers: Sequence[str]) -> dict[str, float]:
    """Per verifier: the share of solutions whose last step has the lowest score (the first of equals counts)."""
    prms = [name for name in verifiers if name.startswith("prm")]
    scored = [name for name in prms if run.artefact(f"scores/{name}").manifest() is not None]
    shares = {name: last_share(run, name) for name in scored}
    return {name: share for name, share in shares.items() if share is not None}


def last_share(run: Run, name: str) -> float | None:
    """Read part by part; solutions with a score that is no number are dropped; None when no solution remains."""
    artefact, last, scored = run.artefact(f"scores/{name}"), 0, 0
    for part in artefact.part_names():
        steps = flat(artefact.read_part(part, ["step_scores"])["step_scores"])
        owners = np.repeat(np.arange(len(steps.lengths)), steps.lengths)
        has_nan = np.bincount(owners[np.isnan(steps.values)], minlength=len(steps.lengths)) > 0
        usable = steps.select((steps.lengths > 0) & ~has_nan)
        last += int((usable.first_lowest() == usable.lengths - 1).sum())
        scored += len(usable.lengths)
    return last / scored if scored else None


@dataclass(frozen=True)
class Reach:
    """When `kind`-base and `kind`-minos first reach the F1 with which base ends."""

    kind: str
    f1: float
    last: int
    base: int
    minos: int | None


def reaches(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Reach]:
    """Per kind with both curves: the first steps at which base and Minos have base's final F1."""
    kinds = [n.removesuffix("-base") for n in sorted(curves) if n.endswith("-base")]
    return [reach(kind, curves[f"{kind}-base"], curves[f"{kind}-minos"]) for kind in kinds if f"{kind}-minos" in curves]


def reach(kind: str, base: Sequence[Mapping[str, float]], minos: Sequence[Mapping[str, float]]) -> Reach:
    """Compares two curves; steps are those of the evaluations."""
    goal, last = base[-1]["f1"], int(base[-1]["step"])
    return Reach(kind, goal, last, first_at(base, goal) or last, first_at(minos, goal))


@dataclass(frozen=True)
class Cost:
    """What making one artefact took; None where its stage did not say."""

    artefact: str
    seconds: float | None
    tokens: int | None
    usd: float | None


def costs(manifests: Mapping[str, Manifest]) -> list[Cost]:
    """Seconds, tokens and money of every artefact."""
    facts = {name: {**manifest.counts, **manifest.details} for name, manifest in manifests.items()}
    return [Cost(name, d.get("seconds"), tokens(d), d.get("cost_usd")) for name, d in facts.items()]


def tokens(details: Mapping[str, Any]) -> int | None:
    """The sum of every token count that a stage wrote down."""
    counts = [v for k, v in details.items() if k.endswith("tokens") and isinstance(v, int | float)]
    return int(sum(counts)) if counts else None
