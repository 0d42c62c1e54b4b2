"""Whether nodes may come that are not there yet, as far as Ray tells."""

import json
from typing import NamedTuple

# How Ray's monitor names nodes of a cluster that nobody scales.
FIXED = "node_"


class Growth(NamedTuple):
    """Whether an autoscaler runs, and what the nodes have that it could add; None when it does not tell."""

    possible: bool
    types: tuple[dict[str, float], ...] | None = None


def growth() -> Growth:
    """What the cluster that was joined tells. Ray 2.60 knows node types only where its platform reports them."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        groups = [group for group in config.node_group_configs if group.max_count]
        return Growth(bool(groups), tuple(dict(group.resources) for group in groups))
    return Growth(autoscaler_v1() or autoscaler_v2())


def autoscaler_v1() -> bool:
    """Whether the monitor of a launcher's cluster has told of node types of its own."""
    from ray.experimental.internal_kv import _internal_kv_get

    told = _internal_kv_get("__autoscaling_status")
    report = (json.loads(told).get("autoscaler_report") or {}) if told else {}
    types = {*(report.get("active_nodes") or {}), *(report.get("node_type_mapping") or {}).values()}
    return any(not name.startswith(FIXED) for name in types)


def autoscaler_v2() -> bool:
    """Whether the newer autoscaler (KubeRay's) has reported its state."""
    import ray
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    reply = ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=5)
    return GetClusterStatusReply.FromString(reply).autoscaling_state.autoscaler_state_version > 0
