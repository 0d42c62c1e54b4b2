"""Work in units on a real Ray: every unit exactly once, whatever dies on the way."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.cluster import disconnect
from minos_ray.errors import UserError, WorkStopped
from minos_ray.sections import Actors
from minos_ray.store import Artefact, Run
from minos_ray.units import run_units

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS_PER_UNIT = 3


@pytest.fixture(scope="module", autouse=True)
def leave_no_actor_behind() -> Iterator[None]:
    """Actors that are killed here on purpose may be restarting still; the next module gets a Ray of its own."""
    yield
    disconnect()


class Squares:
    """Three rows a unit; the first actor to take unit `dies_at` dies there, every one when `poison`."""

    def __init__(self, folder: str, dies_at: str = "", poison: bool = False) -> None:
        self.folder, self.dies_at, self.poison = Path(folder), dies_at, poison

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        units = batch["unit_id"].to_pylist()
        with open(self.folder / f"{os.getpid()}.pid", "a") as seen:
            seen.write("".join(f"{unit}\n" for unit in units))
        flag = self.folder / "died"
        if self.dies_at in units and (self.poison or not flag.exists()):
            flag.touch()
            os._exit(1)
        time.sleep(0.05)
        n = [int(unit) for unit in units for _ in range(ROWS_PER_UNIT)]
        return pa.table({"unit": n, "square": [i * i for i in n]}), {"tokens": len(n), "biggest": max(n)}


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    (tmp_path / "seen").mkdir()
    begun = Run(str(tmp_path / "run")).artefact("squares")
    begun.begin({"config": {}})
    return begun


@pytest.fixture
def do(tmp_path: Path, artefact: Artefact) -> Callable[..., dict[str, float]]:
    """`do(units, **kwargs)` runs Squares over the units with two actors, two units a batch."""

    def run(units: list[int], worker: type = Squares, **kwargs: object) -> dict[str, float]:
        return run_units(
            artefact.run,
            "squares",
            pa.table({"unit_id": pa.array([str(i) for i in units], pa.string())}),
            worker,
            {"folder": str(tmp_path / "seen"), **kwargs},
            Actors(actors=2, cpus=0.5),
            batch_units=2,
            label="squares",
            rows=len(units) * ROWS_PER_UNIT,
        )

    return run


def whole(artefact: Artefact, units: range) -> bool:
    """Whether the rows of all units are stored once each."""
    rows = sorted(artefact.read(partial=True).to_pylist(), key=lambda row: row["unit"])
    return rows == [{"unit": i, "square": i * i} for i in units for _ in range(ROWS_PER_UNIT)]


def test_every_unit_once_on_two_actors(artefact: Artefact, do: Callable[..., dict], tmp_path: Path) -> None:
    total = do(list(range(13)))
    assert whole(artefact, range(13))
    assert total["tokens"] == 39
    assert artefact.stats() == total
    seen = [path.read_text().split() for path in (tmp_path / "seen").glob("*.pid")]
    assert len(seen) == 2
    assert sorted(int(unit) for each in seen for unit in each) == list(range(13))


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_doubled(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path
) -> None:
    do(list(range(12)), dies_at="5")
    assert (tmp_path / "seen" / "died").exists()
    assert len(list((tmp_path / "seen").glob("*.pid"))) == 3
    assert whole(artefact, range(12))


@pytest.mark.slow
def test_a_unit_that_always_kills_ends_the_work_and_a_rerun_does_only_what_is_missing(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path
) -> None:
    with pytest.raises(WorkStopped, match="unit 5 killed 3 actors"):
        do(list(range(12)), dies_at="5", poison=True)
    stored = set(artefact.read(partial=True)["unit"].to_pylist())
    assert 5 not in stored
    assert artefact.manifest() is None
    for path in (tmp_path / "seen").iterdir():
        path.unlink()
    missing = [i for i in range(12) if i not in stored]
    do(missing)
    assert whole(artefact, range(12))
    seen = [int(unit) for path in (tmp_path / "seen").glob("*.pid") for unit in path.read_text().split()]
    assert sorted(seen) == missing


class Fails(Squares):
    """Raises at unit 5."""

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        if "5" in batch["unit_id"].to_pylist():
            raise ValueError("unit 5 is bad")
        return super().__call__(batch)


def test_an_exception_in_a_worker_ends_the_work_and_is_told(artefact: Artefact, do: Callable[..., dict]) -> None:
    with pytest.raises(Exception, match="unit 5 is bad"):
        do(list(range(12)), worker=Fails)
    assert artefact.manifest() is None


def test_nothing_to_do_asks_nobody(artefact: Artefact, do: Callable[..., dict], tmp_path: Path) -> None:
    assert do([]) == {}
    assert not list((tmp_path / "seen").iterdir())


def test_more_than_the_cluster_has_is_refused_with_numbers(artefact: Artefact) -> None:
    with pytest.raises(UserError, match=r"resources\.sample wants 64 CPU of 2"):
        run_units(
            artefact.run,
            "squares",
            pa.table({"unit_id": ["1"]}),
            Squares,
            {"folder": "x"},
            Actors(actors=8, cpus=8),
            batch_units=1,
            label="sample",
            rows=1,
        )
