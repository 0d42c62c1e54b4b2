"""Corpora for a base model from nothing, out of a run's own artefacts."""

import random
from collections.abc import Iterator

from minos_ray.store.run import Run
from minos_ray.training.data import labelled


def right_solutions(run: Run, seed: int, rows: int) -> Iterator[tuple[str, str]]:
    """(question, solution) of `rows` right candidates of the train split, each distinct solution once."""
    right = [row for row in labelled(run)[0] if row["correct"]]
    for row in random.Random(f"right solutions {seed}").sample(right, min(rows, len(right))):
        yield row["question"], "\n".join(row["steps"])
