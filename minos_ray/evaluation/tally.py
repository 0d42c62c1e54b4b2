"""What is counted over the candidates of a split, block by block."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation import error_types
from minos_ray.evaluation.blocks import Block
from minos_ray.evaluation.error_types import TYPES
from minos_ray.store.run import Run

NOTHING = {"steps": 0, "candidates": 0, "first": 0}


@dataclass
class ErrorTally:
    """Wrong steps by type, wrong candidates, and which of them each verifier rejects."""

    kinds: dict[str, Counter[str]] = field(default_factory=lambda: {kind: Counter(NOTHING) for kind in TYPES})
    wrong: int = 0
    rejected: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Takes in a block."""
        candidates = block.candidates
        found = error_types.errors(candidates.rows["error_types"])
        # A comparison that never ended says nothing of the candidate.
        not_wrong = candidates.correct | pc.equal(candidates.rows["status"], "timeout").to_numpy()
        self.wrong += int((~not_wrong).sum())
        for kind, counts in error_types.counts(found).items():
            self.kinds.setdefault(kind, Counter()).update(counts)
        scores = {name: made.score for name, made in block.scores.items()}
        for name, of_type in error_types.rejected(scores, not_wrong, found).items():
            for kind, (wrong, rejected) in of_type.items():
                counter = self.rejected.setdefault(name, {}).setdefault(kind, Counter())
                counter.update(wrong=wrong, rejected=rejected)

    def by_type(self) -> dict[str, dict[str, int]]:
        """By type: wrong steps, candidates with such a step, candidates whose first error it is."""
        return {kind: dict(self.kinds[kind]) for kind in error_types.named(self.kinds)}

    def shares(self) -> dict[str, dict[str, dict[str, float]]]:
        """By verifier and type of the first error: wrong candidates, and the share of them that it rejects."""
        return {
            name: {
                k: {"wrong": of_type[k]["wrong"], "share": of_type[k]["rejected"] / of_type[k]["wrong"]} for k in order
            }
            for name, of_type in self.rejected.items()
            if (order := [kind for kind in error_types.named(of_type) if kind in of_type])
        }


@dataclass
class CandidateTally:
    """What was evaluated, and what was odd about it."""

    cut: pa.Array | None
    keys: Counter[str]
    status: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)

    def add(self, block: Block) -> None:
        """Takes in a block."""
        candidates = block.candidates
        rows = candidates.rows
        self.status.update({e["values"]: e["counts"] for e in pc.value_counts(rows["status"]).to_pylist()})
        self.sizes.update(np.diff(candidates.starts).tolist())
        right = np.add.reduceat(candidates.correct.astype(int), candidates.starts[:-1])
        self.sums.update(
            problems=candidates.problems,
            candidates=len(candidates.correct),
            no_answer=int((candidates.clusters < 0).sum()),
            truncated=int(pc.sum(pc.is_in(rows["candidate_id"], value_set=self.cut)).as_py() or 0) if self.cut else 0,
            without_right_candidate=int((right == 0).sum()),
        )
        self.unscored.update({f"unscored by {n}": s.unscored for n, s in block.scores.items() if s.unscored})

    def counts(self) -> dict[str, Any]:
        """`counts` of evaluation.json; `truncated` is None when the texts are not here."""
        found = {**self.sums, "truncated": self.sums["truncated"] if self.cut is not None else None}
        sizes = {str(size): problems for size, problems in sorted(self.sizes.items())}
        return {**found, "status": dict(self.status), "problems_by_candidates": sizes, **self.odd()}

    def odd(self) -> dict[str, dict[str, int]]:
        """How the values of different wrong answers were found, and candidates without a score, which count as 0."""
        return {"wrong_answers": dict(self.keys), "unscored": dict(self.unscored)}


def cut_off(run: Run) -> pa.Array | None:
    """The candidates that were cut off at the token limit; None when the texts are not here."""
    if run.artefact("candidates").manifest() is None:
        return None
    parts = run.artefact("candidates").parts(["candidate_id", "finish_reason"])
    found = [part.filter(pc.equal(part["finish_reason"], "length"))["candidate_id"].combine_chunks() for part in parts]
    return pa.concat_arrays(found) if found else pa.array([], pa.string())
