"""The plan and what is stored together are every (problem, index) exactly once."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from minos_ray.candidates.plan import batch_units, plan, shuffled

IDS = st.text("abc#/0 ", min_size=1, max_size=4)
WANTED = st.dictionaries(IDS, st.integers(0, 40), max_size=6)


@st.composite
def interrupted(draw: st.DrawFn) -> tuple[dict[str, int], dict[str, set[int]]]:
    """What is wanted and some of it that is stored already."""
    wanted = draw(WANTED)
    stored = {p: draw(st.sets(st.integers(0, n - 1))) for p, n in wanted.items() if n and draw(st.booleans())}
    return wanted, stored


@given(interrupted(), st.integers(1, 17))
def test_plan_and_stored_are_every_index_once(state: tuple[dict[str, int], dict[str, set[int]]], size: int) -> None:
    wanted, stored = state
    units = plan(wanted, stored, size)
    seen = Counter((u.problem_id, u.first + i) for u in units for i in range(u.count))
    seen.update((p, i) for p, indices in stored.items() for i in indices)
    assert seen == Counter((p, i) for p, n in wanted.items() for i in range(n))
    assert all(1 <= u.count <= size for u in units)
    assert len({u.unit_id for u in units}) == len(units)


@given(WANTED, st.integers(1, 17), st.integers(0, 3))
def test_shuffling_keeps_every_unit(wanted: dict[str, int], size: int, seed: int) -> None:
    units = plan(wanted, {}, size)
    assert sorted(shuffled(units, seed)) == sorted(units)
    assert shuffled(units, seed) == shuffled(units, seed)


def test_the_last_chunk_is_smaller_and_gaps_are_filled_apart() -> None:
    assert [(u.first, u.count) for u in plan({"p": 70}, {}, 32)] == [(0, 32), (32, 32), (64, 6)]
    assert [(u.first, u.count) for u in plan({"p": 10}, {"p": {0, 4, 5}}, 3)] == [(1, 3), (6, 3), (9, 1)]
    assert plan({"p": 3}, {"p": {0, 1, 2}, "other": {7}}, 2) == []


def test_a_batch_holds_about_the_wanted_rows() -> None:
    units = plan({"p": 256, **{f"t{i}": 8 for i in range(32)}}, {}, 64)
    assert batch_units(units, rows=512) == len(units)
    assert batch_units(units, rows=1) == 1
    assert batch_units([], rows=8) == 1
