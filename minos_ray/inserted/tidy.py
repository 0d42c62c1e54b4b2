"""Wrong values that a person might write: of the same kind as the right one, and never equal to it."""

import random
from collections.abc import Iterator
from fractions import Fraction

from minos_ray.grading.numbers import canonical
from minos_ray.inserted.expression import Token

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
    return [right + sign * factor for sign in (1, -1) for factor in (tokens[0], tokens[2])]
