"""Work in units on a real Ray: every unit exactly once, whatever dies on the way."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.cluster.connect import disconnect
from minos_ray.config.resources import Actors, Engine, Resources
from minos_ray.errors import UserError, WorkStopped
from minos_ray.store.run import Artefact, Run
from minos_ray.units import run_units as run_units_module
from minos_ray.units.actor import MAX_CRASHES, Finished
from minos_ray.units.run_units import Work, run_units
from tests.raylets import all_is_free

pytestmark = pytest.mark.usefixtures("local_ray")

ROWS_PER_UNIT = 3
# Restarts without progress that end the work here: every one takes seconds.
FEW_RESTARTS = 3


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
            seen.write(" ".join(units) + "\n")
        flag = self.folder / "died"
        if self.dies_at in units and (self.poison or not flag.exists()):
            flag.touch()
            os._exit(1)
        time.sleep(0.05)
        n = [int(unit) for unit in units for _ in range(ROWS_PER_UNIT)]
        return pa.table({"unit": n, "square": [i * i for i in n]}), {"tokens": len(n), "biggest": max(n)}


class Hangs(Squares):
    """Never comes to the end of unit 5."""

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        time.sleep(3600 if "5" in batch["unit_id"].to_pylist() else 0)
        return super().__call__(batch)


class Together(Squares):
    """Begins when both actors are there: a fast one would do everything before the other has come up."""

    def __call__(self, batch: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        (self.folder / f"{os.getpid()}.pid").touch()
        deadline = time.monotonic() + 180
        while len(list(self.folder.glob("*.pid"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        return super().__call__(batch)


class Stream(Squares):
    """Finishes units one by one, two in work at a time; every actor dies at the units `poison`, one at `dies_at`."""

    def __init__(
        self, folder: str, dies_at: str = "", poison: tuple[str, ...] = (), dies_at_start: bool = False
    ) -> None:
        super().__init__(folder, dies_at)
        self.poisons = poison
        if dies_at_start:
            (self.folder / f"{os.getpid()}.pid").touch()
            os._exit(1)

    def stream(self, batch: pa.Table, starting: Callable[[list[str]], bool]) -> Iterator[Finished]:
        """Rows of each unit."""
        units = batch["unit_id"].to_pylist()
        for first in range(0, len(units), 2):
            pair = units[first : first + 2]
            if not starting(pair):
                return
            if "all" in self.poisons or not set(pair).isdisjoint(self.poisons):
                (self.folder / f"{os.getpid()}.pid").touch()
                os._exit(1)
            for unit in pair:
                yield Finished([unit], *self(batch.filter(pa.compute.equal(batch["unit_id"], unit))))

    @staticmethod
    def failed(units: pa.Table, **kwargs: object) -> tuple[pa.Table, dict[str, float]]:
        """Rows whose square is -1."""
        n = [int(unit) for unit in units["unit_id"].to_pylist() for _ in range(ROWS_PER_UNIT)]
        return pa.table({"unit": n, "square": [-1] * len(n)}), {"engine_died": len(n)}


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    (tmp_path / "seen").mkdir()
    begun = Run(str(tmp_path / "run")).artefact("squares")
    begun.begin({"config": {}})
    return begun


@pytest.fixture
def do(tmp_path: Path, artefact: Artefact) -> Callable[..., dict[str, float]]:
    """`do(units, **kwargs)` runs Squares over the units with two actors, two units a batch."""

    def run(units: list[int], worker: type = Squares, batch_units: int = 2, **kwargs: object) -> dict[str, float]:
        return run_units(
            artefact.run,
            "squares",
            pa.table({"unit_id": pa.array([str(i) for i in units], pa.string())}),
            Work(
                label="squares",
                pool="grade",
                worker=worker,
                kwargs={"folder": str(tmp_path / "seen"), **kwargs},
                batch_units=batch_units,
                rows=len(units) * ROWS_PER_UNIT,
            ),
            Resources(grade=Actors(actors=2, cpus=0.5)),
        )

    return run


def whole(artefact: Artefact, units: range) -> bool:
    """Whether the rows of all units are stored once each."""
    rows = sorted(artefact.read(partial=True).to_pylist(), key=lambda row: row["unit"])
    return rows == [{"unit": i, "square": i * i} for i in units for _ in range(ROWS_PER_UNIT)]


def test_every_unit_once_on_two_actors(artefact: Artefact, do: Callable[..., dict], tmp_path: Path) -> None:
    total = do(list(range(40)), Together)  # the first tasks have five units
    assert whole(artefact, range(40))
    assert total["tokens"] == 120
    assert artefact.stats() == total
    assert len(seen(tmp_path)) == 2
    assert sorted(unit for each in seen(tmp_path) for unit in each) == list(range(40))
    given = [line.split() for path in (tmp_path / "seen").glob("*.pid") for line in path.read_text().splitlines()]
    assert max(map(len, given)) == 2, "a task is longer than what a worker is given at once"
    assert len(artefact.part_names()) < len(given), "a finished task is one part"


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_doubled(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path
) -> None:
    do(list(range(12)), Together, dies_at="5")
    assert (tmp_path / "seen" / "died").exists()
    assert len(list((tmp_path / "seen").glob("*.pid"))) == 3
    assert whole(artefact, range(12))


@pytest.mark.slow
def test_a_unit_that_always_kills_ends_the_work_and_a_rerun_does_only_what_is_missing(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path
) -> None:
    with pytest.raises(WorkStopped, match="unit 5 killed 3 actors"):
        do(list(range(12)), dies_at="5", poison=True)
    all_is_free()  # the other actor may be storing a part
    stored = set(artefact.read(partial=True)["unit"].to_pylist())
    assert 5 not in stored
    assert artefact.manifest() is None
    for path in (tmp_path / "seen").iterdir():
        path.unlink()
    missing = [i for i in range(12) if i not in stored]
    do(missing)
    assert whole(artefact, range(12))
    assert sorted(unit for each in seen(tmp_path) for unit in each) == missing


def seen(folder: Path) -> list[list[int]]:
    """The units that each process took, in order."""
    return [[int(unit) for unit in path.read_text().split()] for path in (folder / "seen").glob("*.pid")]


def squares(artefact: Artefact) -> dict[int, set[int]]:
    """Unit -> its squares; a unit that is not stored exactly once is an error."""
    rows = artefact.read(partial=True).to_pylist()
    found: dict[int, set[int]] = {}
    for row in rows:
        found.setdefault(row["unit"], set()).add(row["square"])
    assert len(rows) == ROWS_PER_UNIT * len(found)
    return found


@pytest.mark.slow
def test_a_death_loses_only_the_units_in_work(artefact: Artefact, do: Callable[..., dict], tmp_path: Path) -> None:
    total = do(list(range(24)), worker=Stream, batch_units=12, dies_at="5")
    assert whole(artefact, range(24))
    assert total == artefact.stats()
    taken = sorted(unit for each in seen(tmp_path) for unit in each)
    assert sorted(set(taken)) == list(range(24))
    assert len(taken) == 25, "only the unit that was interrupted is done again"
    assert not artefact.run.exists("squares/attempts")


@pytest.mark.slow
def test_two_poison_units_of_one_task_are_told_apart_and_counted(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path
) -> None:
    total = do(list(range(24)), worker=Stream, batch_units=24, poison=("3", "4"))  # tasks of three
    expected = {unit: {unit * unit} for unit in range(24)} | {3: {-1}, 4: {-1}}
    assert squares(artefact) == expected
    assert total["engine_died"] == artefact.stats()["engine_died"] == 2 * ROWS_PER_UNIT
    assert len(seen(tmp_path)) <= 2 + MAX_CRASHES + (MAX_CRASHES - 1), "one death together, two alone for each"


@pytest.mark.slow
def test_an_engine_that_always_dies_stops_the_work_and_fails_no_unit(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_units_module, "MAX_RESTARTS", FEW_RESTARTS)
    with pytest.raises(WorkStopped, match=f"died {FEW_RESTARTS} times in a row"):
        do(list(range(24)), worker=Stream, batch_units=12, poison=("all",))
    assert artefact.part_names() == []
    assert len(seen(tmp_path)) <= 2 * FEW_RESTARTS, "two actors"
    do(list(range(24)), worker=Stream, batch_units=12)
    assert whole(artefact, range(24))


@pytest.mark.slow
def test_units_that_all_fail_alone_stop_the_work_too(artefact: Artefact, do: Callable[..., dict]) -> None:
    with pytest.raises(WorkStopped, match=r"of \d units killed 3 actors each"):
        do(list(range(2)), worker=Stream, batch_units=1, poison=("all",))
    assert artefact.part_names() == []


@pytest.mark.slow
def test_an_actor_that_dies_while_it_starts_stops_the_work(
    artefact: Artefact, do: Callable[..., dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_units_module, "MAX_RESTARTS", FEW_RESTARTS)
    with pytest.raises(WorkStopped, match=f"died {FEW_RESTARTS} times in a row"):
        do(list(range(4)), worker=Stream, dies_at_start=True)
    assert len(seen(tmp_path)) <= 2 * FEW_RESTARTS


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


def test_what_is_stored_counts_as_progress_and_work_that_hangs_is_ended(
    artefact: Artefact, do: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.data import DataContext

    assert DataContext.get_current().execution_no_progress_timeout_s == -1, "Ray counts ended tasks only"

    def shorten_when_stored() -> None:
        """On a busy machine the actors' start alone may take longer than the limit."""
        deadline = time.monotonic() + 120
        try:
            while not whole(artefact, range(4, 5)) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            monkeypatch.setattr(run_units_module, "STALL_S", 5.0)

    shortening = threading.Thread(target=shorten_when_stored)
    shortening.start()
    with pytest.raises(WorkStopped, match="squares: nothing was stored for 5s, the actors hang"):
        do([4, 5], worker=Hangs)
    shortening.join()
    assert whole(artefact, range(4, 5))


def test_nothing_to_do_asks_nobody(artefact: Artefact, do: Callable[..., dict], tmp_path: Path) -> None:
    assert do([]) == {}
    assert not list((tmp_path / "seen").iterdir())


def test_more_than_the_cluster_has_is_refused_with_numbers(artefact: Artefact) -> None:
    with pytest.raises(UserError, match=r"resources\.sample wants 8 x \(8 CPU\), each on one node: 0 of 8 fit"):
        run_units(
            artefact.run,
            "squares",
            pa.table({"unit_id": ["1"]}),
            Work(label="sample", pool="sample", worker=Squares, kwargs={"folder": "x"}, batch_units=1, rows=1),
            Resources(sample=Engine(actors=8, cpus=8)),
        )
