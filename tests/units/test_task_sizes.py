"""How work is cut into tasks: every unit once, and actors that end together."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.units.run_units import task_sizes


@given(st.integers(0, 500), st.integers(1, 20), st.integers(1, 64), st.integers(1, 8))
def test_sizes_add_up_and_never_grow(units: int, actors: int, most: int, least: int) -> None:
    sizes = task_sizes(units, actors, most, least)
    assert sum(sizes) == units
    assert all(1 <= size <= most for size in sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert all(size >= min(least, most, units // actors) for size in sizes[:-1])


def idle_at_the_end(sizes: list[int], actors: int, seed: int) -> float:
    """Mean share of the time that an actor has nothing to do: each has one task in work and one waiting.

    A unit takes e**gauss(0, 0.6): the longest of a hundred takes four times as long as a common one.
    """
    rng, tasks = random.Random(seed), iter(sizes)

    def take() -> float:
        """Seconds that the next task takes."""
        return sum(rng.lognormvariate(0, 0.6) for _ in range(next(tasks, 0)))

    work = [[take()] for _ in range(actors)]
    ends, clock = [0.0] * actors, [(0.0, actor) for actor in range(actors)]
    while clock:
        now, actor = heapq.heappop(clock)
        ends[actor] = now
        work[actor].append(take())
        if seconds := work[actor].pop(0):
            heapq.heappush(clock, (now + seconds, actor))
    return sum(max(ends) - end for end in ends) / (actors * max(ends))


@pytest.mark.parametrize(("actors", "limit"), [(2, 0.005), (8, 0.02), (32, 0.06)])
def test_actors_end_together_although_units_take_unequal_times(actors: int, limit: float) -> None:
    fine = [idle_at_the_end(task_sizes(5276, actors, 128, 4), actors, seed) for seed in range(5)]
    coarse = [idle_at_the_end([128] * 41 + [28], actors, seed) for seed in range(5)]
    assert max(fine) < limit
    assert sum(fine) < sum(coarse) / 2
