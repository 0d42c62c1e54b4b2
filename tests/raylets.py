"""A Ray cluster of real raylets on this machine, and ports for servers."""

import os
import random
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from minos_ray.cluster.connect import disconnect

STORE = {"object_store_memory": 100 << 20}
# Ray's own actors that live as long as the driver or longer, and hold nothing.
RAYS = {"_StatsActor", "ActorLocationTracker", "_AutoscalingCoordinatorActor", "TrainStateActor", "_DatasetStateActor"}


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on, and that nobody gets who asks for any port or for one of Ray's."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports += [port] if port not in ports else []
    return ports


@contextmanager
def cluster_of_raylets(monkeypatch: pytest.MonkeyPatch, **head: Any) -> Iterator[Any]:
    """A head without CPUs that notices a lost node within two seconds; nodes are to be added. `head`: its settings."""
    import ray
    from ray.cluster_utils import Cluster

    disconnect()
    monkeypatch.setitem(os.environ, "RAY_health_check_period_ms", "300")
    monkeypatch.setitem(os.environ, "RAY_health_check_failure_threshold", "3")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE, **head})
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def drain(node: Any, seconds: float) -> None:
    """Ray is told that a node is to be taken away after so many seconds; who calls this takes it away."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    deadline_ms = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=node.gcs_address).drain_node(node.node_id, reason, "a test", deadline_ms)
    assert accepted, why


def held() -> list[str]:
    """Resources, placement groups and actors that somebody still holds."""
    import ray
    from ray._private.state import actors
    from ray.util import placement_group_table

    have, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in have if not kind.startswith(("object_store_memory", "memory"))]
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    alive = [actor["ActorClassName"].rpartition(".")[2] for actor in actors().values() if actor["State"] != "DEAD"]
    return [
        *(f"{have[kind] - free.get(kind, 0):g} {kind}" for kind in kinds if have[kind] - free.get(kind, 0) > 1e-6),
        *(f"group {group['bundles']}" for group in groups),
        *(f"actor {name}" for name in alive if name not in RAYS),
    ]


def all_is_free(beside: Sequence[str] = (), seconds: float = 120) -> None:
    """Fails with what is held when that does not end soon."""
    deadline = time.monotonic() + seconds
    while (left := held()) != list(beside) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == list(beside)
