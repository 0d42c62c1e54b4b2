"""Step labels of one candidate: from a function, from rollouts, or from rollouts that agree with the function."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minos_ray.config.load import resolve
from minos_ray.config.schema import Label
from minos_ray.grading.graders import Graded
from minos_ray.labels.prefixes import prefix_id, prefixes
from minos_ray.steps.own_text import own_solution
from minos_ray.steps.split import after_first_error, first_error
from minos_ray.store.columns import GRADED
from minos_ray.store.run import Run

COUNTED = ("rollouts", "consensus", "no_consensus")


class Labels(NamedTuple):
    """Labels (1, 0, -1) and soft labels of a candidate's steps, the answer line last."""

    labels: list[int]
    scores: list[float | None]


class RolloutTable:
    """The stored rollouts by prefix: sorted arrays, since every labelling actor holds all of them."""

    def __init__(self, run: Run) -> None:
        columns = ["prefix_id", "label", "completions", "correct"]
        rows = run.artefact("rollouts").read(columns).sort_by("prefix_id")
        self.ids = np.array(rows["prefix_id"].to_pylist(), dtype="S24")
        self.labels, completions, correct = (rows[name].to_numpy() for name in columns[1:])
        with np.errstate(invalid="ignore"):
            self.fractions = correct / completions

    def __call__(self, problem_id: str, cut: Sequence[str], correct: bool) -> Labels | None:
        """The labels of a candidate with these prefixes, None when one of them is not stored."""
        ids = np.array([prefix_id(problem_id, prefix) for prefix in cut], dtype="S24")
        rows = np.searchsorted(self.ids, ids)
        if (rows == len(self.ids)).any() or (self.ids[rows] != ids).any():
            return None
        scores = [None if np.isnan(fraction) else float(fraction) for fraction in self.fractions[rows]]
        return Labels([*self.labels[rows].tolist(), int(correct)], [*scores, float(correct)])


class StepLabeller:
    """Splits candidates and labels their steps; `counts` are how many the rollouts labelled and how many agreed."""

    def __init__(self, run: Run, label: Label) -> None:
        self.split, self.policy = resolve(label.splitter), label.after_first_error
        self.function = resolve(label.steps) if label.steps else None
        self.rollouts = RolloutTable(run) if label.rollouts else None
        self.soft = bool(label.rollouts and label.rollouts.soft)
        self.counts: Counter[str] = Counter()

    def __call__(self, problem: dict[str, Any], text: str, grade: Graded) -> dict[str, Any]:
        """The label columns about steps, of the part of the text that is graded."""
        text = own_solution(text)
        steps = self.split(text)
        labels, errors, source, scores = [-1] * len(steps), [], "none", None
        if self.function:
            labels, errors = self.function(problem["question"], problem["solution"], steps)
            source = "gold"
        if self.rollouts and problem["split"] == "train":
            labels, scores, source = self.by_rollouts(problem["problem_id"], text, steps, grade, labels)
            errors = []
        labels, errors = after_first_error(labels, errors, self.policy)
        return {
            "steps": steps,
            "step_labels": labels,
            "step_scores": scores,
            "step_source": source,
            "error_types": errors,
        }

    def by_rollouts(
        self, problem_id: str, text: str, steps: list[str], grade: Graded, opinion: list[int]
    ) -> tuple[list[int], list[float | None] | None, str]:
        """Labels, soft labels and source; unlabelled without rollouts, or when the opinion has another first error."""
        unlabelled = [-1] * len(steps), None
        is_graded = steps and grade.status in GRADED
        rollouts = (
            self.rollouts(problem_id, prefixes(text, steps)[0], grade.correct) if is_graded and self.rollouts else None
        )
        if rollouts is None:
            return *unlabelled, "none"
        self.counts["rollouts"] += 1
        if self.function:
            agree = first_error(rollouts.labels) == first_error(opinion)
            self.counts["consensus" if agree else "no_consensus"] += 1
            if not agree:
                return *unlabelled, "no_consensus"
        return rollouts.labels, rollouts.scores if self.soft else None, "rollouts"
