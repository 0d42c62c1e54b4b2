"""Meta-evaluation of the run's own candidates, gathered block by block."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation import verdicts
from minos_ray.evaluation.blocks import Block
from minos_ray.evaluation.metrics import bins


@dataclass
class Judged:
    """What has to be kept of every candidate: its outcome (a byte), its scores (four each), and labelled steps.

    Candidates whose grading ended in a timeout have no known outcome.
    """

    correct: list[np.ndarray] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    step_labels: list[pa.Array] = field(default_factory=list)
    step_scores: dict[str, list[pa.Array]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Takes in a block."""
        rows = block.candidates.rows
        sure = pc.not_equal(rows["status"], "timeout").to_numpy()
        labelled = with_label(rows["step_labels"])
        self.correct.append(block.candidates.correct[sure])
        self.step_labels += rows["step_labels"].filter(labelled).chunks
        for name, made in block.scores.items():
            self.scores.setdefault(name, []).append(made.score[sure].astype(np.float32))
            self.step_scores.setdefault(name, [])
            self.step_scores[name] += made.step_scores.filter(labelled).chunks

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `meta`: every verifier at the level of outcomes, then those that score labelled steps."""
        correct = np.concatenate(self.correct)
        found = [verdicts.outcome(name, self.of(name), correct) for name in self.scores]
        if self.step_labels:
            labels = pa.chunked_array(self.step_labels)
            by_step = [
                verdicts.steps(n, pa.chunked_array(s), labels, by_step=n.startswith("prm"))
                for n, s in self.step_scores.items()
                if s
            ]
            found += [row for row in by_step if row]
        return found

    def of(self, name: str) -> np.ndarray:
        """All scores of a verifier."""
        return np.concatenate(self.scores[name]).astype(np.float64)

    def calibration(self) -> dict[str, list[dict[str, float]]]:
        """By verifier: how often solutions with about the same score are right."""
        correct = np.concatenate(self.correct)
        return {name: bins(self.of(name), correct) for name in self.scores}


def with_label(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which solutions have a labelled step."""
    lists = labels.combine_chunks()
    owners = pc.list_parent_indices(lists).to_numpy()
    known = np.zeros(len(lists), dtype=bool)
    known[owners[pc.list_flatten(lists).to_numpy() >= 0]] = True
    return pa.array(known)
