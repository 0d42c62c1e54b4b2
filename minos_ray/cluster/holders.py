"""Who holds the CPUs and GPUs of a cluster, as Ray's own tables tell."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping

from minos_ray.cluster.bundles import KINDS, amounts

SHOWN = 3


def holders(used: Mapping[str, float]) -> str:
    """`2 x MapWorker of job 02000000 (other.py): 8 GPU; tasks: 1 CPU`; `used` is what is taken in all."""
    import ray

    held: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    mine = ray.get_runtime_context().get_job_id()
    for who, job, resources in (*actors(), *placement_groups()):
        held[who, job].update({"count": 1, **resources})
    known = Counter[str]()
    for resources in held.values():
        known.update({kind: resources[kind] for kind in KINDS})
    rest = {kind: amount for kind in KINDS if (amount := used.get(kind, 0) - known[kind]) > 1e-3}
    by_size = sorted(held.items(), key=lambda item: (-item[1]["GPU"], -item[1]["CPU"]))
    said = [f"{r['count']} x {who} of {job_name(job, mine)}: {amounts(r)}" for (who, job), r in by_size[:SHOWN]]
    said += [f"{len(by_size) - SHOWN} more"] if len(by_size) > SHOWN else []
    return "; ".join(said + ([f"tasks: {amounts(rest)}"] if rest else []))


def actors() -> list[tuple[str, str, dict[str, float]]]:
    """Class, job and resources of the living actors outside placement groups, which are counted as groups."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import ActorTableData

    found = []
    for raw in state._connect_and_get_accessor().get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(raw)
        resources = {kind: actor.required_resources[kind] for kind in KINDS if actor.required_resources.get(kind)}
        if resources:
            name = actor.class_name.partition("(")[0].rpartition(".")[2]
            found.append((name, actor.job_id.hex(), resources))
    return found


def placement_groups() -> list[tuple[str, str, dict[str, float]]]:
    """Job and resources of the placement groups that have their place."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    found = []
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(raw)
        if group.state == PlacementGroupTableData.CREATED:
            sums = {kind: sum(bundle.unit_resources.get(kind, 0) for bundle in group.bundles) for kind in KINDS}
            found.append(("placement group", group.creator_job_id.hex(), sums))
    return found


def job_name(job: str, mine: str) -> str:
    """A job by its number and its script or module; the rest of a command may hold secrets."""
    from ray._private.state import state

    if job == mine:
        return "this run"
    command = next((entry["Entrypoint"] for entry in state.job_table() if entry["JobID"] == job), "")
    named = re.search(r"[\w-]+\.py(?!\S)|(?<!\S)-m [\w.]+", command)
    return f"job {job}" + (f" ({named[0]})" if named else "")
