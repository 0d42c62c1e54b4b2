"""Which units are stored, from what parts say of themselves."""

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from minos_ray.candidates.stage import Targets, stored_candidates
from minos_ray.scoring import judge
from minos_ray.store.run import Artefact, Run
from minos_ray.units.actor import long_lived_imports
from minos_ray.units.run_units import stored_units

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


def test_a_process_of_a_user_keeps_its_garbage_collection() -> None:
    frozen = gc.get_freeze_count()
    for set_to in (gc.enable, gc.disable):
        set_to()
        try:
            enabled = gc.isenabled()
            with long_lived_imports("no.such.module"):
                assert not gc.isenabled()
            assert gc.isenabled() == enabled and gc.get_freeze_count() == frozen
        finally:
            gc.enable()


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
    assert np.flatnonzero(stored_units(artefact, ids, rows)).tolist() == [0, 1, 6]
    assert artefact.part_names() == ["a", "g"]
    put(artefact, "i", ["2", "3", "4", "5", "7", "8", "9"])
    assert stored_units(artefact, ids, rows).all()


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_a_kill_while_compacted_pieces_are_deleted_loses_no_row(artefact: Artefact, gone: int) -> None:
    """The compacted part is there, and some of its pieces are gone: the others are what repeats."""
    units = [str(i) for i in range(4)]
    for unit in units[gone:]:
        put(artefact, f"task-{unit}", [unit])
    put(artefact, "task", units)
    assert stored_units(artefact, pa.array(units), np.full(4, ROWS)).all()
    assert artefact.part_names() == ["task"]


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_judged_solutions_are_looked_for_in_compacted_parts_first(artefact: Artefact, gone: int) -> None:
    names = [str(i) for i in range(4)]
    units = pa.table({"unit_id": names, "rows": [2] * 4})
    for name in names[gone:]:
        put(artefact, f"task-{name}", [name], rows=2)
    put(artefact, "task", names, rows=8)
    assert judge.stored(artefact, units).all()
    assert artefact.part_names() == ["task"]


@pytest.mark.parametrize("gone", [0, 1, 3])
def test_candidates_are_looked_for_in_compacted_parts_first(artefact: Artefact, gone: int) -> None:
    wanted = Targets(pa.table({"problem_id": ["p"], "question": ["q"]}), np.array([4]))
    for index in range(gone, 4):
        artefact.write_part(f"task-{index}", pa.table({"problem_id": ["p"], "index": [index]}))
    artefact.write_part("task", pa.table({"problem_id": ["p"] * 4, "index": list(range(4))}))
    assert stored_candidates(artefact, wanted).all()
    assert artefact.part_names() == ["task"]


def test_where_rows_may_be_dropped_their_number_is_not_asked_for(artefact: Artefact) -> None:
    put(artefact, "a", ["0", "1"], rows=5)
    assert stored_units(artefact, pa.array(["0", "1", "2"])).tolist() == [True, True, False]
    assert stored_units(artefact, pa.array(["0", "1", "2"]), np.full(3, 3)).tolist() == [False] * 3
