"""Answers that are mathematics (MATH): finding the final expression, a string form for votes, math-verify."""

import re
from functools import lru_cache
from typing import Any

from minos_ray.labels.numbers import HASHES, TRIES, canonical, first_number, last_number, simplify

BOXED = re.compile(r"\\f?boxed\s*(?=\{)|\\f?boxed\s+(?=[^\s{])")
SAYS = re.compile(r"\banswer\s*(?:\*+\s*)?(?:is|are|:|=)(?![a-zA-Z_])[\s:*]*", re.IGNORECASE)
# Displayed mathematics, then inline on one line; a dollar sign before a digit opens an amount, it closes nothing.
MATHS = re.compile(
    r"(?<!\\)\$\$([^$]{1,2000}?)(?<!\\)\$\$|\\\[(.{1,2000}?)\\\]"
    r"|(?<!\\)\$((?:\\\$|[^$\n]){1,2000}?)(?<!\\)\$(?![0-9])|\\\(([^\n]{1,2000}?)\\\)",
    re.DOTALL,
)
STATES = re.compile(r"[a-zA-Z ]*\b(?:is|are|was|were)\b:?\s*(?=\S)")
# An answer in a whole sentence, `Jane needs 12 apples`, unless the number is only part of it.
HEDGED = re.compile(r"\b(?:except|than|least|most|not|all|every|between|and|or)\b|[^\w\s.,'$%-]")
# Minerva's format; it comes after the work, so it counts before a box.
FINAL = re.compile(r"\bfinal answer is:?\s*(?=\$|\\[(\[])", re.IGNORECASE)
# What may stand between the boxes of one answer: \boxed{1} \text{ and } x = \boxed{2}, \boxed{3} hours and \boxed{20}.
BETWEEN = re.compile(
    r"(?:\s+[a-z]+(?=\s+and\b))?"
    r"(?:[\s$,;]|\\[\[\]();,!: ]|\\q?quad\b|\\(?:text|mbox|mathrm)\{[^{}]{0,40}\}|and|[a-zA-Z](?:_\{?\w{1,3}\}?)?\s*=)*"
)
LISTS = re.compile(r"[,;]|\band\b")
ALSO = re.compile(r"\s*,?\s*(?:and|or)\s*|\s*\\text\s*\{\s*(?:and|or)\s*\}\s*")

WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|textrm|operatorname)\s*\{([^{}]*)\}")
SPACING = re.compile(r"\\[!,;: ]|\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])|\\limits\b|\\displaystyle\b")
UNIT = re.compile(r"(?<=[0-9}])\\(?:text|mbox|mathrm)\s*\{\s*[a-zA-Z][^{}]*\}(?:\^\{?[0-9]\}?)?$")
DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree\b")
SHORT_ABOVE = re.compile(r"\\frac\s*([0-9a-z])")
SHORT_BELOW = re.compile(r"(\\frac\{[^{}]*\})\s*([0-9a-z])")
SHORT_ROOT = re.compile(r"\\sqrt\s*([0-9a-z])")
THOUSANDS = re.compile(r"(?<![0-9])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])")
MIXED = re.compile(r"(?<![0-9./])([0-9]+)\s+([0-9]+)/([0-9]+)")  # 3 1/2
LEADING_DOT = re.compile(r"(?<![0-9])\.(?=[0-9])")
DECIMAL_COMMA = re.compile(r"-?[0-9]+,[0-9]+")
CHOICE = re.compile(r"\(([A-Z])\)")
PERCENT = re.compile(r"\\?%|(?<=[0-9}\s])(?:percent(?:age)?|pct)\b")
LONGEST = 2000  # characters of an answer
TAIL = 20_000  # characters at the end of a text where an unmarked answer is looked for
BETWEEN_LONGEST = 80


def extract_latex(text: str, fallback: bool = True) -> str | None:
    """The expression that `text` gives as its answer, None without one.

    The last `\\boxed{X}` counts (with the boxes listed before it), else the last `The answer is: X` or `#### X`, else,
    if `fallback`, the last formula, or the number behind it.
    """
    finals, boxes = [m.end() for m in FINAL.finditer(text)], boxes_of(text)
    if boxes and not (finals and finals[-1] > boxes[-1][1]):
        answer = last_listed(text, boxes)
    else:
        marks = sorted(m.end() for mark in (SAYS, HASHES) for m in mark.finditer(text))
        answer = next((line for start in reversed(marks[-TRIES:]) if (line := line_at(text, start))), None)
    if answer is None and fallback:
        answer = unmarked(text)
    return answer if answer and len(answer) <= LONGEST else None


