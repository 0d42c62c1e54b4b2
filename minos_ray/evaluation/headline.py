"""The number of candidates at which methods are compared: the largest that nearly all problems have."""

from collections.abc import Iterable, Mapping
from typing import Any

# A file that lacks a candidate of few problems is compared at the n that it was made for.
NEARLY_ALL = 0.95
SINGLE = "pass@1"


def headline_n(problems: Mapping[int, int]) -> int:
    """The largest n that nearly all have of the problems that the smallest n has; `problems` by n, not empty."""
    enough = NEARLY_ALL * max(problems.values())
    return max(n for n, count in problems.items() if count >= enough)


def headline_of(methods: Iterable[Mapping[str, Any]]) -> int:
    """`headline_n` of entries of `methods` or `aggregations` in evaluation.json; 0 without any."""
    problems = {m["n"]: m["problems"] for m in methods if m["method"] != SINGLE}
    return headline_n(problems) if problems else 0
