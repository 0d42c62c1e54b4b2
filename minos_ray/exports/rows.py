"""Rows of a run joined for export, in the order of the artefact, a bounded number in memory at a time."""

from collections import Counter
from collections.abc import Iterator
from typing import Literal

from minos_ray.problems.split import problems_by_id
from minos_ray.store.columns import Row
from minos_ray.store.run import Run

Split = Literal["train", "test", "all"]
CHUNK = 10_000


def problems_of(run: Run, split: Split) -> dict[str, Row]:
    """Question, data set and split by problem id."""
    splits = None if split == "all" else split
    return problems_by_id(run, splits, ["problem_id", "split", "dataset", "question"])


def solutions(run: Run, split: Split, dropped: Counter[str]) -> Iterator[Row]:
    """Labels with the question and data set of their problem; those of the other split are counted."""
    problems = problems_of(run, split)
    columns = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels"]
    for row in batched(run, "labels", columns):
        problem = problems.get(row["problem_id"])
        if problem is None:
            dropped[f"not of split {split}"] += 1
        else:
            yield {**row, "question": problem["question"], "dataset": problem["dataset"]}


def batched(run: Run, artefact: str, columns: list[str]) -> Iterator[Row]:
    """All rows of an artefact."""
    for batch in run.artefact(artefact).read(columns).to_batches(CHUNK):
        yield from batch.to_pylist()