def gold_latex(gold: str) -> str:
    """The answer that a gold cell holds: the marked one of a whole solution, a formula, or the cell as it is."""
    marked = extract_latex(gold, fallback=False)
    if marked is None and MATHS.search(gold):
        marked = unmarked(gold)
    return marked or gold.strip()


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` that closes, nested braces included; None without one."""
    boxes = boxes_of(text)
    return boxes[-1][2] if boxes else None


def boxes_of(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the last boxes that close and hold something."""
    marks = list(BOXED.finditer(text))[-TRIES:]
    found = [(mark.start(), *boxed_at(text, mark.end())) for mark in marks]
    return [(start, end, content) for start, end, content in found if content]


def last_listed(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The content of the last box, with those listed right before it: `\\boxed{1}, \\boxed{2}`."""
    first, _, content = boxes[-1]
    found = [content]
    for start, end, content in reversed(boxes[:-1]):
        if end > first or not listed(text[end:first]):
            break
        found.insert(0, content)
        first = start
    return ", ".join(dict.fromkeys(found))


def listed(between: str) -> bool:
    """Whether what stands between two boxes makes them parts of one answer."""
    if len(between) > BETWEEN_LONGEST or "\n\n" in between or not BETWEEN.fullmatch(between):
        return False
    return not between or LISTS.search(between) is not None


def boxed_at(text: str, start: int) -> tuple[int, str | None]:
    """Where a box ends whose brace (or single word) begins at `start`, and what it holds; None when it does not close
    within `LONGEST` characters."""
    if text[start] != "{":
        word = re.split(r"[\s$]", text[start : start + LONGEST], maxsplit=1)[0]
        return start + len(word), word
    depth = 0
    for at in range(start, min(len(text), start + LONGEST)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return at + 1, text[start + 1 : at].strip()
    return start, None


def line_at(text: str, start: int) -> str | None:
    """The answer at the beginning of a sentence: its box or formula, else its words without the full stop; of a
    sentence such as `The volume is 120`, what it states."""
    line = text[start : start + LONGEST].lstrip().partition("\n")[0].strip()
    inside = last_boxed(line)
    if inside is not None:
        return inside
    found = MATHS.match(line)
    if found:
        return formula(found)
    words = re.split(r"\.(?:\s|$)", line, maxsplit=1)[0].strip().strip("*").strip()
    states = STATES.search(words)
    return (line_at(words, states.end()) if states else counted(words)) or None


def counted(words: str) -> str:
    """The number of a sentence that says nothing but how many: `Jane needs 12 apples`; else the words."""
    value = first_number(words)
    if value is None or len(words.split()) < 4 or HEDGED.search(words) or value != last_number(words):
        return words
    return canonical(value)


def formula(found: re.Match[str]) -> str:
    """What stands between the signs that open and close mathematics."""
    return next(group for group in found.groups() if group is not None).strip()


def unmarked(text: str) -> str | None:
    """The last formula of a text (`$1$ and $2$` is one), or the last number where one stands behind it."""
    text = text[-TAIL:]
    found = list(MATHS.finditer(text))
    behind = last_number(simplify(text[found[-1].end() :] if found else text))
    if behind is not None or not found:
        return None if behind is None else canonical(behind)
    parts = [formula(found[-1])]
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        if not ALSO.fullmatch(text[before.end() : after.start()]):
            break
        parts.insert(0, formula(before))
    return ", ".join(parts)


def normal(answer: str) -> str:
    """A string form in which the common ways of writing one answer are equal."""
    text = answer.strip().strip("$").rstrip(".").replace("\\$", "")
    text = MIXED.sub(r"\1\\frac{\2}{\3}", PERCENT.sub("", text))
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
    return point(normal(gold)) == point(normal(answer))


def point(text: str) -> str:
    """`1.22` for the `1,22` of many languages: as a list it could not equal a decimal number anyway."""
    return text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else text


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
