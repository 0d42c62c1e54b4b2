"""The test problems that the report looks at candidate by candidate: all, or a seeded choice where they are many."""

import random

from minos_ray.problems.split import read_problems
from minos_ray.store.run import Run

MOST = 2_000


def looked_at(run: Run, seed: int, most: int = MOST) -> list[str] | None:
    """Ids of `most` test problems; None for all of them, when there are no more (or no artefact `problems`)."""
    if run.artefact("problems").manifest() is None:
        return None
    names = read_problems(run, "test", ["problem_id"])["problem_id"]
    if len(names) <= most:
        return None
    return [names[place].as_py() for place in random.Random(seed).sample(range(len(names)), most)]
