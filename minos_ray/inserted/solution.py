"""A right solution as a chain of calculations: read, checked, with the origin of its final answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from minos_ray.grading.numbers import first_number, simplify
from minos_ray.inserted.given import given_numbers
from minos_ray.inserted.reading import Calculation, Piece, Step, pieces_of, read_step


class Refused(Exception):
    """A solution, or an error in it, cannot be used; the message is the reason, the same for all alike."""


@dataclass(frozen=True)
class Solution:
    """A right solution whose calculations hold. The last step is the line with the answer, `answer` its number.

    `asked` are the numbers in the question's digits, `given` all that an operand may be without a calculation.
    """

    source_id: str
    problem_id: str
    question: str
    steps: tuple[Step, ...]
    asked: frozenset[Fraction]
    given: frozenset[Fraction]
    answer: Piece

    @property
    def texts(self) -> list[str]:
        """The steps as they are trained on."""
        return [text_of(step, step.text) for step in self.steps]

    @property
    def calculations(self) -> list[tuple[int, Calculation]]:
        """Every calculation with the index of its step."""
        return [(k, calculation) for k, step in enumerate(self.steps) for calculation in step.calculations]


def text_of(step: Step, text: str) -> str:
    """A step's text with its `Step k:` before it."""
    return f"{step.prefix} {text}" if step.prefix else text


def read_solution(source_id: str, problem_id: str, question: str, gold: str, steps: Sequence[str]) -> Solution:
    """The solution; Refused when it has no readable calculation, or one that does not hold, or another answer."""
    if len(steps) < 2:
        raise Refused("no steps")
    read = tuple(read_step(step) for step in steps)
    calculations = [calculation for step in read[:-1] for calculation in step.calculations]
    if not calculations:
        raise Refused("no readable calculation")
    plain = [c for step in read for c in read_step(step.text).calculations]  # the text may contradict its annotation
    if not all(calculation.rounded for calculation in calculations + plain):
        raise Refused("a calculation does not hold")
    if read[-1].calculations or len(read[-1].numbers) != 1:
        raise Refused("no line with the answer alone")
    answer = read[-1].numbers[0]
    if answer.value != first_number(simplify(gold)):
        raise Refused("the answer is not the gold answer")
    if calculations[-1].result != answer.value:
        raise Refused("the last calculation does not give the answer")
    asked = frozenset(piece.value for piece in pieces_of(question) if piece.value is not None)
    return Solution(source_id, problem_id, question, read, asked, frozenset(given_numbers(question)), answer)
