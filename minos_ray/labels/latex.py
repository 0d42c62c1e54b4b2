"""Answers that are mathematics (MATH): finding the final expression, a string form for votes, math-verify."""

import re
from functools import lru_cache
from typing import Any

from minos_ray.labels.numbers import HASHES, canonical, first_number, last_number, simplify

BOXED = re.compile(r"\\f?boxed\s*(?=\{)|\\f?boxed\s+(?=[^\s{])")
SAYS = re.compile(r"\banswer\s*(?:\*+\s*)?(?:is|are|:|=)(?![a-zA-Z_])[\s:*]*", re.IGNORECASE)
DOLLARS = re.compile(r"(?<!\\)\$+(.+?)(?<!\\)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|textrm|operatorname)\s*\{([^{}]*)\}")
SPACING = re.compile(r"\\[!,;: ]|\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])|\\limits\b|\\displaystyle\b")
UNIT = re.compile(r"(?<=[0-9}])\\(?:text|mbox|mathrm)\s*\{\s*[a-zA-Z][^{}]*\}(?:\^\{?[0-9]\}?)?$")
DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree\b")
SHORT_ABOVE = re.compile(r"\\frac\s*([0-9a-z])")
SHORT_BELOW = re.compile(r"(\\frac\{[^{}]*\})\s*([0-9a-z])")
SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-z])")
THOUSANDS = re.compile(r"(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
LEADING_DOT = re.compile(r"(?<![0-9])\.(?=[0-9])")
CHOICE = re.compile(r"\(([A-Z])\)")
LONGEST = 2000


def extract_latex(text: str, fallback: bool = True) -> str | None:
    """The expression that `text` gives as its answer, None without one.

    The last `\\boxed{X}` counts, else the last `The answer is: X` or `#### X`, else, if `fallback`, the last number.
    """
    boxes = [(m.end(), boxed_at) for m in BOXED.finditer(text)]
    says = [(end, line_at) for end in sorted(m.end() for mark in (SAYS, HASHES) for m in mark.finditer(text))]
    for start, read in [*reversed(boxes), *reversed(says)]:
        answer = read(text, start)
        if answer and len(answer) <= LONGEST:
            return answer
    value = last_number(simplify(text)) if fallback else None
    return None if value is None else canonical(value)


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}`, nested braces included; None without one."""
    starts = [m.end() for m in BOXED.finditer(text)]
    return boxed_at(text, starts[-1]) if starts else None


def boxed_at(text: str, start: int) -> str | None:
    """What a box holds whose brace opens at `start` (or the single word there); None when it never closes."""
    if text[start] != "{":
        return re.split(r"[\s$]", text[start:], maxsplit=1)[0]
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return text[start + 1 : at].strip()
    return None


def line_at(text: str, start: int) -> str | None:
    """The answer at the beginning of a sentence: its box or mathematics, else its words without the full stop."""
    line = text[start:].lstrip().partition("\n")[0].strip()
    inside = last_boxed(line)
    if inside is not None:
        return inside
    found = DOLLARS.match(line)
    if found:
        return next(group for group in found.groups() if group is not None).strip()
    return re.split(r"\.(?:\s|$)", line, maxsplit=1)[0].strip().strip("*").strip() or None


def normal(answer: str) -> str:
    """A string form in which the common ways of writing one answer are equal."""
    text = answer.strip().strip("$").rstrip(".").replace("\\$", "").replace("\\%", "").replace("%", "")
    text = SPACING.sub("", DEGREES.sub("", UNIT.sub("", text)))
    text = WRAPPER.sub(r"\1", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = SHORT_BELOW.sub(r"\1{\2}", SHORT_ABOVE.sub(r"\\frac{\1}", text))
    text = SHORT_ROOT.sub(r"\\sqrt{\1}", text).replace("{,}", ",")
    text = LEADING_DOT.sub("0.", THOUSANDS.sub(lambda m: m[0].replace(",", ""), text))
    text = re.sub(r"\s+", "", text)
    choice = CHOICE.fullmatch(text)
    return choice[1] if choice else plain_number(text)


def plain_number(text: str) -> str:
    """The canonical form of what is nothing but a number, anything else as it is."""
    if not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?", text):
        return text
    value = first_number(text)
    return text if value is None else canonical(value)


def same_text(gold: str, answer: str) -> bool:
    """Whether two answers have the same string form; never wrong about a yes, often about a no."""
    return normal(gold) == normal(answer)


def same_value(gold: str, answer: str) -> bool:
    """Whether math-verify holds the answer for the gold one; may take forever, so it belongs in a `Comparer`."""
    from math_verify import verify

    return verify(parsed(gold), parsed(answer), timeout_seconds=None)


@lru_cache(maxsize=4096)
def parsed(answer: str) -> list[Any]:
    """What math-verify reads in an expression; no limit of its own, since its signals fail outside a main thread."""
    from math_verify import LatexExtractionConfig, parse

    # LaTeX only: the reader of plain expressions ends in eval().
    return parse(f"\\boxed{{{answer}}}", [LatexExtractionConfig(boxed_match_priority=0)], parsing_timeout=None)
