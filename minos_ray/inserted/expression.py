"""Arithmetic in exact rationals by recursive descent; nothing from the data is ever given to `eval`."""

import re
from collections.abc import Sequence
from fractions import Fraction

Token = Fraction | str
"""A number, one of `+ - * /`, or a parenthesis."""

OPERATORS = "+-*/"
MOST_TOKENS, MOST_DIGITS = 60, 30
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(%?)|([-+*/()]))")


def read_expression(text: str) -> tuple[Token, ...] | None:
    """The tokens of `0.2*(50+10)`, a percentage as `(20/100)`; None for anything that is not such an expression."""
    read_tokens: list[Token] = []
    end = 0
    while end < len(text.rstrip()):
        match = _TOKEN.match(text, end)
        if not match or len(match[0]) > MOST_DIGITS:
            return None
        value = Fraction(match[1]) if match[1] else match[3]
        read_tokens += percentage(value) if match[2] else [value]
        end = match.end()
    return tuple(read_tokens) if evaluate(read_tokens) is not None else None


def percentage(value: Fraction) -> list[Token]:
    """20 % as `(20/100)`."""
    return ["(", value, "/", Fraction(100), ")"]


def evaluate(tokens: Sequence[Token]) -> Fraction | None:
    """The exact value; None when the tokens are no expression, or divide by zero."""
    if not 0 < len(tokens) <= MOST_TOKENS:
        return None
    try:
        value, end = _sum(tokens, 0)
    except (ValueError, ZeroDivisionError):
        return None
    return value if end == len(tokens) else None


def _sum(tokens: Sequence[Token], position: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position)
    while position < len(tokens) and tokens[position] in ("+", "-"):
        right, end = _product(tokens, position + 1)
        value, position = (value + right if tokens[position] == "+" else value - right), end
    return value, position


def _product(tokens: Sequence[Token], position: int) -> tuple[Fraction, int]:
    value, position = _factor(tokens, position)
    while position < len(tokens) and tokens[position] in ("*", "/"):
        right, end = _factor(tokens, position + 1)
        value, position = (value * right if tokens[position] == "*" else value / right), end
    return value, position


def _factor(tokens: Sequence[Token], at: int) -> tuple[Fraction, int]:
    """A number, a parenthesis, or either with a sign; ValueError when there is none."""
    token = tokens[at] if at < len(tokens) else ""
    if isinstance(token, Fraction):
        return token, at + 1
    if token in ("-", "+"):
        value, end = _factor(tokens, at + 1)
        return (-value if token == "-" else value), end
    if token != "(":
        raise ValueError("no number")
    value, end = _sum(tokens, at + 1)
    if end >= len(tokens) or tokens[end] != ")":
        raise ValueError("no closing parenthesis")
    return value, end + 1


def operands(tokens: Sequence[Token]) -> list[Fraction]:
    """The numbers of an expression, in order."""
    return [token for token in tokens if isinstance(token, Fraction)]


def operators(tokens: Sequence[Token]) -> list[int]:
    """Where the operators stand between two operands; signs of numbers are none."""
    after = [k for k in range(1, len(tokens)) if isinstance(tokens[k - 1], Fraction) or tokens[k - 1] == ")"]
    return [k for k in after if tokens[k] in OPERATORS]
