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
    """So many actors or workers, each of which takes this on one node; amounts are above 0."""

    count: int
    each: dict[str, float]

    def __str__(self) -> str:
        """`2 x (1 CPU, 4 GPU)`."""
        return f"{self.count} x ({amounts(self.each)})"

    @property
    def total(self) -> dict[str, float]:
        """What all take together."""
        return {kind: self.count * amount for kind, amount in self.each.items()}


def bundles(pool: Actors | Workers) -> Bundles:
    """What Ray reserves for a pool; Ray Data gives an actor on GPUs one CPU, whatever the config says."""
    if isinstance(pool, Workers):
        each = {"CPU": pool.cpus, "GPU": float(pool.gpu)}
        return Bundles(pool.workers, {kind: amount for kind, amount in each.items() if amount})
    each = {"CPU": 1.0 if pool.gpus else pool.cpus, "GPU": float(pool.gpus)}
    return Bundles(pool.actors, {kind: amount for kind, amount in each.items() if amount})


def room(wanted: Bundles, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many of the bundles fit on nodes that have this much (all are equal, so counting node by node is exact)."""
    if not wanted.each:
        return wanted.count
    return min(wanted.count, sum(on_one(wanted.each, node) for node in nodes))


def on_one(each: Mapping[str, float], node: Mapping[str, float]) -> int:
    """How many bundles one node holds."""
    return min(math.floor(node.get(kind, 0.0) / amount + PRECISION) for kind, amount in each.items())


def lack(key: str, wanted: Bundles, nodes: Mapping[str, Mapping[str, float]]) -> str | None:
    """One line when not all bundles fit on the nodes, named by their address; None when they do."""
    fitting = room(wanted, nodes.values())
    if fitting == wanted.count:
        return None
    return f"{key} wants {wanted}, each on one node: {fitting} of {wanted.count} fit on {shown(nodes)}"


def shown(nodes: Mapping[str, Mapping[str, float]]) -> str:
    """`127.0.0.2: 4 CPU, 3 GPU; 127.0.0.3: 2 CPU`, the largest nodes first."""
    useful = {name: node for name, node in nodes.items() if any(node.get(kind) for kind in KINDS)}
    by_size = sorted(useful.items(), key=lambda item: [-item[1].get(kind, 0) for kind in reversed(KINDS)])
    named = [f"{name}: {amounts(node)}" for name, node in by_size[:SHOWN]]
    more = [f"{len(useful) - SHOWN} more nodes"] if len(useful) > SHOWN else []
    return "; ".join([*named, *more]) or "no node with CPUs or GPUs"


def amounts(of: Mapping[str, float]) -> str:
    """`1 CPU, 4 GPU`."""
    return ", ".join(f"{of[kind]:g} {kind}" for kind in KINDS if of.get(kind)) or "no CPU and no GPU"


def summed(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """All CPUs and GPUs of some nodes."""
    return {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in KINDS}
