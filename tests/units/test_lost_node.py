"""A node that is lost or drained under an actor, on a cluster of real raylets on this machine."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from minos_ray.cluster.nodes import alive
from minos_ray.cluster.room import draining
from minos_ray.config.resources import Actors, Resources
from minos_ray.store.run import Run
from minos_ray.units.actor import ASK_S
from minos_ray.units.run_units import Work, run_units
from tests.raylets import Raylets, drain, enter, started_raylets

pytestmark = pytest.mark.slow


class Slow:
    """Says which units it was given on which node; the first call lasts until that is gone, or is to go."""

    def __init__(self, folder: str) -> None:
        import ray

        self.calls, self.node = Path(folder) / "calls", ray.get_runtime_context().get_node_id()

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        with open(self.calls, "a") as calls:
            calls.write(f"{self.node} {' '.join(units['unit_id'].to_pylist())}\n")
        deadline = time.monotonic() + 300
        while len(self.calls.read_text().splitlines()) == 1 and time.monotonic() < deadline:
            if self.node in draining():
                time.sleep(ASK_S)
                break
            time.sleep(0.05)
        return pa.table({"unit": units["unit_id"]}), {}


@pytest.fixture(scope="module")
def cluster(end_of_ray: None) -> Iterator[Raylets]:
    """Joined; nodes are added by the tests."""
    with started_raylets() as made:
        enter(made)
        yield made


def wait_for(happened: Callable[[], bool]) -> None:
    """Fails when it does not happen within three minutes."""
    deadline = time.monotonic() + 180
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def calls_of(cluster: Raylets, folder: Path, batch_units: int, end_node: Callable[[Any], None]) -> list[list[str]]:
    """Node and units of each call of `Slow`; the node of the first call ends during it, and another is there then."""
    first = cluster.add()
    run = Run(str(folder / "run"))
    units = pa.table({"unit_id": ["0", "1", "2", "3"]})
    slow = Work("slow", "grade", Slow, {"folder": str(folder)}, batch_units=batch_units, least_units=4, rows=4)
    arguments = (run, "slow", units, slow, Resources(grade=Actors(actors=1, cpus=1)))
    work = threading.Thread(target=run_units, args=arguments, daemon=True)
    work.start()
    calls = folder / "calls"
    wait_for(lambda: calls.exists() and bool(calls.read_text()))
    second = cluster.add()
    end_node(first)
    work.join(timeout=240)
    assert not work.is_alive()
    assert sorted(run.artefact("slow").read(partial=True)["unit"].to_pylist()) == ["0", "1", "2", "3"]
    cluster.remove(second)
    lines = [line.split() for line in calls.read_text().splitlines()]
    return [[{first.node_id: "first", second.node_id: "second"}[node], *ids] for node, *ids in lines]


def test_a_lost_node_is_not_the_fault_of_the_units_that_were_in_work(cluster: Raylets, tmp_path: Path) -> None:
    calls = calls_of(cluster, tmp_path, 4, lambda node: cluster.remove(node, lost=True))
    assert calls == [["first", "0", "1", "2", "3"], ["second", "0", "1", "2", "3"]], "nobody is suspected"


def test_a_drained_node_finishes_the_unit_in_work_and_hands_back_the_others(cluster: Raylets, tmp_path: Path) -> None:
    """Long before the time that the node has: once it has no work, Ray ends it."""

    def drain_and_see(node: Any) -> None:
        drain(node, seconds=3600)
        assert node.node_id not in {node.id for node in alive()}, "nothing more is placed there"
        wait_for(lambda: node.all_processes["raylet"][0].process.poll() is not None)
        cluster.remove(node, lost=True)

    calls = calls_of(cluster, tmp_path, 1, drain_and_see)
    assert calls == [["first", "0"], ["second", "1"], ["second", "2"], ["second", "3"]]
