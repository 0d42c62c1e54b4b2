"""Room for actors and workers on nodes: none of them spans two, so sums over the cluster say little."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from minos_ray.config.resources import Actors, Workers

SHOWN = 4
KINDS = ("CPU", "GPU")
# Ray counts resources in ten-thousandths.
PRECISION = 1e-6


class Bundles(NamedTuple):
    """So many actors or workers, each of which takes `bundle` on one node; amounts are above 0."""

    count: int
    bundle: dict[str, float]

    def __str__(self) -> str:
        """`2 x (1 CPU, 4 GPU)`."""
        return f"{self.count} x ({amounts(self.bundle)})"

    @property
    def total(self) -> dict[str, float]:
        """What all take together."""
        return {kind: self.count * amount for kind, amount in self.bundle.items()}


def bundles(pool: Actors | Workers) -> Bundles:
    """What Ray reserves for a pool; Ray Data gives an actor on GPUs one CPU, whatever the config says."""
    if isinstance(pool, Workers):
        count, resources = pool.workers, {"CPU": pool.cpus, "GPU": float(pool.gpu)}
    else:
        count, resources = pool.actors, {"CPU": 1.0 if pool.gpus else pool.cpus, "GPU": float(pool.gpus)}
    return Bundles(count, {kind: amount for kind, amount in resources.items() if amount})


def room(need: Bundles, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many of the bundles fit on nodes that have this much (all are equal, so counting node by node is exact)."""
    if not need.bundle:
        return need.count
    return min(need.count, sum(on_one(need.bundle, node) for node in nodes))


def on_one(bundle: Mapping[str, float], node: Mapping[str, float]) -> int:
    """How many bundles one node holds."""
    return min(math.floor(node.get(kind, 0.0) / amount + PRECISION) for kind, amount in bundle.items())


def lack(key: str, need: Bundles, nodes: Mapping[str, Mapping[str, float]]) -> str | None:
    """One line when not all bundles fit on the nodes, named by their address; None when they do."""
    fitting = room(need, nodes.values())
    if fitting == need.count:
        return None
    useful = {name: node for name, node in nodes.items() if any(node.get(kind) for kind in KINDS)}
    by_size = sorted(useful.items(), key=lambda item: [-item[1].get(kind, 0) for kind in reversed(KINDS)])
    largest = [f"{name}: {amounts(node)}" for name, node in by_size[:SHOWN]]
    others = [f"{len(useful) - SHOWN} more nodes"] if len(useful) > SHOWN else []
    places = "; ".join([*largest, *others]) or "no node with CPUs or GPUs"
    return f"{key} wants {need}, each on one node: {fitting} of {need.count} fit on {places}"


def amounts(resources: Mapping[str, float]) -> str:
    """`1 CPU, 4 GPU`."""
    return ", ".join(f"{resources[kind]:g} {kind}" for kind in KINDS if resources.get(kind)) or "no CPU and no GPU"


def summed(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """All CPUs and GPUs of some nodes."""
    return {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in KINDS}
