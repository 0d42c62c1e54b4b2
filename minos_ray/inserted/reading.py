"""Reading a solution: which numbers a step shows, and which calculations, by its text or by GSM8K's annotations.

An annotation `<<48/2=24>>` stands right before the result. Steps are kept without annotations, as they are trained on.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from minos_ray.grading.numbers import CURRENCY, DIGITS, MAX_DIGITS

Token = Fraction | str
"""A number, one of `+ - * /`, or a parenthesis."""

OPERATORS = ("+", "-", "*", "/")
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
        if match[2]:
            read_tokens += percentage(Fraction(match[1]))
        else:
            read_tokens.append(Fraction(match[1]) if match[1] else match[3])
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


ANNOTATION = re.compile(r"<<([^<>]*)>>")
PREFIX = re.compile(r"\s*Step\s+[0-9]+\s*[:.]\s*")
PIECE = re.compile(
    rf"(?P<ordinal>[0-9]+(?:st|nd|rd|th)\b)"
    rf"|(?P<number>{DIGITS})(?P<percent>\s?%)?"
    rf"|(?P<currency>{CURRENCY})"
    r"|(?P<unit>/\s*[A-Za-z]+)"
    r"|(?P<times>(?<![A-Za-z])[xX](?=\s*[$(.0-9]))"
    r"|(?P<word>[A-Za-z]+(?:['\u2019/.-][A-Za-z]+)*)"
    r"|(?P<operator>[-+*/\u00d7\u00f7\u2212\u2013\u00b7])"
    r"|(?P<equals>=)|(?P<open>\()|(?P<close>\))|(?P<other>\S)"
)
SIGNS = {"x": "*", "X": "*", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"}
VARIABLE = re.compile(r"[A-Za-z](?![A-Za-z])(?!\s*[$(.0-9])")  # 3x - 5
UNIT_WORDS = 3  # at most so many words between a number and what is done with it: `12 red clips + 5`


@dataclass(frozen=True)
class Piece:
    """A number, sign or word in the text of a step, with its place."""

    kind: str
    text: str
    start: int
    end: int
    value: Fraction | None = None
    percent: bool = False


@dataclass(frozen=True)
class Calculation:
    """`tokens` = `result`. `pieces` are the places of the tokens in the text, None when the text does not show them."""

    tokens: tuple[Token, ...]
    result: Fraction
    shown: Piece
    pieces: tuple[Piece | None, ...] | None

    @property
    def exact(self) -> bool:
        """Whether the result is right to the last digit."""
        return evaluate(self.tokens) == self.result

    @property
    def rounded(self) -> bool:
        """Whether the result is right within one unit of its last digit."""
        value, places = evaluate(self.tokens), len(self.shown.text.partition(".")[2])
        return value is not None and abs(value - self.result) < Fraction(1, 10**places)


@dataclass(frozen=True)
class Step:
    """A step without annotations; `prefix` is its `Step k:`. `unread` counts equations that were not understood."""

    prefix: str
    text: str
    pieces: tuple[Piece, ...]
    calculations: tuple[Calculation, ...]
    unread: int

    @property
    def numbers(self) -> list[Piece]:
        """The numbers that the text shows; ordinals are none."""
        return [piece for piece in self.pieces if piece.value is not None]


def read_step(raw: str) -> Step:
    """What a step shows and computes."""
    prefix = PREFIX.match(raw)
    start = prefix.end() if prefix else 0
    text, notes = without_annotations(raw[start:])
    pieces = pieces_of(text)
    calculations, unread = [], 0
    for index, piece in enumerate(pieces):
        if piece.kind == "equals" and (computed := left_of(pieces, index)) is not False:
            result = result_after(pieces, index)
            read = result and computed and calculation(computed, result, notes.pop(result.start, None))
            calculations += [read] if read else []
            unread += not read
    for index, annotation in notes.items():  # results without an equation in the text: `she sold <<48/2=24>>24 clips`
        hidden = hidden_calculation(annotation, next((p for p in pieces if p.start == index), None))
        calculations += [hidden] if hidden else []
        unread += hidden is None
    calculations.sort(key=lambda c: c.shown.start)
    return Step(raw[:start].strip(), text, pieces, tuple(calculations), unread)


def without_annotations(raw: str) -> tuple[str, dict[int, str]]:
    """The text, and each annotation by the place of the number that follows it."""
    notes: dict[int, str] = {}
    text = ""
    end = 0
    for match in ANNOTATION.finditer(raw):
        text += raw[end : match.start()]
        gap = re.match(rf"\s*{CURRENCY}?\s*", raw[match.end() :])
        notes[len(text) + (gap.end() if gap else 0)] = match[1]
        end = match.end()
    return text + raw[end:], notes


def pieces_of(text: str) -> tuple[Piece, ...]:
    """The text cut into numbers, signs and words."""
    pieces = []
    for match in PIECE.finditer(text):
        kind = match.lastgroup if match.lastgroup != "percent" else "number"
        kind = "operator" if kind == "times" else kind
        end = match.end("number") if kind == "number" else match.end()
        long = kind == "number" and end - match.start() > MAX_DIGITS
        value = Fraction(match["number"].replace(",", "")) if kind == "number" and not long else None
        kind = "variable" if value is not None and VARIABLE.match(text, end) else kind
        text_shown = text[match.start() : end]
        pieces.append(Piece(kind or "other", text_shown, match.start(), end, value, match["percent"] is not None))
    return tuple(pieces)


def left_of(pieces: Sequence[Piece], equals: int) -> list[Piece] | Literal[False] | None:
    """The pieces of the expression that ends at an `=`; False when no calculation stands there (`total = 5`), None
    when one does that cannot be read (`x + 3 = 5`)."""
    operands: list[Piece] = []
    position = equals - 1
    while True:
        words = 0
        while position >= 0 and pieces[position].kind in ("word", "unit") and words < UNIT_WORDS:
            position, words = position - 1, words + 1
        operand, position = operand_before(pieces, position)
        if operand is None:
            return None if operands else False
        operands[:0] = operand
        position -= position >= 0 and pieces[position].kind == "currency"
        sign = operator_at(pieces, position)
        if sign is None:
            beside = position >= 0 and pieces[position].kind in ("number", "variable", "close")  # 2 1/2, 8(26)
            return None if beside else operands if len(operands) > 1 else False
        operands[:0] = [sign]
        position -= 1


def operand_before(pieces: Sequence[Piece], position: int) -> tuple[list[Piece] | None, int]:
    """The number or parenthesis that ends at `at`, and the place before it."""
    if position >= 0 and pieces[position].kind == "number" and pieces[position].value is not None:
        return [pieces[position]], position - 1
    if position < 0 or pieces[position].kind != "close":
        return None, position
    inside = [pieces[position]]
    depth = 1
    while depth and position > 0:
        position -= 1
        depth += {"close": 1, "open": -1}.get(pieces[position].kind, 0)
        if pieces[position].kind in ("equals", "other", "variable"):
            return None, position
        if pieces[position].kind not in ("word", "unit", "currency", "ordinal"):
            inside.insert(0, pieces[position])
    return (inside, position - 1) if not depth else (None, position)


def operator_at(pieces: Sequence[Piece], at: int) -> Piece | None:
    """The operator at a place; `of` after a percentage or fraction multiplies."""
    if at < 0 or pieces[at].kind == "operator":
        return pieces[at] if at >= 0 else None
    part = at > 0 and (pieces[at - 1].percent or (at > 1 and pieces[at - 2].text == "/"))
    return pieces[at] if pieces[at].text == "of" and part else None


def result_after(pieces: Sequence[Piece], equals: int) -> Piece | None:
    """The number after an `=`; None when another calculation stands there."""
    position = equals + 1
    position += position < len(pieces) and pieces[position].kind == "currency"
    if position >= len(pieces) or pieces[position].kind != "number":
        return None
    goes_on = [piece.kind for piece in pieces[position + 1 : position + 3]]
    continues = goes_on[:1] == ["open"] or goes_on in (
        ["operator", "number"],
        ["operator", "currency"],
        ["operator", "open"],
    )
    return None if continues else pieces[position]


def calculation(computed: Sequence[Piece], shown: Piece, annotation: str | None) -> Calculation | None:
    """The calculation that a text shows; None when it is none, or gives a number that is too long to be read. What an
    annotation says counts more than the text.

    A percentage is a share (`20% * 50 = 10`) or, where that does not hold, a unit (`40% - 30% = 10%`).
    """
    hidden = hidden_calculation(annotation, shown) if annotation is not None else None
    if shown.value is None or (annotation is not None and hidden is None):
        return None
    readings = [tokens_of(computed, share) for share in (True, False)]
    expected = evaluate(hidden.tokens) if hidden else shown.value
    holds = [(tokens, places) for tokens, places in readings if evaluate(tokens) == expected]
    tokens, places = (holds or readings)[0]
    if evaluate(tokens) is None or not operators(tokens) or (hidden and not holds):
        return hidden
    return Calculation(tokens, shown.value, shown, places)


def tokens_of(computed: Sequence[Piece], share: bool) -> tuple[tuple[Token, ...], tuple[Piece | None, ...]]:
    """The tokens of pieces and their places; 20% as `(20/100)` when percentages are shares."""
    tokens: list[Token] = []
    places: list[Piece | None] = []
    for piece in computed:
        sign = SIGNS.get(piece.text, "*" if piece.text == "of" else piece.text)
        if piece.percent and share and piece.value is not None:
            tokens += percentage(piece.value)
            places += [None, piece, None, None, None]
        else:
            tokens.append(sign if piece.value is None else piece.value)
            places.append(piece)
    return tuple(tokens), tuple(places)


def hidden_calculation(annotation: str, shown: Piece | None) -> Calculation | None:
    """The calculation of an annotation whose text does not show it; None unless the text shows its result."""
    left_side, _, right = annotation.partition("=")
    tokens, result = read_expression(left_side), evaluate(read_expression(right) or ())
    if tokens is None or result is None or shown is None or shown.kind != "number" or shown.value != result:
        return None
    return Calculation(tokens, result, shown, None) if operators(tokens) else None
