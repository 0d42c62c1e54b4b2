"""One error of a chosen type put into a right solution, with all that follows from it.

Every later step that uses a wrong value is worked out again, its words and its answer too. A value is followed by what
it is: where the same number may have come from elsewhere, the error is refused.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from minos_ray.config.schema import InsertedType
from minos_ray.grading.numbers import canonical
from minos_ray.labels.calculations import (
    NUMBER_WORDS,
    Calculation,
    Piece,
    Refused,
    Solution,
    Step,
    Token,
    evaluate,
    operands,
    operators,
)

DONORS = 12  # steps of other problems that are tried in one solution
LEFT_OUT = 0.25  # share of logical errors that leave out a step, where that is possible
MOST_PLACES = 2
UNTIDY, DOUBTFUL = "no wrong value that could stand there", "a later number may come from elsewhere"
Edit = tuple[int, int, str]
Pair = tuple[Calculation, Calculation]
"""A right calculation and what it has become."""


class Remark(NamedTuple):
    """What is to be said of a step: the calculation it shows, its wrong part, what is right, where an error began."""

    kind: str
    shown: str = ""
    wrong: str = ""
    right: str = ""
    instead: str = ""
    cause: int = 0


class Donor(NamedTuple):
    """A right step that shows one calculation and no other number, to be put into solutions of other problems."""

    step: Step
    words: frozenset[str]


class Line(NamedTuple):
    """A step of the new solution without its `Step k:`; `error` is empty where it is right."""

    text: str
    error: str
    remark: Remark


@dataclass(frozen=True)
class Made:
    """A wrong solution. `error_step` is the marked step: the first wrong one, or the inheriting one that was asked."""

    lines: tuple[Line, ...]
    error_step: int
    error_type: str

    @property
    def errors(self) -> list[str]:
        """The error type of each step, empty for a right one."""
        return [line.error for line in self.lines]


class Mistake(NamedTuple):
    """What is to be written at one calculation: its new form, the places to edit, what the note says."""

    new: Calculation
    edits: tuple[Edit, ...]
    error: str
    remark: Remark


class Propagation:
    """Follows wrong values from step to step; `seen` are the numbers that later steps may take from elsewhere."""

    def __init__(self, solution: Solution, before: Sequence[Step]) -> None:
        self.seen = set(solution.given.union(*(step.values for step in before)))
        self.wrong: dict[Fraction, Fraction] = {}
        self.doubtful: set[Fraction] = set()

    def mistake(self, right: Fraction, wrong: Fraction, others: Iterable[Fraction] = ()) -> None:
        """From here on `right` is taken for `wrong`; doubtful when the same number also came from elsewhere."""
        if right in self.seen or right in others or self.wrong.get(right, wrong) != wrong:
            self.doubtful.add(right)
        self.wrong[right] = wrong

    def follow(self, step: Step) -> tuple[str, list[Pair]] | None:
        """The text and the calculations of a step with what it inherits; None when it inherits nothing.

        Refused when that cannot be told for sure.
        """
        results = {calculation.result for calculation in step.calculations}
        if step.values - results - self.seen - self.wrong.keys():
            raise Refused("a later number is of unknown origin")  # it may hide a wrong one
        words = {piece.text.lower() for piece in step.pieces if piece.kind == "word"}
        if any(NUMBER_WORDS[word] in self.wrong for word in words & NUMBER_WORDS.keys()):
            raise Refused("a later number is a word")
        inherits = bool(step.values & self.wrong.keys())
        if inherits and step.unread:
            raise Refused("a later equation cannot be read")
        pairs: list[Pair] = []
        for old in step.calculations:
            tokens = tuple(self.wrong.get(token, token) for token in old.tokens)
            if tokens == old.tokens:
                if old.result in self.wrong:
                    raise Refused(DOUBTFUL)
                pairs.append((old, old))
                continue
            if not old.exact:
                raise Refused("a later result is rounded")
            pairs.append((old, replaced(old, tokens)))
            self.mistake(old.result, pairs[-1][1].result, operands(old.tokens))
        if step.values & self.doubtful:
            raise Refused(DOUBTFUL)
        self.seen |= step.values - self.wrong.keys()
        edits = [edit(p, self.wrong[p.value]) for p in step.numbers if p.value is not None and p.value in self.wrong]
        return (edited(step.text, edits), pairs) if inherits else None


def donors_of(solutions: Sequence[Solution]) -> list[Donor]:
    """The steps of all solutions that can be put into others."""
    steps = [step for solution in solutions for step in solution.steps[:-1] if len(step.calculations) == 1]
    plain = [s for s in steps if not s.unread and s.calculations[0].exact and s.calculations[0].pieces]
    return [Donor(step, words_of(step.text)) for step in plain]


def words_of(*texts: str) -> frozenset[str]:
    """The words of three letters or more."""
    return frozenset(word.strip(".,:;?!'\"()").lower() for text in texts for word in text.split() if len(word) > 2)


def insert(solution: Solution, error: InsertedType, donors: Sequence[Donor], rng: random.Random) -> Made:
    """The solution with an error of that type; Refused, with the most frequent reason, when none can be put in."""
    reasons: Counter[str] = Counter()
    for attempt in attempts(solution, error, donors, rng):
        try:
            return attempt()
        except Refused as refused:
            reasons[str(refused)] += 1
    raise Refused(reasons.most_common(1)[0][0] if reasons else "no step for this type")


def attempts(
    solution: Solution, error: InsertedType, donors: Sequence[Donor], rng: random.Random
) -> Iterator[Callable[[], Made]]:
    """Ways to put the error in, each place in its turn, in a seeded order."""
    places = rng.sample(solution.calculations, len(solution.calculations))
    if error == "unrelated":
        # Steps of other problems with no number of this one, those with the fewest words of it first.
        words = words_of(solution.question, *solution.texts)
        familiar = solution.given.union(*(step.values for step in solution.steps))
        drawn = [rng.choice(donors) for _ in range(4 * DONORS)] if donors else []
        foreign = [donor for donor in drawn if donor.step.values.isdisjoint(familiar)]
        foreign = sorted(foreign, key=lambda donor: len(donor.words & words))[:DONORS]
        last = solution.calculations[-1]  # the answer alone would take what comes after it: only when nothing else does
        for index, source in [place for place in places if place != last] + [last]:
            yield from (partial(stray, solution, index, source, donor.step) for donor in foreign)
    elif error == "accumulation":
        for make in attempts(solution, rng.choice(("calculation", "logical")), donors, rng):
            yield partial(inheriting, make, rng)
    else:
        skips = rng.random() < LEFT_OUT
        ways = [miscalculated] if error == "calculation" else [left_out, misused] if skips else [misused, left_out]
        for way in ways:
            for index, source in places:
                yield from way(solution, index, source, rng)


def inheriting(make: Callable[[], Made], rng: random.Random) -> Made:
    """The solution, marked at a step that is wrong only because it inherits; the answer line is no such step."""
    made = make()
    steps = [k for k, line in enumerate(made.lines[:-1]) if line.error == "accumulation"]
    if not steps:
        raise Refused("no later step inherits the error")
    return replace(made, error_step=rng.choice(steps), error_type="accumulation")


def miscalculated(solution: Solution, at: int, c: Calculation, rng: random.Random) -> Iterator[Callable[[], Made]]:
    """Wrong results of one calculation."""
    for wrong in slips(c.result, c.shown.text, c.tokens, rng):
        if tidy(wrong, c.result, c.shown.text, c.shown.percent):
            remark = Remark("calculation", expression(c.tokens), canonical(wrong), canonical(c.result))
            mistake = Mistake(replace(c, result=wrong), (), "calculation", remark)
            yield partial(mistaken, solution, at, c, mistake)


def slips(right: Fraction, text: str, tokens: tuple[Token, ...], rng: random.Random) -> Iterator[Fraction]:
    """Wrong results of a calculation, the likely ones in a seeded order; some may not be tidy."""
    unit = Fraction(1, 10 ** places_of(text))
    values = [right + unit, right - unit, right + 2 * unit, right - 2 * unit]
    carry = [right + 10 * unit, right - 10 * unit, right + 100 * unit, right - 100 * unit]
    values += [value for value in carry if abs(value - right) * 3 <= abs(right)]
    if "*" in tokens or "/" in tokens:
        values += [right * 10, right / 10]
    digits = canonical(right)
    for k, (first, second) in enumerate(pairwise(digits)):  # 27 for 72
        changed = digits[:k] + second + first + digits[k + 2 :]
        if (first + second).isdigit() and first != second and "/" not in changed and not changed.startswith("0"):
            values.append(Fraction(changed))
    if len(tokens) == 3 and tokens[1] == "*":  # one factor too many or too few: 7 * 8 = 48
        values += [right + sign * factor for sign in (1, -1) for factor in operands(tokens)]
    if right < 0 or any(value < 0 for value in operands(tokens)):
        values.append(-right)
    rng.shuffle(values)
    yield from dict.fromkeys(values)


def misused(solution: Solution, at: int, c: Calculation, rng: random.Random) -> Iterator[Callable[[], Made]]:
    """Wrong operations and wrong operands in one calculation, worked out rightly."""
    changes: list[tuple[int, Token]] = [
        (k, sign) for k in operators(c.tokens) for sign in "+-*/" if sign != c.tokens[k]
    ]
    # Numbers that someone may take by mistake: those in the digits of the question, and earlier results.
    usable = {value for value in solution.asked if value > 1} | {e.result for k, e in solution.calculations if k < at}
    others = sorted(usable - set(operands(c.tokens)))
    numbers = [k for k, token in enumerate(c.tokens) if isinstance(token, Fraction) and token != 100]
    changes += [(k, value) for k in numbers for value in rng.sample(others, min(3, len(others)))]
    for k, token in rng.sample(changes, len(changes)):
        yield lambda k=k, token=token: mistaken(solution, at, c, misuse(c, k, token))


def misuse(c: Calculation, k: int, new: Token) -> Mistake:
    """One token replaced; the edit is where the text shows it."""
    place, token = c.pieces[k] if c.pieces else None, c.tokens[k]
    if place is None:
        raise Refused("the text does not show the calculation")
    result = replaced(c, (*c.tokens[:k], new, *c.tokens[k + 1 :]))
    if isinstance(new, Fraction) and isinstance(token, Fraction):
        remark = Remark("operand", equation(result), canonical(new), equation(c), instead=canonical(token))
        return Mistake(result, (edit(place, new),), "logical", remark)
    remark = Remark("operation", equation(result), str(new), equation(c), instead=str(token))
    return Mistake(result, ((place.start, place.end, str(new)),), "logical", remark)


def mistaken(solution: Solution, at: int, c: Calculation, mistake: Mistake) -> Made:
    """The solution with that mistake in step `at`, and its consequences."""
    step = solution.steps[at]
    if c.pieces is None or step.unread or len(step.calculations) > 1:
        raise Refused("the text does not show the calculation" if c.pieces is None else "more than one equation")
    if not c.exact:
        raise Refused("a result is rounded")
    propagation = Propagation(solution, solution.steps[:at])
    propagation.seen |= step.values - {c.result}
    propagation.mistake(c.result, mistake.new.result, operands(c.tokens))
    mentions = [piece for piece in step.numbers if piece.value == c.result and piece not in c.pieces]
    if len(mentions) > 1 and c.result in propagation.doubtful:
        raise Refused("a number may come from elsewhere")
    edits = [*mistake.edits, *(edit(piece, mistake.new.result) for piece in mentions)]
    line = Line(edited(step.text, edits), mistake.error, mistake.remark)
    return finished(solution, [*unchanged(solution.steps[:at]), line], propagation, at + 1, (c, mistake.new))


def left_out(solution: Solution, at: int, c: Calculation, rng: random.Random) -> Iterator[Callable[[], Made]]:
    """Step `at` is left out: the step that uses its result takes one of its operands instead."""
    values = operands(c.tokens)
    yield from (partial(without, solution, at, c, value) for value in dict.fromkeys(rng.sample(values, len(values))))


def without(solution: Solution, at: int, c: Calculation, value: Fraction) -> Made:
    """The solution without step `at`, `value` in place of its result; the one step that takes it is the error."""
    step = solution.steps[at]
    users = sum(c.result in later.values for later in solution.steps[at + 1 : -1])
    if len(step.calculations) > 1 or step.unread or users != 1 or not tidy(value, c.result, c.shown.text):
        raise Refused("no step that can be left out")
    propagation = Propagation(solution, solution.steps[:at])
    propagation.seen |= step.values - {c.result}
    propagation.mistake(c.result, value)
    for k, later in enumerate(solution.steps[at + 1 : -1], at + 1):
        if changed := propagation.follow(later):
            text, pairs = changed
            before, after = pairs[0] if len(pairs) == 1 else (c, c)
            if before is after or before.pieces is None or c.result not in operands(before.tokens):
                break
            line = Line(text, "logical", Remark("skipped", equation(after), equation(c), equation(before)))
            lines = [*unchanged(solution.steps[:at]), *unchanged(solution.steps[at + 1 : k]), line]
            return finished(solution, lines, propagation, k + 1, (before, after))
    raise Refused("no step that can be left out")


def stray(solution: Solution, at: int, c: Calculation, donor: Step) -> Made:
    """A step of another problem after step `at`, whose result is taken for that of `c` from there on."""
    other = donor.calculations[0]
    if c.shown.percent != other.shown.percent or not tidy(other.result, c.result, c.shown.text, c.shown.percent):
        raise Refused(UNTIDY)
    propagation = Propagation(solution, solution.steps[: at + 1])
    # The result of `c` counts as seen only if it is also a number of the problem or of another step so far.
    propagation.seen -= {c.result} - solution.given.union(operands(c.tokens), *(s.values for s in solution.steps[:at]))
    propagation.mistake(c.result, other.result)
    line = Line(donor.text, "unrelated", Remark("unrelated", equation(other)))
    lines = [*unchanged(solution.steps[: at + 1]), line]
    return finished(solution, lines, propagation, at + 1, (c, replace(c, result=other.result)))


def unchanged(steps: Sequence[Step]) -> list[Line]:
    """Right steps as they are, with what a note says of them."""
    remarks = [Remark("right", equation(s.calculations[-1])) if s.calculations else Remark("plain") for s in steps]
    return [Line(step.text, "", remark) for step, remark in zip(steps, remarks, strict=True)]


def finished(solution: Solution, lines: Sequence[Line], propagation: Propagation, after: int, last: Pair) -> Made:
    """The lines so far, the steps from `after` on with what they inherit, and the answer that comes out."""
    lines = list(lines)
    first = next(k for k, line in enumerate(lines) if line.error)
    for step in solution.steps[after:-1]:
        changed = propagation.follow(step)
        if changed is None:
            lines += unchanged([step])
            last = (step.calculations[-1], step.calculations[-1]) if step.calculations else last
            continue
        text, pairs = changed
        last = pairs[-1] if pairs else last
        remark = Remark("repeated", cause=first + 1)
        if different := [pair for pair in pairs if pair[0] is not pair[1]]:
            before, wrong = different[-1]
            remark = Remark("inherited", equation(wrong), "", equation(before), cause=first + 1)
        lines.append(Line(text, "accumulation", remark))
    (before, final), answer = last, solution.answer
    if before.result != answer.value or final.result == before.result:
        raise Refused("the error does not reach the answer")
    if not tidy(final.result, before.result, answer.text):
        raise Refused(UNTIDY)
    text = edited(solution.steps[-1].text, [edit(answer, final.result)])
    remark = Remark("answer", "", write_number(final.result, answer.text), answer.text, cause=first + 1)
    return Made((*lines, Line(text, "accumulation", remark)), first, lines[first].error)


def replaced(calculation: Calculation, tokens: tuple[Token, ...]) -> Calculation:
    """Another calculation in the same place; Refused unless its result could stand there."""
    result, place = evaluate(tokens), calculation.shown
    if result is None or not tidy(result, calculation.result, place.text, place.percent):
        raise Refused(UNTIDY)
    return replace(calculation, tokens=tokens, result=result)


def tidy(new: Fraction, like: Fraction, text: str, percent: bool = False) -> bool:
    """Whether `new` can stand where `like` (written `text`) stood: whole if that was, above zero, few decimals."""
    if new == like or (like > 0 and new <= 0) or (percent and like <= 100 < new):
        return False
    most = 0 if like.denominator == 1 else max(MOST_PLACES, places_of(text))
    return (new * 10**most).denominator == 1


def places_of(text: str) -> int:
    """Digits after the point."""
    return len(text.partition(".")[2])


def edit(piece: Piece, value: Fraction) -> Edit:
    """A number of a text replaced by another value."""
    return piece.start, piece.end, write_number(value, piece.text)


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with pieces replaced."""
    for start, end, replacement in sorted(set(edits), reverse=True):
        text = text[:start] + replacement + text[end:]
    return text


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


def expression(tokens: Sequence[Token]) -> str:
    """`48 / 2`, `(5 + 3) * 2`."""
    text = " ".join(canonical(token) if isinstance(token, Fraction) else token for token in tokens)
    return text.replace("( ", "(").replace(" )", ")")


def equation(calculation: Calculation) -> str:
    """`48 / 2 = 24`."""
    return f"{expression(calculation.tokens)} = {canonical(calculation.result)}"
