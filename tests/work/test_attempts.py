"""Who is blamed for the death of an actor, from the files that it left."""

from pathlib import Path

import pytest

from minos_ray.store.run import Run
from minos_ray.work.poison import BARREN, DEATHS, Attempts, Lives


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run directory."""
    return Run(str(tmp_path / "run"))


def restarted(run: Run) -> Attempts:
    """What the next actor reads."""
    return Attempts(run, "candidates/attempts/session/task", "node")


def test_units_in_work_at_a_death_are_suspects_and_finished_ones_are_not(run: Run) -> None:
    first = restarted(run)
    assert not first.again
    first.start(["a", "b"])
    first.finish(["a"])
    first.start(["c"])
    second = restarted(run)
    second.blame(["a", "b", "c", "d"])
    assert second.deaths == {"b": 1, "c": 1}
    assert restarted(run).deaths == {"b": 1, "c": 1}


def test_a_unit_whose_part_was_stored_last_is_not_blamed(run: Run) -> None:
    restarted(run).start(["a", "b"])
    again = restarted(run)
    again.blame(["b"])
    assert again.deaths == {"b": 1}


def test_three_deaths_are_enough(run: Run) -> None:
    for _ in range(DEATHS):
        attempts = restarted(run)
        assert not attempts.guilty("a")
        attempts.start(["a"])
        again = restarted(run)
        again.blame(["a"])
    assert again.guilty("a")
    assert not again.guilty("b")


def test_a_lost_node_is_nobodys_fault(run: Run) -> None:
    restarted(run).start(["a"])
    restarted(run).forgive()
    again = restarted(run)
    again.blame(["a"])
    assert again.deaths == {}


def test_an_actor_has_so_many_lives_and_gets_them_back_when_it_stores_something(run: Run) -> None:
    lives = [Lives(run, "actor") for _ in range(BARREN + 1)]
    assert [life.left for life in lives] == [True] * BARREN + [False]
    lives[0].renew()
    assert [Lives(run, "actor").left for _ in range(BARREN + 1)] == [True] * BARREN + [False]
    assert Lives(run, "other").left
