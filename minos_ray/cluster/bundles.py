"""Room for actors and workers on nodes: none of them spans two, so sums over the cluster say little."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from minos_ray.config.resources import Actors, Engine, Pool, Workers

SHOWN = 4
KINDS = ("CPU", "GPU")
# Ray counts resources in ten-thousandths.
PRECISION = 1e-6
# A node with GPUs of a type has 1 of the resource of that name, of which whoever wants that type takes so much.
ACCELERATOR, SLIVER = "accelerator_type:", 0.001


class Bundles(NamedTuple):
    """So many actors or workers, each of which takes `bundle` on one node; amounts are above 0.

    `labels` is the selector that the labels of the node have to meet.
    """

    count: int
    bundle: dict[str, float]
    labels: Mapping[str, str] = MappingProxyType({})

    def __str__(self) -> str:
        """`2 x (1 CPU, 4 GPU, accelerator_type:A100, market=spot)`."""
        return f"{self.count} x ({', '.join([amounts(self.bundle), *self.conditions])})"

    @property
    def conditions(self) -> list[str]:
        """What a node has to be, besides large enough: an entry of its resources, as `offer` gives them, for each."""
        types = [kind for kind in self.bundle if kind not in KINDS]
        return types + [f"{key}={condition}" for key, condition in self.labels.items()]

    def offer(self, resources: Mapping[str, float], labels: Mapping[str, str]) -> dict[str, float]:
        """What a node has, and an entry for each condition on its labels that it meets, as Ray reads them."""
        offered = dict(resources)
        for key, condition in self.labels.items():
            values = re.split(r", ?", condition.removeprefix("!").removeprefix("in(").removesuffix(")"))
            if (labels.get(key) in values) != condition.startswith("!"):  # no label is none of the values
                offered[f"{key}={condition}"] = 1.0
        return offered

    def without_conditions(self) -> "Bundles":
        """CPUs and GPUs alone."""
        return Bundles(self.count, {kind: self.bundle[kind] for kind in KINDS if kind in self.bundle})

    @property
    def total(self) -> dict[str, float]:
        """What all take together."""
        return {kind: self.count * amount for kind, amount in self.bundle.items()}


def bundles(pool: Actors | Workers) -> Bundles:
    """What Ray reserves for a pool; Ray Data gives an actor on GPUs one CPU, whatever the config says.

    An engine in several parts takes a bundle for each of them.
    """
    if isinstance(pool, Workers):
        count, resources = pool.least, {"CPU": pool.cpus, "GPU": float(pool.gpu)}
    else:
        parts = pool.pipeline_parallel_size if isinstance(pool, Engine) else 1
        count, resources = pool.actors * parts, {"CPU": 1.0 if pool.gpus else pool.cpus, "GPU": float(pool.gpus)}
    if pool.accelerator_type:
        resources[f"{ACCELERATOR}{pool.accelerator_type}"] = SLIVER
    return Bundles(count, {kind: amount for kind, amount in resources.items() if amount}, pool.label_selector)


def on_nodes(pool: Pool) -> dict[str, Any]:
    """Arguments that keep tasks, actors of Ray Data and workers of Ray Train on the nodes of a pool."""
    keys = {"accelerator_type": pool.accelerator_type, "label_selector": pool.label_selector}
    return {key: value for key, value in keys.items() if value}


def room(need: Bundles, nodes: Iterable[Mapping[str, float]]) -> int:
    """How many of the bundles fit on nodes that have this much (all are equal, so counting node by node is exact)."""
    if not need.bundle and not need.labels:
        return need.count
    return min(need.count, sum(on_one(need, node) for node in nodes))


def on_one(need: Bundles, node: Mapping[str, float]) -> int:
    """How many of the bundles one node holds, none where it does not meet the conditions."""
    if not all(node.get(condition) for condition in need.conditions):
        return 0
    fitting = (math.floor(node.get(kind, 0.0) / amount + PRECISION) for kind, amount in need.bundle.items())
    return min(fitting, default=need.count)


def lack(key: str, need: Bundles, nodes: Mapping[str, Mapping[str, float]]) -> str | None:
    """One line when not all bundles fit on the nodes, named by their address; None when they do. `nodes` have what
    `Bundles.offer` gives."""
    fitting = room(need, nodes.values())
    if fitting == need.count:
        return None
    useful = {name: node for name, node in nodes.items() if any(node.get(kind) for kind in KINDS)}
    by_size = sorted(useful.items(), key=lambda item: [-item[1].get(kind, 0) for kind in reversed(KINDS)])
    lacking = {name: [c for c in need.conditions if not node.get(c)] for name, node in by_size[:SHOWN]}
    largest = [
        f"{name}: {amounts(node)}" + (f", not {' nor '.join(lacking[name])}" if lacking[name] else "")
        for name, node in by_size[:SHOWN]
    ]
    others = [f"{len(useful) - SHOWN} more nodes"] if len(useful) > SHOWN else []
    places = "; ".join([*largest, *others]) or "no node with CPUs or GPUs"
    return f"{key} wants {need}, each on one node: {fitting} of {need.count} fit on {places}"


def amounts(resources: Mapping[str, float]) -> str:
    """`1 CPU, 4 GPU`."""
    return ", ".join(f"{resources[kind]:g} {kind}" for kind in KINDS if resources.get(kind)) or "no CPU and no GPU"


def summed(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """All CPUs and GPUs of some nodes."""
    return {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in KINDS}
