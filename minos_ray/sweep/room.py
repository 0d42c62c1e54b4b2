"""How many trials a cluster holds at once, each whole."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from minos_ray.resources import Actors, Resources, Workers


class Gang(NamedTuple):
    """So many equal bundles that are held together; a bundle never spans nodes."""

    count: int
    each: dict[str, float]


def gangs(resources: Resources) -> tuple[Gang, Gang]:
    """What a trial holds, one after the other: its group of workers, then its scorers. Trials have no judge."""
    return gang(resources.train), gang(resources.score)


def gang(pool: Actors | Workers) -> Gang:
    """The bundles of a pool."""
    if isinstance(pool, Workers):
        return Gang(pool.workers, {"CPU": pool.cpus, "GPU": float(pool.gpu)})
    # As in `units.tasks`: an actor that has GPUs asks for no CPUs.
    return Gang(pool.actors, {"GPU": float(pool.gpus)} if pool.gpus else {"CPU": pool.cpus})


def trials_at_once(wanted: Sequence[Gang], nodes: Sequence[Mapping[str, float]], most: int) -> int:
    """How many trials fit in whichever phase they are; at least one, which then waits for its room, and `most`."""
    return max(1, min([most, *(fitting(one, nodes, most) for one in wanted)]))


def fitting(wanted: Gang, nodes: Sequence[Mapping[str, float]], most: int) -> int:
    """How many such gangs fit together, at most `most`: bundles are equal, so those of each node can be counted."""
    need = {kind: amount for kind, amount in wanted.each.items() if amount}
    if not need:
        return most
    bundles = sum(min(int(node.get(kind, 0) / amount + 1e-6) for kind, amount in need.items()) for node in nodes)
    return min(most, bundles // wanted.count)
