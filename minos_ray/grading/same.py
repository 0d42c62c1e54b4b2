"""When two answers in mathematics are the same: by their string forms, else by what math-verify says of their parts."""

import re
from collections.abc import Iterable, Sequence
from math import gcd

from minos_ray.grading.forms import (
    ADJACENT,
    APPROXIMATES,
    HEDGE,
    NEGATED,
    PERCENT,
    RELATION,
    bare,
    choice_with_text,
    conclusion,
    counted_out,
    elements,
    in_full,
    is_name,
    normal,
    parsed,
    point,
    readable,
    sides,
    split,
    value_side,
    without_condition,
)

BASED = re.compile(r"\(?([0-9A-Fa-f]+)\)?_\{?(?:\\text\{)?([0-9]+|[a-z]{3,})\}*")
BASES = {
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
UNKNOWN = re.compile(r"\\?[a-zA-Z]+")
EXTREME = re.compile(r"_\{?\\?(?:max|min|text\{(?:max|min)\})\}?")
# A gold interval that is no point, as (1,2) may be: x > 3 states (3, oo), too.
INTERVAL = re.compile(r"\\infty|\\cup(?![a-zA-Z])|^\[.*[)\]]$|^\(.*\]$")
CLOCK = re.compile(r"([0-9]{1,2})(?::([0-5][0-9]))?([ap]m)?")
RATIO = re.compile(r"[0-9]+(?:\s*:\s*[0-9]+){2,}")
PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")
UNION = re.compile(r"\\cup(?![a-zA-Z])")
MANY = 40  # elements of a list, beyond which only equal strings are the same


def same_text(gold: str, answer: str) -> bool:
    """Whether two answers have the same string form; never wrong about a yes, often about a no."""
    expected, received = normal(gold), normal(answer)
    if expected == received:
        return True
    if point(expected) == point(received):
        return True
    # One is a choice with its text, `(C) 14`, and the other the letter (or, for a gold, the text).
    if len(expected) == 1 and expected.isalpha():
        chosen = choice_with_text(answer)
        return chosen is not None and chosen[0] == expected
    chosen = choice_with_text(gold)
    return chosen is not None and received in (chosen[0], normal(chosen[1]))


def same_value(gold: str, answer: str) -> bool:
    """Whether the answer states the gold one, as a reader would say; may take forever: it belongs in a `Comparer`."""
    expected, received = readable(gold), readable(answer)
    if same_list(expected, received):
        return True
    # Shorter forms of what the answer says in the end: without a remark, without its calculation.
    forms: list[str | None] = [without_condition(received)] if without_condition(expected) == expected else []
    if APPROXIMATES.search(received) and not APPROXIMATES.search(expected):
        forms += [part for part in APPROXIMATES.split(received) if part.strip()]
    forms += [counted_out(received), conclusion(received)]
    shorter = [form for form in forms if form and form != received]
    if any(same_text(gold, other) or same_list(expected, readable(other)) for other in shorter):
        return True
    written = [in_full(gold), in_full(answer)]
    return any(written) and same_text(written[0] or gold, written[1] or answer)


def same_list(gold: str, answer: str) -> bool:
    """Whether two readable answers agree as lists, element by element, or as single values."""
    (outer, golds), (brackets, answers) = elements(gold), elements(answer)
    if len(golds) != len(answers):  # `\\pm` in one of them may be two elements of the other
        all_golds, all_answers = spread(golds), spread(answers)
        spreads = (len(all_golds), len(all_answers)) != (len(golds), len(answers))
        if len(all_golds) == len(all_answers) and spreads and in_any_order(all_golds, all_answers):
            return True
    if len(golds) < 2 and len(answers) < 2:
        return same_single(gold, answer)
    if len(golds) < 2 and not brackets and len(answers) <= MANY and in_order([gold] * len(answers), answers):
        return True  # 3/4 or 0.75
    if len(golds) < 2 or len(answers) < 2:
        intervals = split(gold, UNION)
        if 2 <= len(answers) == len(intervals) and all(map(RELATION.search, answers)):
            return in_any_order(intervals, answers)  # x < 1 or x > 2
        intervals = split(answer, UNION)
        if 2 <= len(golds) == len(intervals) and all(map(RELATION.search, golds)):
            return in_any_order(golds, intervals)
        return same_single(gold, answer)
    if len(golds) != len(answers):
        return len(set(golds)) == len(set(answers)) and verified(gold, answer)
    if ("()" in (outer, brackets) and "{}" in (outer, brackets)) or outer == brackets == "()":
        return in_order(map(value_side, golds), map(value_side, answers))
    if len(golds) == 2 and ("[" in outer + brackets or "]" in outer + brackets):
        return outer == brackets and in_order(golds, answers)
    # Values of different unknowns, `a=3, b=4`, have an order; roots are `x=3, x=4` or `x_1=3, x_2=4`.
    unknowns = [sides(gold)[0].strip() for gold in golds if len(sides(gold)) > 1]
    names = len(unknowns) == len(golds) == len({*unknowns}) and all(map(UNKNOWN.fullmatch, unknowns))
    if "()" in (outer, brackets) or names:
        if in_order(by_name(golds), by_name(answers)) or (
            names and in_order(map(value_side, golds), map(value_side, answers))
        ):
            return True
        if outer == "()" or names:
            return False
    return in_any_order(golds, answers)


def in_order(golds: Iterable[str], answers: Iterable[str]) -> bool:
    """Whether the elements are the same, one by one."""
    return all(same_element(gold, answer) for gold, answer in zip(golds, answers, strict=True))


def in_any_order(golds: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether the elements are the same in some order; equal strings are paired first."""
    unmatched, missing = list(answers), []
    for gold in golds:
        twin = next((index for index, answer in enumerate(unmatched) if normal(answer) == normal(gold)), None)
        if twin is None:
            missing.append(gold)
        else:
            del unmatched[twin]
    if len(missing) > MANY:
        return False
    for gold in missing:
        twin = next((index for index, answer in enumerate(unmatched) if same_element(gold, answer)), None)
        if twin is None:
            return False
        del unmatched[twin]
    return True


def same_element(gold: str, answer: str) -> bool:
    """Whether two elements of lists are the same."""
    return same_text(gold, answer) or same_list(gold, answer)


def by_name(parts: Sequence[str]) -> list[str]:
    """The values of `y=2, x=1` in the order of the names, of anything else in its own."""
    names = [sides(part)[0] if len(sides(part)) > 1 and is_name(sides(part)[0]) else None for part in parts]
    if None in names or len(set(names)) < len(names):
        return list(parts)
    return [value_side(part) for _, part in sorted(zip(names, parts, strict=True), key=lambda pair: pair[0])]


def spread(parts: Sequence[str]) -> list[str]:
    """The elements, each that has one `\\pm` as two: `1+\\sqrt{2}` and `1-\\sqrt{2}` for `1\\pm\\sqrt{2}`."""
    values = []
    for part in parts:
        if len(PLUS_MINUS.findall(part)) != 1:
            values.append(part)
            continue
        plus = "" if PLUS_MINUS.match(part) else "+"
        values += [bare(PLUS_MINUS.sub(sign, part)) for sign in (plus, "-")]
    return values


def same_single(gold: str, answer: str) -> bool:
    """Whether two values or equations are the same; what math-verify would misread is compared as text."""
    for rule in (same_base, same_clock):
        verdict = rule(gold, answer)
        if verdict is not None:
            return verdict
    if HEDGE.search(answer) and not HEDGE.search(gold):
        return False
    left_side = sides(answer)[0]
    if left_side != answer and "\\text" in left_side and NEGATED.search(left_side):
        return normal(gold) == normal(answer)  # \text{no solution for } n = 3
    expected, received = one_sided(gold, answer)
    if not expected or not received:
        return gold == answer
    if normal(expected) == normal(received):
        return True
    ratio = False
    ratios = bool(RATIO.fullmatch(expected) and RATIO.fullmatch(received))
    if ratios:  # of three and more, `1:2:3`, part by part
        first, second = ([int(part) for part in text.split(":")] for text in (expected, received))
        pairs = zip(first, second, strict=False)
        ratio = len(first) == len(second) and all(a * second[0] == b * first[0] for a, b in pairs)
    if ratios or ADJACENT.search(expected) or ADJACENT.search(received):
        return ratio
    if verified(expected, received):
        return True
    plain = [PERCENT.sub("", text) for text in (expected, received)]
    return plain != [expected, received] and verified(*plain)


def one_sided(gold: str, answer: str) -> tuple[str, str]:
    """Without the left side that only one of them has, or that both share: `k_{\\max} = 7` and `7`."""
    golds, answers = sides(gold, membership=True), sides(answer, membership=True)
    if len(golds) == 1 and len(answers) > 1 and RELATION.search(gold) is None:
        return gold, value_side(answer)
    if len(golds) > 1 and len(answers) == 1 and is_name(golds[0]) and RELATION.search(answer) is None:
        return golds[-1], answer
    if len(golds) > 1 and len(answers) > 1 and is_name(golds[0]):
        names = [normal(EXTREME.sub("", parts[0])) for parts in (golds, answers)]
        return (golds[-1], answers[-1]) if names[0] == names[1] else (gold, answer)
    return gold, answer


def same_base(gold: str, answer: str) -> bool | None:
    """Numbers with a stated base: the digits must agree, and the bases where both are stated; None for others."""
    first, second = BASED.fullmatch(gold.replace(" ", "")), BASED.fullmatch(answer.replace(" ", ""))
    if not first or not second:
        return None
    return first[1].upper() == second[1].upper() and BASES.get(first[2], first[2]) == BASES.get(second[2], second[2])


def same_clock(gold: str, answer: str) -> bool | None:
    """Times of day, `12:30` or `3pm`, which a ratio in lowest terms cannot be: the same hour and minute, and no other
    half of the day; None for others."""
    first, second = CLOCK.fullmatch(gold), CLOCK.fullmatch(answer)
    if first is None or second is None:
        return False if is_time(first) else None
    if not is_time(first) and not is_time(second):
        return None
    if first[2] and not (second[2] or second[3]):
        return False
    return bool(moments(first) & moments(second))


def moments(found: re.Match[str]) -> set[tuple[int, int]]:
    """The hours and minutes, of 24 hours, that a time of day may be: two without its half of the day."""
    hour, minute = int(found[1]), int(found[2] or 0)
    halves = {"am": (0,), "pm": (12,)}.get(found[3], (0, 12))
    return {(hour % 12 + half if 0 < hour <= 12 else hour, minute) for half in halves}


def is_time(found: re.Match[str] | None) -> bool:
    """Whether what looks like a time of day can be nothing else."""
    return found is not None and bool(found[3] or (found[2] and gcd(int(found[1]), int(found[2])) != 1))


def verified(gold: str, answer: str) -> bool:
    """What math-verify says, corrected where its fifteen digits or its reading of `i` as a letter are not enough: exact
    constants are the same when their values are."""
    from math_verify import verify

    from minos_ray.grading.values import exact_key, has_imaginary, key_of

    expected, received = parsed(gold), parsed(answer)
    # An exact fraction needs no further thought.
    if all(read and getattr(read[0], "is_Rational", False) for read in (expected, received)):
        return expected[0] == received[0]
    intervals = INTERVAL.search(gold) is not None
    same = verify(expected, received, timeout_seconds=None, allow_set_relation_comp=intervals)
    if not expected or not received:
        return same
    if same:
        keys = [exact_key(read[0]) for read in (expected, received)]
        return None in keys or keys[0] == keys[1]
    if has_imaginary(expected[0]) or has_imaginary(received[0]):
        keys = [key_of(read[0]) for read in (expected, received)]
        return None not in keys and keys[0] == keys[1]
    return False
