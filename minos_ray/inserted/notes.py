"""The note that comes with a made solution, in the form of a critique: what is wrong and what would have been right."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from minos_ray.grading.numbers import canonical
from minos_ray.inserted.reading import Calculation, Token


class Remark(NamedTuple):
    """What is to be said of a step: the calculation it shows, its wrong part, what is right, where an error began."""

    kind: str
    shown: str = ""
    wrong: str = ""
    right: str = ""
    instead: str = ""
    cause: int = 0


WORDS: dict[str, tuple[str, ...]] = {
    "right": ("{shown} is right.", "{shown}, as it should be.", "the calculation {shown} holds.", "{shown}, yes."),
    "plain": ("this fits the problem.", "nothing is wrong here.", "this agrees with the problem."),
    "calculation": (
        "{shown} is {right}, not {wrong}.",
        "{wrong} is a wrong result: {shown} = {right}.",
        "the calculation is off, {shown} gives {right} and not {wrong}.",
    ),
    "operation": (
        "{shown} uses the wrong operation; it should be {right}.",
        "the step takes {wrong} where {instead} is needed: {right}, not {shown}.",
        "{shown} does not fit the problem, which asks for {right}.",
    ),
    "operand": (
        "{shown} uses {wrong} in place of {instead}; it should be {right}.",
        "{wrong} is the wrong number here: the problem needs {right}, not {shown}.",
        "the step takes {wrong} instead of {instead}, so {shown} has to be {right}.",
    ),
    "skipped": (
        "a step is left out: first {wrong}, then {right}, not {shown}.",
        "{shown} forgets that {wrong} comes first; it should be {right}.",
        "before {shown} one has to find {wrong}, and then {right}.",
    ),
    "unrelated": (
        "{shown} has nothing to do with the question.",
        "nothing in the problem leads to {shown}; the step has no bearing on the question.",
        "the problem says nothing of this, {shown} belongs to no part of it.",
    ),
    "inherited": (
        "{shown} uses the wrong result of Step {cause}; it should be {right}.",
        "the arithmetic {shown} holds, but it carries on the mistake of Step {cause}: right is {right}.",
        "because Step {cause} is wrong, this is {shown} where it should be {right}.",
    ),
    "repeated": (
        "it repeats the wrong result of Step {cause}.",
        "it builds on the mistake of Step {cause}.",
        "the number comes from the mistake in Step {cause}.",
    ),
    "answer": (
        "the answer is {right}, not {wrong}.",
        "{wrong} follows from the mistake in Step {cause}; the answer is {right}.",
        "it should be {right}; {wrong} comes from Step {cause}.",
    ),
    "right_answer": ("the answer is {right}.", "{right} is the answer.", "it is {right}."),
}


def expression(tokens: Sequence[Token]) -> str:
    """`48 / 2`, `(5 + 3) * 2`."""
    text = " ".join(canonical(token) if isinstance(token, Fraction) else token for token in tokens)
    return text.replace("( ", "(").replace(" )", ")")


def equation(calculation: Calculation) -> str:
    """`48 / 2 = 24`."""
    return f"{expression(calculation.tokens)} = {canonical(calculation.result)}"
