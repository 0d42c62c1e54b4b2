"""A right solution as a chain of calculations: read, checked, with the origin of its final answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from minos_ray.grading.numbers import first_number, simplify
from minos_ray.inserted.reading import PIECE, Calculation, Piece, Step, pieces_of, read_step

SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
NUMBER_WORDS = {word: Fraction(value) for value, word in enumerate(SMALL)} | {
    word: Fraction(value) for word, value in TENS.items()
}
"""Words that are numbers; a step that has one in place of digits cannot be changed consistently."""
MEANT: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("half", "halve", "halves", "halved"), (2, 0.5)),
    **dict.fromkeys(("twice", "double", "doubles", "doubled", "both", "pair", "couple", "average", "other"), (2, 0.5)),
    **dict.fromkeys(("thrice", "triple", "triples", "tripled", "third", "thirds"), (3,)),
    **dict.fromkeys(("quarter", "quarters", "fourth", "quadruple"), (4, 0.25, 0.75)),
    **dict.fromkeys(("fifth", "fifths"), (5, 0.2)),
    **dict.fromkeys(("dozen", "dozens", "year", "years", "month", "months", "yearly"), (12, 52, 365, 30)),
    **dict.fromkeys(("foot", "feet", "inch", "inches", "noon", "midnight", "yard", "yards"), (12, 3, 36)),
    **dict.fromkeys(("week", "weeks", "weekly", "day", "days", "daily"), (7, 24, 5, 30, 365)),
    **dict.fromkeys(("hour", "hours", "hourly", "minute", "minutes", "second", "seconds"), (60, 24, 3600)),
    **dict.fromkeys(("cent", "cents", "percent", "percentage", "dollar", "dollars", "$", "%"), (100,)),
    **dict.fromkeys(("dime", "dimes"), (10, 0.1)),
    **dict.fromkeys(("nickel", "nickels"), (5, 20)),
    **dict.fromkeys(("century", "hundred", "hundreds"), (100,)),
    **dict.fromkeys(("thousand", "thousands", "kilogram", "kilograms", "kg", "km", "kilometers", "liter"), (1000,)),
    **dict.fromkeys(("square", "rectangle", "rectangular"), (4, 2)),
    **dict.fromkeys(("pound", "pounds", "ounce", "ounces"), (16,)),
}


def given_numbers(question: str) -> set[Fraction]:
    """Every value that an operand can take from the question without a calculation worth a step."""
    numbers_given = {Fraction(1)}
    words = {match[0].lower() for match in PIECE.finditer(question) if match["word"] or match["currency"]}
    pieces = pieces_of(question)
    numbers = [(piece.value, piece.percent) for piece in pieces if piece.value is not None]
    numbers_given |= {value for value, _ in numbers}
    numbers_given |= {value for number, percent in numbers if percent for value in shares(number)}
    numbers_given |= set(fractions(pieces))
    numbers_given |= {NUMBER_WORDS[part] for word in words for part in word.split("-") if part in NUMBER_WORDS}
    if any(percent for _, percent in numbers):
        words.add("%")
    return numbers_given | {Fraction(value) for word in words for value in MEANT.get(word.split("-")[0], ())}


def shares(percent: Fraction) -> Iterable[Fraction]:
    """What 20 % may become: 20, 80, 120, 0.2, 0.8, 1.2."""
    of_hundred = (percent, 100 - percent, 100 + percent)
    return (*of_hundred, *(value / 100 for value in of_hundred))


def fractions(pieces: tuple) -> Iterable[Fraction]:
    """The values of `3/4`, and what it leaves."""
    for numerator, sign, denominator in zip(pieces, pieces[1:], pieces[2:], strict=False):
        if sign.text == "/" and numerator.value is not None and denominator.value:
            yield numerator.value / denominator.value
            yield 1 - numerator.value / denominator.value
            yield denominator.value - numerator.value


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
