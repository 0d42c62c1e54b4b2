"""Right steps of one problem that make unrelated steps of another."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from minos_ray.inserted.propagation import values_of
from minos_ray.inserted.reading import Step
from minos_ray.inserted.solution import Solution

DONORS = 12  # steps of other problems that are tried in one solution


@dataclass(frozen=True)
class Donor:
    """A right step that shows one calculation and no other number, to be put into solutions of other problems."""

    step: Step
    values: frozenset[Fraction]
    words: frozenset[str]


def donors_of(solutions: Sequence[Solution]) -> list[Donor]:
    """The steps of all solutions that can be put into others."""
    steps = [step for solution in solutions for step in solution.steps[:-1] if len(step.calculations) == 1]
    plain = [s for s in steps if not s.unread and s.calculations[0].exact and s.calculations[0].pieces]
    return [Donor(step, frozenset(values_of(step)), words_of(step.text)) for step in plain]


def strangers(solution: Solution, donors: Sequence[Donor], rng: random.Random) -> list[Step]:
    """Steps of other problems with no number of this one, those with the fewest words of it first."""
    words = words_of(solution.question, *solution.texts)
    familiar = solution.given.union(*map(values_of, solution.steps))
    drawn = [rng.choice(donors) for _ in range(4 * DONORS)] if donors else []
    foreign = [donor for donor in drawn if donor.values.isdisjoint(familiar)]
    return [donor.step for donor in sorted(foreign, key=lambda donor: len(donor.words & words))[:DONORS]]


def words_of(*texts: str) -> frozenset[str]:
    """The words of three letters or more."""
    return frozenset(word.strip(".,:;?!'\"()").lower() for text in texts for word in text.split() if len(word) > 2)
