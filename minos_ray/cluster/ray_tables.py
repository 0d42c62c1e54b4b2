"""What Ray's own tables tell of a cluster: free room node by node, who holds the rest, whether nodes may come.

Everything that has no public call is here. The state API (`ray.util.state`) asks a dashboard, which a local Ray and
many clusters do not have, and neither it nor `placement_group_table` tells what an actor or a group holds for which
job. Written against Ray 2.60.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from minos_ray.cluster.bundles import KINDS, amounts

SHOWN = 3
# How Ray's monitor names nodes of a cluster that nobody scales.
FIXED = "node_"
Holding = tuple[str, str, dict[str, float]]


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
    for name, job, resources in (*actors(), *placement_groups()):
        held[name, job].update({"count": 1, **resources})
    by_size = sorted(held.items(), key=lambda item: (-item[1]["GPU"], -item[1]["CPU"]))
    parts = [f"{r['count']} x {name} of {job_name(job, mine)}: {amounts(r)}" for (name, job), r in by_size[:SHOWN]]
    if len(by_size) > SHOWN:
        parts.append(f"{len(by_size) - SHOWN} more")
    in_tasks = {kind: used.get(kind, 0) - sum(resources[kind] for resources in held.values()) for kind in KINDS}
    if any(amount > 1e-3 for amount in in_tasks.values()):
        parts.append(f"tasks: {amounts({kind: amount for kind, amount in in_tasks.items() if amount > 1e-3})}")
    return "; ".join(parts)


def actors() -> list[Holding]:
    """Class, job and resources of the living actors outside placement groups, which are counted as groups."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    holding = []
    for raw in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(raw)
        resources = {kind: actor.required_resources[kind] for kind in KINDS if actor.required_resources.get(kind)}
        if resources:
            name = actor.class_name.partition("(")[0].rpartition(".")[2]
            holding.append((name, actor.job_id.hex(), resources))
    return holding


def placement_groups() -> list[Holding]:
    """Job and resources of the placement groups that have their place."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    holding = []
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        if group.state == PlacementGroupTableData.CREATED:
            sums = {kind: sum(bundle.unit_resources.get(kind, 0) for bundle in group.bundles) for kind in KINDS}
            holding.append(("placement group", group.creator_job_id.hex(), sums))
    return holding


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

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = [group for group in config.node_group_configs if group.max_count]
        return Growth(bool(groups), tuple(dict(group.resources) for group in groups))
    # The newer autoscaler (KubeRay's) has a version once it has reported.
    version = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=5).stats.autoscaler_version
    return Growth(launcher_scales() or int(version or 0) > 0)


def launcher_scales() -> bool:
    """Whether the monitor of a launcher's cluster (autoscaler v1) has named types of nodes of its own."""
    from ray.experimental.internal_kv import _internal_kv_get

    status = _internal_kv_get("__autoscaling_status")
    report = (json.loads(status).get("autoscaler_report") or {}) if status else {}
    types = {*(report.get("active_nodes") or {}), *(report.get("node_type_mapping") or {}).values()}
    return any(not name.startswith(FIXED) for name in types)
