"""The plan and what is stored together are every (problem, index) exactly once."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.candidates import stage
from minos_ray.candidates.stage import Units, plan, task_units

WANTED = st.lists(st.integers(0, 40), max_size=6)


def none_stored(counts: Sequence[int]) -> np.ndarray:
    """The table [problems, candidates] of a run in which no candidate is stored."""
    return np.zeros((len(counts), max(counts, default=0)), dtype=bool)


@st.composite
def interrupted(draw: st.DrawFn) -> tuple[list[int], np.ndarray]:
    """What is wanted and some of it that is stored already."""
    wanted = draw(WANTED)
    table = none_stored(wanted)
    for problem, n in enumerate(wanted):
        for index in draw(st.sets(st.integers(0, n - 1))) if n and draw(st.booleans()) else ():
            table[problem, index] = True
    return wanted, table


def rows(units: Units) -> list[tuple[int, int, int]]:
    """(problem, first, count) of every unit."""
    return list(zip(*(column.tolist() for column in (units.problem, units.first, units.count)), strict=True))


@given(interrupted(), st.integers(1, 17))
def test_plan_and_stored_are_every_index_once(state: tuple[list[int], np.ndarray], size: int) -> None:
    wanted, table = state
    units = rows(plan(wanted, table, size))
    seen = Counter((problem, first + i) for problem, first, count in units for i in range(count))
    seen.update((int(problem), int(index)) for problem, index in zip(*np.nonzero(table), strict=True))
    assert seen == Counter((problem, index) for problem, n in enumerate(wanted) for index in range(n))
    assert all(1 <= count <= size for _, _, count in units)


@given(WANTED, st.integers(1, 17), st.integers(0, 3))
def test_shuffling_keeps_every_unit(wanted: list[int], size: int, seed: int) -> None:
    units = plan(wanted, none_stored(wanted), size)
    mixed = rows(units.shuffled(seed))
    assert sorted(mixed) == sorted(rows(units))
    assert mixed == rows(units.shuffled(seed))
    by_problem = [[row for row in mixed if row[0] == problem] for problem in dict.fromkeys(row[0] for row in mixed)]
    assert [row for group in by_problem for row in group] == mixed, "units of a problem stay together"
    assert all(group == sorted(group) for group in by_problem)


def test_the_last_chunk_is_smaller_and_gaps_are_filled_apart() -> None:
    assert rows(plan([70], none_stored([70]), 32)) == [(0, 0, 32), (0, 32, 32), (0, 64, 6)]
    table = none_stored([10])
    table[0, [0, 4, 5]] = True
    assert rows(plan([10], table, 3)) == [(0, 1, 3), (0, 6, 3), (0, 9, 1)]
    assert rows(plan([3], ~none_stored([3]), 2)) == []


def test_blocks_of_problems_are_planned_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [5, 0, 7, 3, 9]
    table = none_stored(wanted)
    table[[0, 2, 2], [1, 0, 6]] = True
    whole = rows(plan(wanted, table, 3))
    monkeypatch.setattr("minos_ray.candidates.stage.BLOCK", 2)
    assert rows(plan(wanted, table, 3)) == whole


def test_units_are_named_by_problem_and_first_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also over several arrays."""
    problems = pa.table({"problem_id": ["a", "b"], "question": ["?", "!"]})
    units = plan([5, 2], none_stored([5, 2]), 2)
    expected = ["a#0", "a#2", "a#4", "b#0"]
    for named in (1, 3, 100):
        monkeypatch.setattr(stage, "IDS_AT_ONCE", named)
        assert stage.unit_table(units, problems)["unit_id"].to_pylist() == expected
    assert stage.unit_table(plan([], none_stored([]), 2), problems).num_rows == 0


def test_a_million_problems_of_four_units_are_four_million_units() -> None:
    wanted = np.full(1_000_000, 8)
    units = plan(wanted, none_stored(wanted), 2).shuffled(0)
    assert len(units) == 4_000_000
    assert units.count.sum() == 8_000_000
    assert len(np.unique(units.problem * 8 + units.first)) == 4_000_000


def test_a_task_holds_about_the_wanted_rows() -> None:
    wanted = [256, *[8] * 32]
    units = plan(wanted, none_stored(wanted), 64)
    assert task_units(units, rows=512) == len(units)
    assert task_units(units, rows=1) == 1
    assert task_units(plan([], none_stored([]), 8), rows=8) == 1
