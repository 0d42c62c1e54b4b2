"""A node that is lost under an actor, on a cluster of three real raylets on this machine."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from minos_ray.cluster.connect import quiet_data
from minos_ray.config.resources import Actors, Resources
from minos_ray.store.run import Run
from minos_ray.work.run_units import Work, run_units
from tests.raylets import STORE, cluster_of_raylets


class Slow:
    """Says which units it was given; the first call lasts until its node is gone."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        with open(self.folder / "calls", "a") as calls:
            calls.write(" ".join(units["unit_id"].to_pylist()) + "\n")
        if len((self.folder / "calls").read_text().splitlines()) == 1:
            time.sleep(300)
        return pa.table({"unit": units["unit_id"]}), {}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Nodes are added by the test."""
    with cluster_of_raylets(monkeypatch) as made:
        yield made


@pytest.mark.slow
def test_a_lost_node_is_not_the_fault_of_the_units_that_were_in_work(cluster: Any, tmp_path: Path) -> None:
    import ray

    first = cluster.add_node(num_cpus=1, **STORE)
    ray.init(address=cluster.address, log_to_driver=False)
    quiet_data()
    run = Run(str(tmp_path / "run"))
    units = pa.table({"unit_id": ["0", "1", "2", "3"]})
    slow = Work("slow", "grade", Slow, {"folder": str(tmp_path)}, batch_units=4, least_units=4, rows=4)
    arguments = (run, "slow", units, slow, Resources(grade=Actors(actors=1, cpus=1)))
    work = threading.Thread(target=run_units, args=arguments, daemon=True)
    work.start()
    calls, deadline = tmp_path / "calls", time.monotonic() + 180
    while not (calls.exists() and calls.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cluster.add_node(num_cpus=1, **STORE)
    cluster.remove_node(first, allow_graceful=False)
    work.join(timeout=240)
    assert not work.is_alive()
    assert calls.read_text().splitlines() == ["0 1 2 3", "0 1 2 3"], "nobody is suspected"
    assert sorted(run.artefact("slow").read(partial=True)["unit"].to_pylist()) == ["0", "1", "2", "3"]
