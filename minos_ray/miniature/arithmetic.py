"""Calculations: the gold chain of a problem, and what an author makes of a clause who reads it in some way."""

from collections.abc import Callable
from dataclasses import dataclass

from minos_ray.miniature.language import Clause, Problem

START = -1
"""In `Gold.left_from` and `Gold.right_from`: the operand is the number that the problem starts with."""


@dataclass(frozen=True)
class Calculation:
    """`left op right = result`, with the word that names the clause."""

    word: str
    left: int
    op: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left} {self.op} {self.right} = {self.result}"


@dataclass(frozen=True)
class Gold:
    """A step of the gold chain; `*_from` is the step whose result the operand is, START, or None for a plain number.

    `continues`: the clause took another calculation before this one.
    """

    calculation: Calculation
    clause: Clause
    left_from: int | None
    right_from: int | None
    continues: bool


def compute(left: int, op: str, right: int) -> int:
    """The result in whole numbers: division rounds down, and by zero gives zero."""
    if op == "/":
        return left // right if right else 0
    return {"+": left + right, "-": left - right, "*": left * right}[op]


Result = Callable[[int, str, int], int]


def follow(clause: Clause, reading: tuple[str, ...], x: int, result: Result = compute) -> list[Calculation]:
    """The calculations of one reading of a clause, from the running value `x`; `result` may make slips."""
    values = {"x": x, "y": x, **clause.numbers}
    out = []
    for line in reading:
        left, op, right = line.split()
        a, b = (values[term] if term in values else int(term) for term in (left, right))
        values["y"] = result(a, op, b)
        out.append(Calculation(clause.phrase.word, a, op, b, values["y"]))
    return out


def gold_chain(problem: Problem) -> list[Gold]:
    """The right calculations, in order, with the origin of every operand."""
    chain: list[Gold] = []
    for clause in problem.clauses:
        before = len(chain) - 1
        value = chain[-1].calculation.result if chain else problem.start
        for line, calculation in zip(clause.phrase.right, follow(clause, clause.phrase.right, value), strict=True):
            origin = {"x": before, "y": len(chain) - 1}
            left, _, right = line.split()
            continues = len(chain) - 1 > before
            chain.append(Gold(calculation, clause, origin.get(left), origin.get(right), continues))
    return chain


def solution_text(calculations: list[Calculation], answer: int) -> str:
    """The solution as models write it: numbered steps, then the answer line."""
    lines = [f"Step {k}: {c.word}: {c}" for k, c in enumerate(calculations, 1)]
    return "\n".join([*lines, f"The answer is: {answer}"])
