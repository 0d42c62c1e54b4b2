"""Critiques in the forms of published critics: a verdict on each step, or the index of the first wrong step.

DeepCritic (arXiv:2505.00662) reviews up to the first wrong step and ends in its number, in a box; so do the critics of
ProcessBench (arXiv:2412.06559), from 0 on. GenPRM (arXiv:2504.00891) gives Yes or No in a box for each paragraph, or
ends in the index. R-PRM (arXiv:2503.21295) ends what it says of each step in `Is the step correct (Yes/No)? Yes`.

All stop at, or speak of, the first wrong step: the steps behind it, and the answer, count as wrong.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

FENCE = "```"
# `**Critique of Step 2**:`, `### Paragraph 2`, `<paragraph_2>`, `Let's analyze the Paragraph 2 step by step`.
SECTION = re.compile(
    r"(?im)^[^\w\n]*(?:let(?:'|\u2019)s\s+(?:analyze|verify|check|review)\s+(?:the\s+)?)?"
    r"(?P<of>(?:critique|analysis|verification|review|evaluation)\s+(?:of|for)\s+(?:the\s+)?)?"
    r"(?P<kind>step|paragraph)[\s_]*(?P<number>[0-9]{1,4})\b(?P<alone>[^\w\n]*$)?"
)
BOX = r"\$?(?<!\\)\\+(?:boxed|fbox)\s*\{\s*(?:\\text\s*\{\s*)?"
# `No.`, never `No error was found`.
ENDS = r"(?=\s*(?:[.,;!)}<$\\]|\n|\Z))"
ASKED = re.compile(
    r"(?i)\bis\s+(?:the|this)\s+(?:step|paragraph)\s+correct\W*\(yes\s*/\s*no\)\W*?"
    rf"(?:{BOX})?(?P<verdict>yes|no)\b{ENDS}"
)
MARKS = (
    re.compile(
        rf"(?i)correctness\s+of\s+(?:step|paragraph)\s+(?P<number>[0-9]{{1,4}})\s+is\W*?{BOX}(?P<verdict>-?1)\b"
    ),
    re.compile(rf"(?i)\bjudge?ment\W*?(?:{BOX})?(?P<verdict>yes|no)\b{ENDS}"),
    ASKED,
)
GOOD = {"1", "yes"}
INDEX = re.compile(rf"{BOX}(?P<index>-?[0-9]{{1,4}})\s*\}}[\s$.)\]}}\\]*(?:</?\w+>\s*)*\Z")
# Words around the last box that say that it holds an index, and is not the answer of the problem.
INDEX_WORDS = re.compile(
    r"(?i)\bind(?:ex|ices)\b|\bearliest\b|\bfirst\s+(?:error|mistake|wrong|incorrect)|\bparagraph\b"
)
NEAR = 400


def read_published(text: str, num_steps: int) -> list[int] | None:
    """1 or 0 for each of `num_steps` steps, the answer line last; None for another form or what leaves a doubt."""
    # Without code blocks and their output.
    parts = re.split(rf"(?m)^[ \t]*{FENCE}[^\n]*$", text)
    text = ("".join(parts[::2]) if len(parts) % 2 else text).replace("*", "")
    marks = sorted((match for mark in MARKS for match in mark.finditer(text)), key=re.Match.start)
    # Lines that only begin with a step are headings where there are no clearer ones.
    headings, index = list(SECTION.finditer(text)), INDEX.search(text)
    clearer = [heading for heading in headings if heading["of"]], [heading for heading in headings if heading["alone"]]
    sections: list[re.Match[str]] = next(filter(None, map(in_order, (*clearer, headings))), [])
    judged = by_marks(text, marks, sections, num_steps)
    if index is None or (marks and index.start() < marks[-1].end()):
        return judged
    if marks and judged is None:
        return None
    verdicts = by_index(text, index, sections, num_steps, trusted=bool(marks))
    return (judged or verdicts) if judged is None or first_wrong(judged) == first_wrong(verdicts) else None


def first_wrong(verdicts: list[int] | None) -> int | None:
    """The place of the first wrong step; past the end when there is none."""
    return None if verdicts is None else [*verdicts, 0].index(0)


def in_order(headings: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """Headings without those that repeat the one before; none unless they count from 0 or 1 on."""
    counted = [h for before, h in pairwise([None, *headings]) if h and not (before and before["number"] == h["number"])]
    numbers = [int(heading["number"]) for heading in counted]
    return (
        counted if numbers and numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < 2 else []
    )


def by_marks(
    text: str, marks: Sequence[re.Match[str]], sections: Sequence[re.Match[str]], num_steps: int
) -> list[int] | None:
    """Verdicts of a critique that has one for each step, or one under each heading up to the first wrong step.

    R-PRM's are of one step each, and quote earlier ones.
    """
    verdicts = [int(mark["verdict"].lower() in GOOD) for mark in marks]
    if len({mark.re for mark in marks}) != 1 or len(marks) > num_steps:
        return None
    # No verdict may name another step than the one that it stands for.
    offsets = {int(m["number"]) - place for place, m in enumerate(marks) if m.groupdict().get("number")} or {0}
    if len(offsets) > 1 or not offsets <= {0, 1}:
        return None
    one_step = marks[0].re is ASKED
    bounds = [*(section.start() for section in sections), len(text)]
    counts = [sum(first <= mark.start() < last for mark in marks) for first, last in pairwise(bounds)]
    if sections and not one_step and counts != [1] * len(marks):
        return None
    if len(verdicts) == num_steps:
        return verdicts
    stopped = not one_step and len(verdicts) < num_steps and verdicts == [1] * (len(verdicts) - 1) + [0]
    return [*verdicts, *[0] * (num_steps - len(verdicts))] if stopped and sections else None


def by_index(
    text: str, index: re.Match[str], sections: Sequence[re.Match[str]], num_steps: int, trusted: bool
) -> list[int] | None:
    """Verdicts of a critique that ends in the index of the first wrong step, -1 when there is none.

    It is one when words say so, or headings that only critiques have; it must fit the headings' numbers.
    """
    number = int(index["index"])
    words = INDEX_WORDS.search(text[max(0, index.start() - NEAR) : index.start()])
    reviewed = any(heading["kind"].lower() == "paragraph" for heading in sections) or (
        any(heading["of"] for heading in sections) and number in (-1, int(sections[-1]["number"]))
    )
    if not (trusted or words or reviewed):
        return None
    if number == -1:
        complete = not sections or len(sections) in (num_steps - 1, num_steps)
        return [1] * num_steps if complete else None
    first = int(sections[0]["number"]) if sections else {0: 0, num_steps: 1}.get(number)
    place = None if first is None else number - first
    if place is None or not 0 <= place < num_steps or (sections and place >= len(sections)):
        return None
    return [int(step < place) for step in range(num_steps)]
