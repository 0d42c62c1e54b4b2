"""Reading a critique strictly: one verdict per step, one final verdict, or a status that says what is wrong with it.

Decoration that leaves no doubt is looked through (thinking before it, bold, headings, `Step 1.` for `Step 1:`, code
fences, tags, blank lines), and so are the forms of published critics; what can be read in two ways is refused (two
verdicts in a step, a verdict within a sentence or in quotation marks).

Published critics: DeepCritic (arXiv:2505.00662) reviews up to the first wrong step and ends in its number, in a box;
so do the critics of ProcessBench (arXiv:2412.06559), from 0 on. GenPRM (arXiv:2504.00891) gives Yes or No in a box for
each paragraph, or ends in the index. R-PRM (arXiv:2503.21295) ends what it says of each step in `Is the step correct
(Yes/No)? Yes`. All stop at, or speak of, the first wrong step: the steps behind it, and the answer, count as wrong.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from minos_ray.steps.split import without_thinking

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
YES = {"1", "yes"}
INDEX = re.compile(rf"{BOX}(?P<index>-?[0-9]{{1,4}})\s*\}}[\s$.)\]}}\\]*(?:</?\w+>\s*)*\Z")
# Words around the last box that say that it holds an index, and is not the answer of the problem.
INDEX_WORDS = re.compile(
    r"(?i)\bind(?:ex|ices)\b|\bearliest\b|\bfirst\s+(?:error|mistake|wrong|incorrect)|\bparagraph\b"
)
NEAR = 400
Status = Literal["ok", "empty", "no_verdict", "wrong_step_count", "unclear_step"]
Agreement = Literal["agrees", "unreadable", "wrong_final_verdict", "step_disagrees"]

# Decoration carries no meaning: emphasis, code, headings, rules, bullets. Lines are read without it.
EMPHASIS = str.maketrans("", "", "*`_")
EDGE = " \t\r#~-\u2022"
FENCE, QUOTED = "```", ">"

# `Step 1:`, `Step 1.`, `Step 1)`, `Step 1 (words):`, `Step 1 - ...` or `Step 1` alone on its line; never `Step 1.5` or
# `Step 1 - 3`.
STEP = re.compile(
    r"(?:[0-9]+[.)]\s*)?Step\s*#?([0-9]+)\s*"
    r"(?:\([^()]*\)\s*(?:[:\uff1a.\-\u2013\u2014]|\Z)|[:\uff1a)]|\.(?![0-9])|[-\u2013\u2014]\s(?!\s*[0-9])|\Z)",
    re.IGNORECASE,
)
# `**Step 1**` is a heading without any sign behind it.
BOLD_STEP = re.compile(r"(?i)^(\W*)(\*\*|__)(Step\s*[0-9]+)\2(?!\s*[:.()\-\u2013\u2014])")
# Where no line says `Step`: numbered paragraphs.
ITEM = re.compile(r"\(?([0-9]+)[.)]\s")
TAG = re.compile(r"(?i)</?(?:answer|critique|output|response|review|verdict)>|<\|\w+\|>\s*\Z|</s>\s*\Z")
ANSWER = re.compile(r"(?is)<answer>((?:(?!</?answer>).)*)</answer>")
BOXED = re.compile(r"(?i)\$?(?<!\\)\\+boxed\s*\{(?:\\text\{)?(true|false)\}+\$?")
VERDICT = re.compile(r"This step is ([Cc]orrect|[Ii]ncorrect)\b")
JUDGED = r"is (?P<not>not )?(?P<word>correct|right|true|incorrect|wrong|false)\b"
MENTION = re.compile(rf"\b(?:this step|step (?P<step>[0-9]+)) {JUDGED}", re.IGNORECASE)
HEADING = r"(?:final )?(?:answer|verdict|conclusion)"
FINAL = re.compile(rf"(?:{HEADING}\s*:\s*)?The final answer is (True|False)\.?", re.IGNORECASE)
FINAL_MENTION = re.compile(rf"\bthe final answer {JUDGED}", re.IGNORECASE)
GOOD = {"correct", "right", "true"}
FINAL_HEADING = re.compile(rf"{HEADING}\s*:?", re.IGNORECASE)
PUBLISHED_KEPT = 0.78
OPENING = {'"', "'", "(", "\u2018", "\u201c", "\u00ab"}


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
    if judged is None or verdicts is None:
        return None if judged else verdicts
    # Both must have the same first wrong step, or none.
    return judged if [*judged, 0].index(0) == [*verdicts, 0].index(0) else None


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
    verdicts = [int(mark["verdict"].lower() in YES) for mark in marks]
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


@dataclass(frozen=True)
class Parsed:
    """What a critique says: 1, 0 or -1 (unclear) per step, the answer line last, whose verdict is the final one.

    `step_verdicts` is empty unless every step was found; `final_verdict` is None when there is none.
    """

    step_verdicts: list[int]
    final_verdict: bool | None
    status: Status


def critique_text(steps: Iterable[tuple[str, bool]], final: bool) -> str:
    """The one text form of our own: a line with explanation and verdict for each step, then the final verdict."""
    verdicts = {True: "This step is correct.", False: "This step is incorrect."}
    lines = [" ".join(filter(None, (f"Step {k}:", text, verdicts[good]))) for k, (text, good) in enumerate(steps, 1)]
    return "\n".join([*lines, f"The final answer is {final}."])


def parse_critique(text: str, num_steps: int) -> Parsed:
    """The verdicts in `text` on a solution of `num_steps` steps, the answer line included. Never raises.

    What stands in `<answer>` counts alone, if it is a critique. The answer line may have a `Step k:` line of its own;
    its verdict must then be the final one.
    """
    text = without_thinking(text)
    answers = ANSWER.findall(text)
    alone = _parse(answers[0], num_steps) if len(answers) == 1 else None
    return alone if alone and alone.status == "ok" else _parse(TAG.sub("", text), num_steps)


def _parse(text: str, num_steps: int) -> Parsed:
    # Quoted lines (`> ...`) and those that hold nothing but decoration are left out.
    lines = [line for line in map(str.strip, text.splitlines()) if not line.startswith((FENCE, QUOTED))]
    marked = (BOXED.sub(r"\1", BOLD_STEP.sub(r"\1\3:", line)) for line in lines)
    lines = list(filter(None, (line.translate(EMPHASIS).strip(EDGE) for line in marked)))
    if not lines:
        return Parsed([], None, "empty")
    # What the last line says, unless another line says the opposite.
    match, mentions = FINAL.fullmatch(lines[-1]), set(map(_says, FINAL_MENTION.finditer("\n".join(lines))))
    final = match[1].lower() == "true" if match and len(mentions) == 1 else None
    if final is None:
        published = read_published(text, num_steps) if num_steps > 0 else None
        return Parsed(published, bool(published[-1]), "ok") if published else Parsed([], None, "no_verdict")
    blocks = _blocks(lines[:-1])
    numbers = [number for number, _ in blocks]
    if num_steps < 1 or numbers not in (list(range(1, num_steps)), list(range(1, num_steps + 1))):
        return Parsed([], final, "wrong_step_count")
    verdicts = [_step_verdict(number, block) for number, block in blocks]
    contradicts = len(verdicts) == num_steps and verdicts[-1] != int(final)
    unclear = -1 in verdicts or contradicts
    return Parsed([*verdicts[: num_steps - 1], int(final)], final, "unclear_step" if unclear else "ok")


def agrees(parsed: Parsed, step_labels: Sequence[int], correct: bool) -> bool:
    """Whether a critique read as `ok` says what the labels say; unknown step labels (-1) are not compared.

    The answer line is judged by the final verdict, so it is compared with `correct`.
    """
    if parsed.status != "ok" or len(parsed.step_verdicts) != len(step_labels) or parsed.final_verdict != correct:
        return False
    pairs = zip(parsed.step_verdicts[:-1], step_labels[:-1], strict=True)
    return all(verdict == label for verdict, label in pairs if label != -1)


def agreement_of(parsed: Parsed, step_labels: Sequence[int], correct: bool) -> Agreement:
    """Whether a critique agrees with the labels (`agrees`), or how it does not."""
    if parsed.status != "ok":
        return "unreadable"
    if parsed.final_verdict != correct:
        return "wrong_final_verdict"
    return "agrees" if agrees(parsed, step_labels, correct) else "step_disagrees"


def agreement(prompt: str, rows: Sequence[Mapping[str, Any]], correct: Sequence[bool]) -> dict[str, Any]:
    """How many critiques survive the agreement filter, of all and of each kind of candidate (rows of the artefact).

    Published pipelines without labels in the prompt keep about 78 % (GenRM's critiques 77.6 % of right and 78.7 % of
    wrong solutions); with labels in the prompt the text agrees trivially.
    """
    of_right, of_wrong = (
        [bool(r["agrees"]) for r, c in zip(rows, correct, strict=True) if c is right] for right in (True, False)
    )
    kinds = {"kept": [*of_right, *of_wrong], "kept_of_right": of_right, "kept_of_wrong": of_wrong}
    counted = {"can_be_read": [row["status"] == "ok" for row in rows], **kinds}
    shares = {name: sum(values) / len(values) if values else None for name, values in counted.items()}
    return {"prompt": prompt, **shares, "published": PUBLISHED_KEPT}


def _says(mention: re.Match[str]) -> bool:
    """Whether a verdict, perhaps with a `not`, is a good one."""
    return (mention["word"].lower() in GOOD) != bool(mention["not"])


def _blocks(lines: list[str]) -> list[tuple[int, str]]:
    """Step number and text of each step: its `Step k:` line (or `k.`, if no line has that) up to the next one."""
    while lines and FINAL_HEADING.fullmatch(lines[-1]):
        lines = lines[:-1]
    beginning = STEP if any(map(STEP.match, lines)) else ITEM
    blocks: list[tuple[int, list[str]]] = []
    for line in lines:
        start = beginning.match(line)
        if start:
            blocks.append((_number(start[1]), [line[start.end() :]]))
        elif blocks:
            blocks[-1][1].append(line)
    return [(number, "\n".join(block)) for number, block in blocks]


def _number(digits: str) -> int:
    """The number, -1 for one so long that it is no step's (int() refuses thousands of digits)."""
    return int(digits) if len(digits) < 6 else -1


def _step_verdict(number: int, block: str) -> int:
    """1 or 0 when the block ends with one verdict, a sentence of its own, and says nothing else before; else -1."""
    verdicts = list(VERDICT.finditer(block))
    mentions = {_says(m) for m in MENTION.finditer(block) if m["step"] is None or _number(m["step"]) == number}
    if len(verdicts) != 1 or len(mentions) != 1:
        return -1
    before, after = block[: verdicts[0].start()], block[verdicts[0].end() :].strip(" .!")
    if before.endswith("(") and after == ")":
        before, after = before[:-1] + ".", ""
    # No sentence begins after a word, a comma or an opening quotation mark: `one cannot say This step is correct`.
    line = before.rpartition("\n")[2]
    word = line.rstrip()
    within = word[-1:].isalpha() or word.endswith(",") or line[-1:] in OPENING
    return -1 if after or within else int(verdicts[0][1].lower() == "correct")
