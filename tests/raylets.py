"""A Ray cluster of real raylets on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from minos_ray.cluster import disconnect

STORE = {"object_store_memory": 100 << 20}


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
