"""What is still to be sampled: every (problem, index) that is not there, as units of work. Pure.

A unit is one request: `count` candidates of one problem with indices `first`, `first + 1`, ...
"""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple


class Unit(NamedTuple):
    """`count` candidates of a problem from index `first` on."""

    problem_id: str
    first: int
    count: int

    @property
    def unit_id(self) -> str:
        """Unique among units that do not overlap."""
        return f"{self.problem_id}#{self.first}"


def plan(wanted: Mapping[str, int], existing: Mapping[str, Collection[int]], size: int) -> list[Unit]:
    """Units of at most `size` candidates for all that is missing of `wanted` (problem -> number of candidates)."""
    return [
        unit
        for problem_id, n in wanted.items()
        for first, stop in gaps(n, existing.get(problem_id, ()))
        for unit in chunks(problem_id, first, stop, size)
    ]


def gaps(n: int, existing: Collection[int]) -> Iterator[tuple[int, int]]:
    """Half-open ranges of the indices 0..n-1 that are not in `existing`."""
    first = 0
    for index in sorted(i for i in set(existing) if 0 <= i < n):
        if first < index:
            yield first, index
        first = index + 1
    if first < n:
        yield first, n


def chunks(problem_id: str, first: int, stop: int, size: int) -> Iterator[Unit]:
    """The range in pieces of `size`, the last one smaller."""
    for start in range(first, stop, size):
        yield Unit(problem_id, start, min(size, stop - start))


def shuffled(units: Iterable[Unit], seed: int) -> list[Unit]:
    """Large and small units mixed, so that every batch of units is about equally much work."""
    mixed = list(units)
    random.Random(seed).shuffle(mixed)
    return mixed


def batch_units(units: Collection[Unit], rows: int) -> int:
    """How many units hold about `rows` candidates."""
    total = sum(unit.count for unit in units)
    return max(1, round(rows * len(units) / total)) if total else 1
