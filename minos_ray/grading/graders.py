"""Graders: what a text answers, and whether that is the gold answer. Gold comes first everywhere.

Beside its own comparison each has the strict one behind the published tables (MetaMATH's evaluation, used by
Math-Minos), which knows one mark, rounds numbers, and compares expressions as strings: only to state what it says.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

from minos_ray.config.load import resolve
from minos_ray.grading.latex import extract_latex, gold_latex
from minos_ray.grading.numbers import extract_number, gold_number
from minos_ray.grading.same import same_text
from minos_ray.store.columns import Status

MARK = "The answer is: "
LARGEST, LONGEST = 10**300, 300  # value and digits beyond which no float compares numbers
NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
DEGREES = re.compile(r"\^(?:\{\\circ\}|\\circ)")
QUOTIENT = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")


def strict_number(gold: str, text: str) -> bool:
    """GSM8K: the first number behind the last `The answer is: `, rounded to an integer, equals the gold number."""
    expected, stated = gold_number(gold), stated_number(text)
    if expected is None or stated is None or abs(Fraction(expected)) > LARGEST:
        return False
    return float(Fraction(expected)) == stated


def stated_number(text: str) -> int | None:
    """The rounded number that the strict comparison reads; it knows `1,234`, not `1,234,567`."""
    _, mark, after = text.rpartition(MARK)
    match = NUMBER.search(after.strip()) if mark else None
    if match is None:
        return None
    above, slash, below = match[0].replace(",", "").partition("/")
    if slash and (len(above) > LONGEST or len(below) > LONGEST or not re.search(r"\d", above)):
        return None
    value = float(above)
    if slash and below != "0":
        value = float(Fraction(f"{above}/{below}")) if int(below) else None
    return None if value is None or value in (float("inf"), float("-inf")) else round(value)


def strict_latex(gold: str, text: str) -> bool:
    """MATH: what stands behind the last `The answer is: `, up to a full stop at the end of a line, is the gold answer
    as a string, after the normalisation of Hendrycks et al. (2021)."""
    _, mark, after = text.rpartition(MARK)
    answer = after.split(".\n", 1)[0].strip().removesuffix(".").strip()
    expected = gold_latex(gold)
    return bool(mark) and expected is not None and same_string(expected, answer)


def same_string(gold: str, answer: str) -> bool:
    """Whether both are the same string once normalised; as they are where one cannot be."""
    try:
        return stripped(gold) == stripped(answer)
    except (IndexError, ValueError):
        return gold == answer


def stripped(answer: str) -> str:
    """The normal form; the order of the rules is part of it. ValueError, IndexError for what it cannot read."""
    text = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = DEGREES.sub("", text).replace("\\$", "")
    text, *units = text.split("\\text{ ")  # what stands before `\text{ cm}`
    if len(units) > 1:
        raise ValueError("two units")
    text = text.replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    head, *roots = text.split("\\sqrt")  # `\sqrt3` is `\sqrt{3}`; IndexError when nothing follows
    text = "\\sqrt".join([head, *(root if root[0] == "{" else f"{{{root[0]}}}{root[1:]}" for root in roots)])
    text = braced_fractions(text.replace(" ", ""))
    text = "\\frac{1}{2}" if text == "0.5" else text
    quotient = QUOTIENT.fullmatch(text)
    return f"\\frac{{{quotient[1]}}}{{{quotient[2]}}}" if quotient else text


def braced_fractions(text: str) -> str:
    """`\\frac12` as `\\frac{1}{2}`; IndexError when nothing follows, the text as it is when too little does."""
    head, *parts = text.split("\\frac")
    done = [head]
    for part in parts:
        if part[0] != "{" and len(part) < 2:
            return text
        above, below, tail = part[0], part[1:2], part[2:]
        below = below if below == "{" else f"{{{below}}}"
        done.append(part if above == "{" else f"{{{above}}}{below}{tail}")
    return "\\frac".join(done)


@dataclass(frozen=True)
class Graded:
    """The outcome for one text; `answer` is None without one, and a comparison that never ended is a `timeout`."""

    answer: str | None
    correct: bool
    status: Status


def graded(answer: str | None, same: bool | None) -> Graded:
    """The outcome of a comparison; `same` is None when it was not decided within its limits."""
    if answer is None:
        return Graded(None, False, "no_answer")
    if same is None:
        return Graded(answer, False, "timeout")
    return Graded(answer, same, "correct" if same else "wrong")


@dataclass(frozen=True)
class Grader:
    """`extract(text)` finds an answer and `same(gold, answer)` compares it.

    `slow` names a second comparison, `package.module:function`, asked when `same` says no; it may hang, so stages run
    it in processes that can be killed. Calling a grader directly runs everything right here. `gold` reads the gold
    answer in a gold cell (which may be a whole solution); None where there is none, and then nothing is right.
    `strict(gold, text)` is what published tables would have said of the text.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    slow: str | None = None
    gold: Callable[[str], str | None] = str
    strict: Callable[[str, str], bool] | None = None

    def __call__(self, gold: str, text: str) -> Graded:
        answer, expected = self.extract(text), self.gold(gold)
        if answer is None or expected is None:
            return graded(answer, False)
        same = self.same(expected, answer) or (self.slow is not None and resolve(self.slow)(expected, answer))
        return graded(answer, same)


SLOW = "minos_ray.grading.same:same_value"
gsm8k = Grader(extract_number, str.__eq__, gold=gold_number, strict=strict_number)
gsm8k_marked = Grader(partial(extract_number, fallback=False), str.__eq__, gold=gold_number, strict=strict_number)
math = Grader(extract_latex, same_text, SLOW, gold_latex, strict_latex)
math_marked = Grader(partial(extract_latex, fallback=False), same_text, SLOW, gold_latex, strict_latex)

STYLES = {"gsm8k": gsm8k, "math": math}
