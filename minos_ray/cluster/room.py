"""Room on nodes: what the actors and workers of a pool need (none of them spans two nodes, so sums over the cluster say
little), and what Ray's own tables tell: free room node by node, who holds the rest, whether nodes may come.

Everything that has no public call is here. The state API (`ray.util.state`) asks a dashboard, which a local Ray and
many clusters do not have, and neither it nor `placement_group_table` tells what an actor or a group holds for which
job. Written against Ray 2.60.
"""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from minos_ray.config.resources import Actors, Engine, Pool, Workers

# Nodes in the line of what does not fit, and holders in that of what is taken.
SHOWN, SHOWN_HOLDERS = 4, 3
KINDS = ("CPU", "GPU")
# Ray counts resources in ten-thousandths.
PRECISION = 1e-6
# A node with GPUs of a type has 1 of the resource of that name, of which whoever wants that type takes so much.
ACCELERATOR, SLIVER = "accelerator_type:", 0.001
# How Ray's monitor names nodes of a cluster that nobody scales.
FIXED = "node_"


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


class Growth(NamedTuple):
    """Whether an autoscaler runs, and what the nodes have that it could add; None when it does not tell."""

    possible: bool
    types: tuple[dict[str, float], ...] | None = None


def draining() -> dict[str, int]:
    """Ids of the nodes that are to go, on which Ray starts nothing more; when, in ms since the epoch (0: not told)."""
    from ray._private.state import state

    return state.get_draining_nodes()


def free_by_node() -> dict[str, dict[str, float]]:
    """What is free now, by id of the node, where Ray may start something."""
    from ray._private.state import available_resources_per_node

    leaving = draining()
    return {node: free for node, free in available_resources_per_node().items() if node not in leaving}


def held_by_this_actor() -> dict[str, Counter[str]]:
    """What the placement groups of the actor that asks hold, by id of the node."""
    import ray
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    actor, held = ray.get_runtime_context().get_actor_id(), defaultdict(Counter)
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        # One that lost a node is placed again, but holds the others.
        in_place = group.state in (PlacementGroupTableData.CREATED, PlacementGroupTableData.RESCHEDULING)
        if in_place and group.creator_actor_id.hex() == actor:
            for bundle in group.bundles:
                held[bundle.node_id.hex()].update(bundle.unit_resources)
    return held


def holders(used: Mapping[str, float]) -> str:
    """`2 x MapWorker of job 02000000 (other.py): 8 GPU; tasks: 1 CPU`; `used` is what is taken in all."""
    import ray

    held: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    mine = ray.get_runtime_context().get_job_id()
    for name, job, resources in holdings():
        held[name, job].update({"count": 1, **resources})
    by_size = sorted(held.items(), key=lambda item: (-item[1]["GPU"], -item[1]["CPU"]))
    parts = [
        f"{r['count']} x {name} of {job_name(job, mine)}: {amounts(r)}" for (name, job), r in by_size[:SHOWN_HOLDERS]
    ]
    if len(by_size) > SHOWN_HOLDERS:
        parts.append(f"{len(by_size) - SHOWN_HOLDERS} more")
    in_tasks = {kind: used.get(kind, 0) - sum(resources[kind] for resources in held.values()) for kind in KINDS}
    if any(amount > 1e-3 for amount in in_tasks.values()):
        parts.append(f"tasks: {amounts({kind: amount for kind, amount in in_tasks.items() if amount > 1e-3})}")
    return "; ".join(parts)


def holdings() -> Iterator[tuple[str, str, dict[str, float]]]:
    """Class, job and resources of living actors outside placement groups, and of the groups that have their place."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData, PlacementGroupTableData

    tables = state._connect_and_get_accessor()
    for raw in tables.get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(raw)
        resources = {kind: actor.required_resources[kind] for kind in KINDS if actor.required_resources.get(kind)}
        if resources:
            yield actor.class_name.partition("(")[0].rpartition(".")[2], actor.job_id.hex(), resources
    for raw in tables.get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        if group.state == PlacementGroupTableData.CREATED:
            sums = {kind: sum(bundle.unit_resources.get(kind, 0) for bundle in group.bundles) for kind in KINDS}
            yield "placement group", group.creator_job_id.hex(), sums


def job_name(job: str, mine: str) -> str:
    """A job by its number and its script or module; the rest of a command may hold secrets."""
    from ray._private.state import state

    if job == mine:
        return "this run"
    command = next((entry["Entrypoint"] for entry in state.job_table() if entry["JobID"] == job), "")
    script = re.search(r"[\w-]+\.py(?!\S)|(?<!\S)-m [\w.]+", command)
    return f"job {job}" + (f" ({script[0]})" if script else "")


def growth() -> Growth:
    """What the cluster that was joined tells of nodes that may come; types only where its platform reports them."""
    import ray
    from ray._private.state import state
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = [group for group in config.node_group_configs if group.max_count]
        return Growth(bool(groups), tuple(dict(group.resources) for group in groups))
    # The newer autoscaler (KubeRay's) has a version once it has reported.
    version = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=5).stats.autoscaler_version
    # The monitor of a launcher's cluster (autoscaler v1) names types of nodes of its own.
    status = _internal_kv_get("__autoscaling_status")
    report = (json.loads(status).get("autoscaler_report") or {}) if status else {}
    types = {*(report.get("active_nodes") or {}), *(report.get("node_type_mapping") or {}).values()}
    return Growth(int(version or 0) > 0 or any(not name.startswith(FIXED) for name in types))
