"""Which units are stored, from what parts say of themselves."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from minos_ray.store import Artefact, Run
from minos_ray.units import whole_units

ROWS = 3


@pytest.fixture
def artefact(tmp_path: Path) -> Artefact:
    begun = Run(str(tmp_path / "run")).artefact("squares")
    begun.begin({"config": {}})
    return begun


def put(artefact: Artefact, name: str, units: list[str], rows: int | None = None) -> None:
    """A part with `ROWS` rows of each unit, or as many as told."""
    held = len(units) * ROWS if rows is None else rows
    artefact.write_part(name, pa.table({"unit": list(range(held))}), {}, units)


def test_a_unit_is_stored_once_or_its_part_goes(artefact: Artefact) -> None:
    ids, rows = pa.array([str(i) for i in range(10)]), np.full(10, ROWS)
    put(artefact, "a", ["0", "1"])
    put(artefact, "b-repeats-one", ["1", "2"])
    put(artefact, "c-of-another-plan", ["3", "11"])
    put(artefact, "d-too-few-rows", ["4"], rows=2)
    put(artefact, "e-twice-in-itself", ["5", "5"])
    put(artefact, "f-says-nothing", [], rows=3)
    put(artefact, "g", ["6"])
    put(artefact, "h-torn", ["7"])
    torn = Path(artefact.path) / "part-h-torn.parquet"
    torn.write_bytes(torn.read_bytes()[:-9])
    assert np.flatnonzero(whole_units(artefact, ids, rows)).tolist() == [0, 1, 6]
    assert artefact.part_names() == ["a", "g"]
    put(artefact, "i", ["2", "3", "4", "5", "7", "8", "9"])
    assert whole_units(artefact, ids, rows).all()


def test_where_rows_may_be_dropped_their_number_is_not_asked_for(artefact: Artefact) -> None:
    put(artefact, "a", ["0", "1"], rows=5)
    assert whole_units(artefact, pa.array(["0", "1", "2"])).tolist() == [True, True, False]
    assert whole_units(artefact, pa.array(["0", "1", "2"]), np.full(3, 3)).tolist() == [False] * 3
