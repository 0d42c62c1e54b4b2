"""Answers of one problem as clusters: who answers the same votes together."""

from collections.abc import Iterable
from functools import lru_cache

from minos_ray.labels.latex import normal

RIGHT, NO_ANSWER = 0, -1

canonical = lru_cache(maxsize=1_000_000)(normal)


def clusters(answers: Iterable[str | None], correct: Iterable[bool]) -> list[int]:
    """A cluster for each candidate: 0 for every answer graded right, -1 without an answer, 1, 2, ... for the others.

    Wrong answers are the same when they are one number, or one expression written in the common ways.
    """
    numbers: dict[str, int] = {}
    found = []
    for answer, right in zip(answers, correct, strict=True):
        if right:
            found.append(RIGHT)
        elif answer is None:
            found.append(NO_ANSWER)
        else:
            found.append(numbers.setdefault(canonical(answer), len(numbers) + 1))
    return found
