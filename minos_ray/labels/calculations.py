"""Reading a right solution: the numbers and calculations of each step, by its text or by GSM8K's annotations.

An annotation `<<48/2=24>>` stands right before the result. Steps are kept without annotations, as they are trained on.
"""

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

from minos_ray.grading.numbers import CURRENCY, DIGITS, MAX_DIGITS, first_number, simplify

Token = Fraction | str
"""A number, one of `+ - * /`, or a parenthesis."""

OPERATIONS: dict[Token, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
BINDING: dict[Token, int] = {"+": 1, "-": 1, "*": 2, "/": 2}
SIGN_BINDS = 3
MOST_TOKENS, MOST_DIGITS = 60, 30
_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(%?)|([-+*/()]))")
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
SIGNS = {"x": "*", "X": "*", "of": "*", "\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"}
VARIABLE = re.compile(r"[A-Za-z](?![A-Za-z])(?!\s*[$(.0-9])")  # 3x - 5
UNIT_WORDS = 3  # at most so many words between a number and what is done with it: `12 red clips + 5`
SMALL = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
# Words that are numbers; a step that has one in place of digits cannot be changed consistently.
NUMBER_WORDS = {word: Fraction(value) for value, word in enumerate(SMALL)} | {w: Fraction(n) for w, n in TENS.items()}
# The numbers that other words may stand for.
MEANT = {
    word: numbers
    for words, numbers in {
        "half halve halves halved": (2, 0.5),
        "twice double doubles doubled both pair couple average other": (2, 0.5),
        "thrice triple triples tripled third thirds": (3,),
        "quarter quarters fourth quadruple": (4, 0.25, 0.75),
        "fifth fifths": (5, 0.2),
        "dozen dozens year years month months yearly": (12, 52, 365, 30),
        "foot feet inch inches noon midnight yard yards": (12, 3, 36),
        "week weeks weekly day days daily": (7, 24, 5, 30, 365),
        "hour hours hourly minute minutes second seconds": (60, 24, 3600),
        "cent cents percent percentage dollar dollars $ %": (100,),
        "dime dimes": (10, 0.1),
        "nickel nickels": (5, 20),
        "century hundred hundreds": (100,),
        "thousand thousands kilogram kilograms kg km kilometers liter": (1000,),
        "square rectangle rectangular": (4, 2),
        "pound pounds ounce ounces": (16,),
    }.items()
    for word in words.split()
}


class Refused(Exception):
    """A solution, or an error in it, cannot be used; the message is the reason, the same for all alike."""


def read_expression(text: str) -> tuple[Token, ...] | None:
    """The tokens of `0.2*(50+10)`, a percentage as `(20/100)`; None for anything that is not such an expression."""
    tokens: list[Token] = []
    end = 0
    while end < len(text.rstrip()):
        match = _TOKEN.match(text, end)
        if not match or len(match[0]) > MOST_DIGITS:
            return None
        number, percent, sign = match.groups()
        tokens += percentage(Fraction(number)) if percent else [Fraction(number) if number else sign]
        end = match.end()
    return tuple(tokens) if evaluate(tokens) is not None else None


def percentage(value: Fraction) -> list[Token]:
    """20 % as `(20/100)`."""
    return ["(", value, "/", Fraction(100), ")"]


def evaluate(tokens: Sequence[Token]) -> Fraction | None:
    """The exact value; None when the tokens are no expression, or divide by zero."""
    if not 0 < len(tokens) <= MOST_TOKENS:
        return None
    ahead = list(reversed(tokens))

    def value(binding: int) -> Fraction:
        """Reads as far as operators bind more than that (Pratt's parser)."""
        token = ahead.pop()
        if isinstance(token, Fraction):
            left = token
        elif token in ("-", "+"):
            left = -value(SIGN_BINDS) if token == "-" else value(SIGN_BINDS)
        elif token == "(":
            left = value(0)
            if ahead.pop() != ")":
                raise ValueError("no closing parenthesis")
        else:
            raise ValueError("no number")
        while ahead and BINDING.get(ahead[-1], 0) > binding:
            sign = ahead.pop()
            left = OPERATIONS[sign](left, value(BINDING[sign]))
        return left

    try:
        result = value(0)
    except (IndexError, ValueError, ZeroDivisionError):
        return None
    return None if ahead else result


def operands(tokens: Sequence[Token]) -> list[Fraction]:
    """The numbers of an expression, in order."""
    return [token for token in tokens if isinstance(token, Fraction)]


def operators(tokens: Sequence[Token]) -> list[int]:
    """Where the operators stand between two operands; signs of numbers are none."""
    after = [k for k in range(1, len(tokens)) if isinstance(tokens[k - 1], Fraction) or tokens[k - 1] == ")"]
    return [k for k in after if tokens[k] in OPERATIONS]


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

    @cached_property
    def numbers(self) -> list[Piece]:
        """The numbers that the text shows; ordinals are none."""
        return [piece for piece in self.pieces if piece.value is not None]

    @cached_property
    def values(self) -> frozenset[Fraction]:
        """All numbers: shown, computed with, or computed."""
        shown = {piece.value for piece in self.pieces if piece.value is not None}
        return frozenset(shown.union(*(operands(calculation.tokens) for calculation in self.calculations)))


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
        """The steps as they are trained on, each with its `Step k:` if it has one."""
        return [f"{step.prefix} {step.text}" if step.prefix else step.text for step in self.steps]

    @property
    def calculations(self) -> list[tuple[int, Calculation]]:
        """Every calculation with the index of its step."""
        return [(k, calculation) for k, step in enumerate(self.steps) for calculation in step.calculations]


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
    return Solution(source_id, problem_id, question, read, asked, given_numbers(question), answer)


