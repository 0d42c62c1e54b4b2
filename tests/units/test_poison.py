"""Which units are suspected of the crash of an actor, from the files that it left."""

from pathlib import Path

import pytest

from minos_ray.store.run import Run
from minos_ray.units.actor import MAX_CRASHES, MAX_RESTARTS, CrashLog, RestartBudget


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run directory."""
    return Run(str(tmp_path / "run"))


def restarted(run: Run) -> CrashLog:
    """What the next actor reads."""
    return CrashLog(run, "candidates/attempts/session/task", "node")


def test_units_in_flight_at_a_crash_are_suspects_and_finished_ones_are_not(run: Run) -> None:
    first = restarted(run)
    assert not first.is_retry
    first.start(["a", "b"])
    first.finish(["a"])
    first.start(["c"])
    second = restarted(run)
    second.count_crash(["a", "b", "c", "d"])
    assert second.crashes == {"b": 1, "c": 1}
    assert restarted(run).crashes == {"b": 1, "c": 1}


def test_a_unit_whose_part_was_stored_last_is_no_suspect(run: Run) -> None:
    restarted(run).start(["a", "b"])
    again = restarted(run)
    again.count_crash(["b"])
    assert again.crashes == {"b": 1}


def test_three_crashes_are_enough(run: Run) -> None:
    for _ in range(MAX_CRASHES):
        log = restarted(run)
        assert not log.is_poisoned("a")
        log.start(["a"])
        again = restarted(run)
        again.count_crash(["a"])
    assert again.is_poisoned("a")
    assert not again.is_poisoned("b")


def test_a_lost_node_is_nobodys_fault(run: Run) -> None:
    restarted(run).start(["a"])
    restarted(run).clear_in_flight()
    again = restarted(run)
    again.count_crash(["a"])
    assert again.crashes == {}


def test_an_actor_may_restart_so_often_and_again_when_it_stores_something(run: Run) -> None:
    budgets = [RestartBudget(run, "actor") for _ in range(MAX_RESTARTS + 1)]
    assert [budget.exhausted for budget in budgets] == [False] * MAX_RESTARTS + [True]
    budgets[0].reset()
    assert [RestartBudget(run, "actor").exhausted for _ in range(MAX_RESTARTS + 1)] == [False] * MAX_RESTARTS + [True]
    assert not RestartBudget(run, "other").exhausted
