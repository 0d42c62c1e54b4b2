"""Failed work holds nothing, also while its exception is looked at."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from minos_ray.config.resources import Actors, Resources
from minos_ray.errors import WorkStopped
from minos_ray.store.run import Run
from minos_ray.units.run_units import Work, run_units

FAILS_AT = "3"


class Counts:
    """Writes down every unit; fails at one of them, with the call or with its numbers."""

    def __init__(self, folder: str, how: str) -> None:
        self.file, self.how = Path(folder) / "done", how
        if how == "made":
            raise ValueError("not to be made")

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        with self.file.open("a") as file:
            file.write("x")
        if FAILS_AT in units["unit_id"].to_pylist() and self.how == "call":
            raise ValueError("unit 3 is bad")
        time.sleep(0.1)
        return pa.table({"unit": units["unit_id"]}), {"tokens": 1}


def free_cpus() -> float:
    """As the cluster says."""
    import ray

    return ray.available_resources().get("CPU", 0)


@pytest.mark.parametrize("how", ["call", "made", "driver"])
def test_failed_work_holds_nothing(local_ray: None, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if how == "driver":
        monkeypatch.setattr("minos_ray.units.run_units.Outcome.add", lambda self, task: 1 / 0)
    units = pa.table({"unit_id": [str(number) for number in range(100)]})
    work = Work("counts", "grade", Counts, {"folder": str(tmp_path), "how": how}, batch_units=1, rows=100)
    with pytest.raises((ray.exceptions.RayError, WorkStopped, ZeroDivisionError)) as caught:
        run_units(Run(str(tmp_path / "run")), "counts", units, work, Resources(grade=Actors(actors=2)))
    deadline = time.monotonic() + 120
    while free_cpus() < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert free_cpus() == 2, caught.value
    done = tmp_path / "done"
    before = done.read_text() if done.exists() else ""
    time.sleep(0.5)
    assert (done.read_text() if done.exists() else "") == before, "nobody goes on"