def given_numbers(question: str) -> frozenset[Fraction]:
    """Every value that an operand can take from the question without a calculation worth a step."""
    pieces, numbers = pieces_of(question), {Fraction(1)}
    words = {match[0].lower() for match in PIECE.finditer(question) if match["word"] or match["currency"]}
    for piece in pieces:
        if piece.value is not None:
            numbers.add(piece.value)
        if piece.value is not None and piece.percent:  # 20 % may become 20, 80, 120, 0.2, 0.8, 1.2
            words.add("%")
            for value in (piece.value, 100 - piece.value, 100 + piece.value):
                numbers |= {value, value / 100}
    for numerator, sign, denominator in zip(pieces, pieces[1:], pieces[2:], strict=False):
        if sign.text == "/" and numerator.value is not None and denominator.value:
            fraction = numerator.value / denominator.value  # `3/4`, and what it leaves
            numbers |= {fraction, 1 - fraction, denominator.value - numerator.value}
    for word in words:
        numbers |= {NUMBER_WORDS[part] for part in word.split("-") if part in NUMBER_WORDS}
        numbers.update(map(Fraction, MEANT.get(word.split("-")[0], ())))
    return frozenset(numbers)


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
    text, end = "", 0
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
        kind, (start, end), value = match.lastgroup or "other", match.span(), None
        if number := match["number"]:
            kind, end = "number", match.end("number")
            if len(number) <= MAX_DIGITS:
                value = Fraction(number.replace(",", ""))
                kind = "variable" if VARIABLE.match(text, end) else kind
        kind = "operator" if kind == "times" else kind
        pieces.append(Piece(kind, text[start:end], start, end, value, match["percent"] is not None))
    return tuple(pieces)


def left_of(pieces: Sequence[Piece], equals: int) -> list[Piece] | Literal[False] | None:
    """The pieces of the expression that ends at an `=`; False when no calculation stands there (`total = 5`), None
    when one does that cannot be read (`x + 3 = 5`)."""
    expression: list[Piece] = []
    position = equals - 1
    while True:
        words = 0
        while position >= 0 and pieces[position].kind in ("word", "unit") and words < UNIT_WORDS:
            position, words = position - 1, words + 1
        operand, position = operand_before(pieces, position)
        if operand is None:
            return None if expression else False
        expression[:0] = operand
        position -= position >= 0 and pieces[position].kind == "currency"
        before = pieces[position] if position >= 0 else None
        # `of` multiplies after a percentage or a fraction.
        part = position > 0 and (pieces[position - 1].percent or (position > 1 and pieces[position - 2].text == "/"))
        if before is None or not (before.kind == "operator" or (before.text == "of" and part)):
            beside = before is not None and before.kind in ("number", "variable", "close")  # 2 1/2, 8(26)
            return None if beside else expression if len(expression) > 1 else False
        expression[:0] = [before]
        position -= 1


def operand_before(pieces: Sequence[Piece], position: int) -> tuple[list[Piece] | None, int]:
    """The number or parenthesis that ends at a position, and the position before it."""
    if position >= 0 and pieces[position].kind == "number" and pieces[position].value is not None:
        return [pieces[position]], position - 1
    if position < 0 or pieces[position].kind != "close":
        return None, position
    inside, depth = [pieces[position]], 1
    while depth and position > 0:
        position -= 1
        kind = pieces[position].kind
        depth += {"close": 1, "open": -1}.get(kind, 0)
        if kind in ("equals", "other", "variable"):
            return None, position
        if kind not in ("word", "unit", "currency", "ordinal"):
            inside.insert(0, pieces[position])
    return (inside, position - 1) if not depth else (None, position)


def result_after(pieces: Sequence[Piece], equals: int) -> Piece | None:
    """The number after an `=`; None when another calculation stands there."""
    following = pieces[equals + 1 : equals + 5]
    following = following[1:] if following and following[0].kind == "currency" else following[:3]
    if not following or following[0].kind != "number":
        return None
    kinds = [piece.kind for piece in following[1:]]
    continues = kinds[:1] == ["open"] or kinds in ([["operator", kind] for kind in ("number", "currency", "open")])
    return None if continues else following[0]


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
        if piece.percent and share and piece.value is not None:
            tokens += percentage(piece.value)
            places += [None, piece, None, None, None]
        else:
            tokens.append(SIGNS.get(piece.text, piece.text) if piece.value is None else piece.value)
            places.append(piece)
    return tuple(tokens), tuple(places)


def hidden_calculation(annotation: str, shown: Piece | None) -> Calculation | None:
    """The calculation of an annotation whose text does not show it; None unless the text shows its result."""
    left_side, _, right = annotation.partition("=")
    tokens, result = read_expression(left_side), evaluate(read_expression(right) or ())
    if tokens is None or result is None or shown is None or shown.kind != "number" or shown.value != result:
        return None
    return Calculation(tokens, result, shown, None) if operators(tokens) else None
