"""Who is blamed for the death of an actor, from the files that it left."""

from pathlib import Path

import pytest

from minos_ray.attempts import BARREN, DEATHS, Attempts, starting
from minos_ray.store import Run


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
    second.blame(["a", "b", "c", "d"], stored=0)
    assert second.deaths == {"b": 1, "c": 1}
    assert restarted(run).deaths == {"b": 1, "c": 1}


def test_a_unit_whose_part_was_stored_last_is_not_blamed(run: Run) -> None:
    restarted(run).start(["a", "b"])
    again = restarted(run)
    again.blame(["b"], stored=1)
    assert again.deaths == {"b": 1}


def test_three_deaths_are_enough_and_deaths_without_progress_are_counted(run: Run) -> None:
    for death in range(DEATHS):
        attempts = restarted(run)
        assert not attempts.guilty("a")
        attempts.start(["a"])
        again = restarted(run)
        again.blame(["a"], stored=0)
        assert again.barren == death + 1
    assert again.guilty("a")
    assert again.barren < BARREN
    again.start(["b"])
    progress = restarted(run)
    progress.blame(["a", "b"], stored=3)
    assert progress.barren == 1


def test_a_lost_node_is_nobodys_fault(run: Run) -> None:
    restarted(run).start(["a"])
    restarted(run).forgive()
    again = restarted(run)
    again.blame(["a"], stored=0)
    assert again.deaths == {}


def test_a_start_that_dies_three_times_is_an_error(run: Run) -> None:
    for _ in range(DEATHS):
        with pytest.raises(KeyboardInterrupt), starting(run, "start"):
            raise KeyboardInterrupt
    with pytest.raises(RuntimeError, match="died 3 times while it was starting"), starting(run, "start"):
        pass
    with starting(run, "other"):
        pass
    assert not run.exists("other.json")
