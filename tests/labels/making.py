"""One chosen error, for tests that know what must come out."""

from dataclasses import replace
from fractions import Fraction

from minos_ray.labels.calculations import Refused, Solution, Token
from minos_ray.labels.mistakes import Made, Mistake, Remark, mistaken, misuse, stray


def miscalculate(solution: Solution, at: int, wrong: int) -> Made:
    """Step `at` with that wrong result."""
    [found] = solution.steps[at].calculations
    mistake = Mistake(replace(found, result=Fraction(wrong)), (), "calculation", Remark("calculation"))
    return mistaken(solution, at, found, mistake)


def misuse_at(solution: Solution, at: int, token: int, new: Token) -> Made | None:
    """Step `at` with one token replaced; None when the result could not stand there."""
    [found] = solution.steps[at].calculations
    try:
        return mistaken(solution, at, found, misuse(found, token, new))
    except Refused:
        return None


def stray_after(solution: Solution, at: int, other: Solution) -> Made:
    """The first step of another solution after step `at`."""
    return stray(solution, at, solution.steps[at].calculations[0], other.steps[0])
