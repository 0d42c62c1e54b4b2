"""What follows from a wrong value: every later step that uses it is worked out again, its words and its answer too.

A value is followed by what it is: where the same number may have come from elsewhere, the error is refused.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from minos_ray.grading.numbers import canonical
from minos_ray.inserted.reading import Calculation, Piece, Step, Token, evaluate, operands
from minos_ray.inserted.solution import NUMBER_WORDS, Refused

MOST_PLACES = 2


def places_of(text: str) -> int:
    """Digits after the point."""
    return len(text.partition(".")[2])


def tidy(new: Fraction, like: Fraction, text: str, percent: bool = False) -> bool:
    """Whether `new` can stand where `like` (written `text`) stood: whole if that was, above zero, few decimals."""
    if new == like or (like > 0 and new <= 0) or (percent and like <= 100 < new):
        return False
    most = 0 if like.denominator == 1 else max(MOST_PLACES, places_of(text))
    return (new * 10**most).denominator == 1


def write_number(value: Fraction, like: str) -> str:
    """The value as digits in the way of `like`: thousands marks, two decimals of money, no zero before the point."""
    digits = canonical(value)
    integer, _, part = digits.partition(".")
    if "," in like and "/" not in digits:
        integer = f"{int(integer):,}"
    if places_of(like) == MOST_PLACES:
        part = part.ljust(MOST_PLACES, "0")
    if like.startswith(".") and integer == "0":
        integer = ""
    return f"{integer}.{part}" if part else integer


def slips(right: Fraction, text: str, tokens: tuple[Token, ...], rng: random.Random) -> Iterator[Fraction]:
    """Wrong results of a calculation, the likely ones in a seeded order; some may not be tidy."""
    unit = Fraction(1, 10 ** places_of(text))
    near = [right + unit, right - unit, right + 2 * unit, right - 2 * unit]
    carry = [right + 10 * unit, right - 10 * unit, right + 100 * unit, right - 100 * unit]
    carry = [value for value in carry if abs(value - right) * 3 <= abs(right)]
    scaled = [right * 10, right / 10] if {"*", "/"} & set(map(str, tokens)) else []
    values = [*near, *carry, *scaled, *swapped(right), *table_slips(right, tokens)]
    if right < 0 or any(isinstance(token, Fraction) and token < 0 for token in tokens):
        values.append(-right)
    rng.shuffle(values)
    yield from dict.fromkeys(values)


def swapped(value: Fraction) -> list[Fraction]:
    """Two neighbouring digits changed places, as in 27 for 72."""
    digits = canonical(value)
    pairs = [k for k in range(len(digits) - 1) if digits[k : k + 2].isdigit() and digits[k] != digits[k + 1]]
    changed = [digits[:k] + digits[k + 1] + digits[k] + digits[k + 2 :] for k in pairs]
    return [Fraction(text) for text in changed if "/" not in text and not text.startswith("0")]


def table_slips(right: Fraction, tokens: tuple[Token, ...]) -> list[Fraction]:
    """One factor too many or too few in a product of two: 7 * 8 = 48."""
    if len(tokens) != 3 or tokens[1] != "*":
        return []
    return [right + sign * factor for sign in (1, -1) for factor in operands(tokens)]


Edit = tuple[int, int, str]


@dataclass(frozen=True)
class Changed:
    """A step with wrong values: its new text, and (right, new) for each of its calculations."""

    text: str
    calculations: tuple[tuple[Calculation, Calculation], ...]


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with pieces replaced."""
    for start, end, replacement in sorted(set(edits), reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


def values_of(step: Step) -> set[Fraction]:
    """All numbers of a step: shown, computed with, or found."""
    hidden = {value for calculation in step.calculations for value in operands(calculation.tokens)}
    return hidden | {piece.value for piece in step.pieces if piece.value is not None}


class Propagation:
    """Follows wrong values from step to step; `seen` are the numbers that later steps may take from elsewhere."""

    def __init__(self, given: Iterable[Fraction]) -> None:
        self.seen = set(given)
        self.wrong: dict[Fraction, Fraction] = {}
        self.doubtful: set[Fraction] = set()

    def pass_by(self, step: Step) -> None:
        """Takes in a step that stays as it is."""
        self.seen |= values_of(step)

    def mistake(self, right: Fraction, wrong: Fraction, others: Iterable[Fraction] = ()) -> None:
        """From here on `right` is taken for `wrong`; doubtful when the same number also came from elsewhere."""
        if right in self.seen or right in others or self.wrong.get(right, wrong) != wrong:
            self.doubtful.add(right)
        self.wrong[right] = wrong

    def follow(self, step: Step) -> Changed | None:
        """The step with what it inherits; None when it inherits nothing. Refused when that cannot be told for sure."""
        values = values_of(step)
        results = {calculation.result for calculation in step.calculations}
        if values - results - self.seen - self.wrong.keys():
            raise Refused("a later number is of unknown origin")  # it may hide a wrong one
        if self.worded(step):
            raise Refused("a later number is a word")
        inherits = bool(values & self.wrong.keys())
        if inherits and step.unread:
            raise Refused("a later equation cannot be read")
        recalculated = tuple(self.worked_out(calculation) for calculation in step.calculations)
        if values_of(step) & self.doubtful:
            raise Refused("a later number may come from elsewhere")
        self.seen |= values - self.wrong.keys()
        return Changed(self.rewritten(step), recalculated) if inherits else None

    def worked_out(self, old: Calculation) -> tuple[Calculation, Calculation]:
        """A calculation and what it has become; its result is taken for the new one from here on."""
        value = self.again(old)
        if value is old and old.result in self.wrong:
            raise Refused("a later number may come from elsewhere")
        if value is not old:
            self.mistake(old.result, value.result, operands(old.tokens))
        return old, value

    def worded(self, step: Step) -> bool:
        """Whether a wrong value stands there as a word, which nothing here changes."""
        words = {piece.text.lower() for piece in step.pieces if piece.kind == "word"}
        return any(NUMBER_WORDS[word] in self.wrong for word in words & NUMBER_WORDS.keys())

    def again(self, calculation: Calculation) -> Calculation:
        """The calculation with wrong values in it and what they give; itself when it has none."""
        tokens = tuple(self.wrong.get(token, token) for token in calculation.tokens)
        if tokens == calculation.tokens:
            return calculation
        if not calculation.exact:
            raise Refused("a later result is rounded")
        return replaced(calculation, tokens, evaluate(tokens))

    def rewritten(self, step: Step) -> str:
        """The text with every wrong value in place of the right one."""
        return edited(
            step.text,
            [edit(p, self.wrong[p.value]) for p in step.numbers if p.value is not None and p.value in self.wrong],
        )


def edit(piece: Piece, value: Fraction) -> Edit:
    """A number of a text replaced by another value."""
    return piece.start, piece.end, write_number(value, piece.text)


def replaced(calculation: Calculation, tokens: tuple[Token, ...], result: Fraction | None) -> Calculation:
    """Another calculation in the same place; Refused unless its result could stand there."""
    piece = calculation.shown
    if result is None or not tidy(result, calculation.result, piece.text, piece.percent):
        raise Refused("no wrong value that could stand there")
    return replace(calculation, tokens=tokens, result=result)
