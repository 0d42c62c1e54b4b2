"""One error of a chosen type in a right solution, with all that follows from it."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from minos_ray.config.schema import InsertedType
from minos_ray.grading.numbers import canonical
from minos_ray.inserted.notes import Remark, equation, expression
from minos_ray.inserted.propagation import (
    Changed,
    Edit,
    Propagation,
    edit,
    edited,
    replaced,
    slips,
    tidy,
    values_of,
    write_number,
)
from minos_ray.inserted.reading import Calculation, Step, Token, evaluate, operands, operators
from minos_ray.inserted.solution import Refused, Solution

DONORS = 12  # steps of other problems that are tried in one solution


@dataclass(frozen=True)
class Donor:
    """A right step that shows one calculation and no other number, to be put into solutions of other problems."""

    step: Step
    values: frozenset[Fraction]
    words: frozenset[str]


def donors_of(solutions: Sequence[Solution]) -> list[Donor]:
    """The steps of all solutions that can be put into others."""
    steps = [step for solution in solutions for step in solution.steps[:-1] if len(step.calculations) == 1]
    plain = [s for s in steps if not s.unread and s.calculations[0].exact and s.calculations[0].pieces]
    return [Donor(step, frozenset(values_of(step)), words_of(step.text)) for step in plain]


def strangers(solution: Solution, donors: Sequence[Donor], rng: random.Random) -> list[Step]:
    """Steps of other problems with no number of this one, those with the fewest words of it first."""
    words = words_of(solution.question, *solution.texts)
    familiar = solution.given.union(*map(values_of, solution.steps))
    drawn = [rng.choice(donors) for _ in range(4 * DONORS)] if donors else []
    foreign = [donor for donor in drawn if donor.values.isdisjoint(familiar)]
    return [donor.step for donor in sorted(foreign, key=lambda donor: len(donor.words & words))[:DONORS]]


def words_of(*texts: str) -> frozenset[str]:
    """The words of three letters or more."""
    return frozenset(word.strip(".,:;?!'\"()").lower() for text in texts for word in text.split() if len(word) > 2)


LEFT_OUT = 0.25  # share of logical errors that leave out a step, where that is possible


@dataclass(frozen=True)
class Line:
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


@dataclass(frozen=True)
class Mistake:
    """What is to be written at one calculation: its new form, the places to edit, what the note says."""

    new: Calculation
    edits: tuple[Edit, ...]
    error: str
    remark: Remark


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
    places = shuffled(solution.calculations, rng)
    if error == "unrelated":
        last = solution.calculations[-1]  # the answer alone would take what comes after it: only when nothing else does
        foreign = strangers(solution, donors, rng)
        for index, source in [place for place in places if place != last] + [last]:
            for donor in foreign:
                yield lambda index=index, source=source, donor=donor: stray(solution, index, source, donor)
    elif error == "accumulation":
        for make in attempts(solution, rng.choice(("calculation", "logical")), donors, rng):
            yield lambda make=make: inheriting(make(), rng)
    else:
        skips = rng.random() < LEFT_OUT
        ways = [miscalculated] if error == "calculation" else [left_out, misused] if skips else [misused, left_out]
        for way in ways:
            for index, source in places:
                yield from way(solution, index, source, rng)


def shuffled(found: Sequence, rng: random.Random) -> list:
    """A seeded order."""
    return rng.sample(found, len(found))


def inheriting(made: Made, rng: random.Random) -> Made:
    """The same solution, marked at a step that is wrong only because it inherits; the answer line is no such step."""
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
            yield lambda mistake=mistake: mistaken(solution, at, c, mistake)


def misused(solution: Solution, at: int, c: Calculation, rng: random.Random) -> Iterator[Callable[[], Made]]:
    """Wrong operations and wrong operands in one calculation, worked out rightly."""
    candidates = sorted(usable(solution, at) - set(operands(c.tokens)))
    changes: list[tuple[int, Token]] = [
        (k, sign) for k in operators(c.tokens) for sign in "+-*/" if sign != c.tokens[k]
    ]
    numbers = [k for k, token in enumerate(c.tokens) if isinstance(token, Fraction) and token != 100]
    changes += [(k, value) for k in numbers for value in rng.sample(candidates, min(3, len(candidates)))]
    for k, replacement in shuffled(changes, rng):
        yield lambda k=k, replacement=replacement: mistaken(solution, at, c, misuse(solution, c, k, replacement))


def usable(solution: Solution, at: int) -> set[Fraction]:
    """Numbers that someone may take by mistake: those in the digits of the question, and earlier results."""
    visible = {value for value in solution.asked if value > 1}
    return visible | {c.result for k, c in solution.calculations if k < at}


def misuse(solution: Solution, c: Calculation, k: int, new: Token) -> Mistake:
    """One token replaced; the edit is where the text shows it."""
    place, token = c.pieces[k] if c.pieces else None, c.tokens[k]
    if place is None:
        raise Refused("the text does not show the calculation")
    tokens = (*c.tokens[:k], new, *c.tokens[k + 1 :])
    result = replaced(c, tokens, evaluate(tokens))
    if isinstance(new, Fraction) and isinstance(token, Fraction):
        kind, edits = "operand", (edit(place, new),)
        difference = (canonical(new), canonical(token))
    else:
        kind, edits = "operation", ((place.start, place.end, str(new)),)
        difference = (str(new), str(token))
    remark = Remark(kind, equation(result), difference[0], equation(c), instead=difference[1])
    return Mistake(result, edits, "logical", remark)


def mistaken(solution: Solution, at: int, c: Calculation, mistake: Mistake) -> Made:
    """The solution with that mistake in step `at`, and its consequences."""
    step = solution.steps[at]
    if c.pieces is None or step.unread or len(step.calculations) > 1:
        raise Refused("the text does not show the calculation" if c.pieces is None else "more than one equation")
    if not c.exact:
        raise Refused("a result is rounded")
    propagation = Propagation(solution.given)
    for earlier in solution.steps[:at]:
        propagation.pass_by(earlier)
    propagation.seen |= values_of(step) - {c.result}
    propagation.mistake(c.result, mistake.new.result, operands(c.tokens))
    mentions = [piece for piece in step.numbers if piece.value == c.result and piece not in c.pieces]
    if len(mentions) > 1 and c.result in propagation.doubtful:
        raise Refused("a number may come from elsewhere")
    edits = [*mistake.edits, *(edit(piece, mistake.new.result) for piece in mentions)]
    line = Line(edited(step.text, edits), mistake.error, mistake.remark)
    lines = [*kept(solution.steps[:at]), line]
    return finished(solution, lines, propagation, at + 1, (c, mistake.new))


def kept(steps: Sequence[Step]) -> list[Line]:
    """Steps as they are."""
    return [Line(step.text, "", right(step)) for step in steps]


def right(step: Step) -> Remark:
    """What a note says of a right step."""
    return Remark("right", equation(step.calculations[-1])) if step.calculations else Remark("plain")


def finished(
    solution: Solution, lines: list[Line], propagation: Propagation, after: int, last: tuple[Calculation, Calculation]
) -> Made:
    """The lines so far, the steps from `after` on with what they inherit, and the answer that comes out."""
    first = next(k for k, line in enumerate(lines) if line.error)
    lines = list(lines)
    for step in solution.steps[after:-1]:
        changed = propagation.follow(step)
        last = changed.calculations[-1] if changed and changed.calculations else last
        last = last if changed or not step.calculations else (step.calculations[-1], step.calculations[-1])
        lines += [Line(changed.text, "accumulation", inherited(changed, first))] if changed else kept([step])
    before, final = last
    if before.result != solution.answer.value or final.result == before.result:
        raise Refused("the error does not reach the answer")
    answer = solution.answer
    if not tidy(final.result, before.result, answer.text):
        raise Refused("no wrong value that could stand there")
    text = edited(solution.steps[-1].text, [edit(answer, final.result)])
    remark = Remark("answer", "", write_number(final.result, answer.text), answer.text, cause=first + 1)
    return Made((*lines, Line(text, "accumulation", remark)), first, lines[first].error)


def inherited(changed: Changed, first: int) -> Remark:
    """What a note says of a step that goes wrong only because of step `first`."""
    different = [pair for pair in changed.calculations if pair[0] is not pair[1]]
    if not different:
        return Remark("repeated", cause=first + 1)
    before, after = different[-1]
    return Remark("inherited", equation(after), "", equation(before), cause=first + 1)


def left_out(solution: Solution, at: int, c: Calculation, rng: random.Random) -> Iterator[Callable[[], Made]]:
    """Step `at` is left out: the step that uses its result takes one of its operands instead."""
    for value in dict.fromkeys(shuffled(operands(c.tokens), rng)):
        yield lambda value=value: without(solution, at, c, value)


def without(solution: Solution, at: int, c: Calculation, value: Fraction) -> Made:
    """The solution without step `at`, `value` in place of its result; the one step that takes it is the error."""
    step = solution.steps[at]
    users = sum(c.result in values_of(later) for later in solution.steps[at + 1 : -1])
    if len(step.calculations) > 1 or step.unread or users != 1 or not tidy(value, c.result, c.shown.text):
        raise Refused("no step that can be left out")
    propagation = Propagation(solution.given)
    for earlier in solution.steps[:at]:
        propagation.pass_by(earlier)
    propagation.seen |= values_of(step) - {c.result}
    propagation.mistake(c.result, value)
    lines = kept(solution.steps[:at])
    for k, later in enumerate(solution.steps[at + 1 : -1], at + 1):
        changed = propagation.follow(later)
        if changed:
            return skipping(solution, lines, propagation, k, c, changed)
        lines += kept([later])
    raise Refused("no step that can be left out")


def skipping(
    solution: Solution, lines: list[Line], propagation: Propagation, k: int, c: Calculation, changed: Changed
) -> Made:
    """The solution whose step `k` is the first to feel that calculation `c` is missing."""
    before, after = changed.calculations[0] if len(changed.calculations) == 1 else (c, c)
    if before is after or before.pieces is None or c.result not in operands(before.tokens):
        raise Refused("no step that can be left out")
    remark = Remark("skipped", equation(after), equation(c), equation(before))
    return finished(solution, [*lines, Line(changed.text, "logical", remark)], propagation, k + 1, (before, after))


def stray(solution: Solution, at: int, c: Calculation, donor: Step) -> Made:
    """A step of another problem after step `at`, whose result is taken for that of `c` from there on."""
    other = donor.calculations[0]
    if c.shown.percent != other.shown.percent or not tidy(other.result, c.result, c.shown.text, c.shown.percent):
        raise Refused("no wrong value that could stand there")
    propagation = Propagation(solution.given)
    for earlier in solution.steps[: at + 1]:
        propagation.pass_by(earlier)
    propagation.seen -= {c.result} if once(solution, at, c) else set()
    propagation.mistake(c.result, other.result)
    line = Line(donor.text, "unrelated", Remark("unrelated", equation(other)))
    lines = [*kept(solution.steps[: at + 1]), line]
    return finished(solution, lines, propagation, at + 1, (c, replace(c, result=other.result)))


def once(solution: Solution, at: int, c: Calculation) -> bool:
    """Whether the result of `c` is no number of the problem and of no other step so far."""
    others = [values_of(step) for step in solution.steps[:at]] + [set(operands(c.tokens))]
    return c.result not in solution.given.union(*others)
