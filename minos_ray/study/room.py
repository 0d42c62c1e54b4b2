"""How many trials a cluster holds at once, each whole."""

from collections.abc import Mapping, Sequence

from minos_ray.cluster.bundles import Bundles, bundles, on_one
from minos_ray.config.resources import Resources


def trials_at_once(resources: Resources, nodes: Sequence[Mapping[str, float]], most: int) -> int:
    """How many trials fit in whichever phase they are; at least one, which then waits for its room, and `most`.

    A trial holds its group of workers, then its scorers; it has no judge.
    """

    def fit(held: Bundles) -> int:
        return sum(on_one(held.bundle, node) for node in nodes) // held.count if held.bundle else most

    return max(1, min(most, fit(bundles(resources.train)), fit(bundles(resources.score))))
