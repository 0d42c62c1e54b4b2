"""Answers that are mathematics (MATH): finding what a text, or a gold cell, gives as its answer."""

import re

from minos_ray.grading.forms import LONGEST, bare
from minos_ray.grading.numbers import HASHES, TRIES, canonical, first_number, last_number, latex_signs, simplify
from minos_ray.steps.split import own_solution

BOXED = re.compile(r"\\f?boxed\s*(?=\{)|\\f?boxed\s+(?=[^\s{])")
SAYS = re.compile(r"\banswer(?:s(?=\s+are\b))?\s*(?:\*+\s*)?(?:is|are|:|=)(?![a-zA-Z_])[\s:*]*", re.IGNORECASE)
CHOSEN = re.compile(r"\b(?:option|choice)\s+is[\s:*]*(?=\(?[A-J]\b)", re.IGNORECASE)
TAGGED = re.compile(r"<answer>\s*(?=[^<\n]{1,500}</answer>)", re.IGNORECASE)
TAGS = re.compile(
    r"</?answer>|<\|(?:end|begin)_of_solution\|>|<\|(?:im_end|eot_id|endoftext|end)\|>|</s>|<eos>", re.IGNORECASE
)
# Displayed mathematics, then inline on one line; a dollar sign before a digit opens an amount, it closes nothing.
MATHS = re.compile(
    r"(?<!\\)\$\$([^$]{1,2000}?)(?<!\\)\$\$|\\\[(.{1,2000}?)\\\]"
    r"|(?<!\\)\$((?:\\\$|[^$\n]){1,2000}?)(?<!\\)\$(?![0-9])|\\\(([^\n]{1,2000}?)\\\)",
    re.DOTALL,
)
STATES = re.compile(r"[a-zA-Z ]*\b(?:is|are|was|were)\b:?\s*(?=\S)")
# An answer in a whole sentence, `Jane needs 12 apples`, unless the number is only part of it.
HEDGED = re.compile(r"\b(?:except|than|least|most|not|all|every|between|and|or)\b|[^\w\s.,'$%-]")
REMARK = re.compile(
    r"\s\((?:[a-zA-Z]|(?=[^()=]*[a-zA-Z]{2})[0-9$])[^()=]*\)$|;\s+(?!(?:and|or)\b)[a-zA-Z]{2,}\s[^;]*$"
    r"|,\s+(?:as|because|since|which|so|where|when|hence|thus|if)\b.*",
    re.DOTALL,
)
# What leads to an answer: `either 3 or 5`, `not 4 but 5`, `option B`.
LEADS = re.compile(
    r"^either\s+(?=.*\bor\b)|^not\s[^.,]{1,100}?\sbut\s+(?:rather\s+)?|^(?:option|choice)\s+(?=\(?[A-J]\b)",
    re.IGNORECASE,
)
# Words that no question asks for: behind them nothing is stated.
IDLE = {"unique", "clear", "and", "obvious", "simple", "therefore", "correct", "wrong", "given", "known", "immediate"}
# Minerva's format; it comes after the work, so it counts before a box.
FINAL = re.compile(r"\bfinal answer is:?\s*(?=\$|\\[(\[])", re.IGNORECASE)
# What may stand between the boxes of one answer: \boxed{1} \text{ and } x = \boxed{2}, \boxed{3} hours and \boxed{20}.
BETWEEN = re.compile(
    r"(?:\s+[a-z]+(?=\s+and\b))?"
    r"(?:[\s$,;]|\\[\[\]();,!: ]|\\q?quad\b|\\(?:text|mbox|mathrm)\{[^{}]{0,40}\}|and|[a-zA-Z](?:_\{?\w{1,3}\}?)?\s*=)*"
)
LISTS = re.compile(r"[,;]|\band\b")
ALSO = re.compile(r"\s*,?\s*(?:and|or)\s*|\s*\\text\s*\{\s*(?:and|or)\s*\}\s*")
COMMA = re.compile(r"\s*[,;]\s*")
SENTENCE = re.compile(r"\.(?:\s|$)")
EMPTY = re.compile(r"\\f?boxed\s*\{?[\s$]*\}?|\(\s*\^?\s*\{?\*+\}?\s*\)|\\q?quad|")
EQUATION = re.compile(r"(?<![<>!:\\=])=(?!=)")
NOTHING = re.compile(r"nan|none|null|n/?a|", re.IGNORECASE)
SIGNED = re.compile(
    "[0-9.,/]*\\s*[\u221a\u221b](?:\\([^()]*\\)|[0-9.]*[0-9])|[0-9.,/]*\u03c0(?:/[0-9]+)?|[0-9]+[\u00b2\u00b3]"
)

TAIL = 20_000  # characters at the end of a text where an unmarked answer is looked for
BETWEEN_LONGEST = 80


def extract_latex(text: str, fallback: bool = True) -> str | None:
    """The expression that `text` gives as its answer, None without one.

    The last `\\boxed{X}` counts (with the boxes listed before it), else the last `The answer is: X` or `#### X`, else,
    if `fallback`, the last formula, or the number behind it. Thinking and a next question are no part of the text.
    """
    text = own_solution(text)
    finals, boxes = [m.end() for m in FINAL.finditer(text)], boxes_of(text)
    if boxes and not (finals and finals[-1] > boxes[-1][1]):
        answer = last_listed(text, boxes)
    else:
        marks = sorted(m.end() for mark in (SAYS, HASHES, TAGGED, CHOSEN) for m in mark.finditer(text))
        answer = next((line for start in reversed(marks[-TRIES:]) if (line := line_at(text, start))), None)
    if answer is None and fallback:
        answer = unmarked(text)
    return answer if answer and len(answer) <= LONGEST else None


def gold_latex(gold: str) -> str | None:
    """The answer that a gold cell holds: the marked one of a whole solution, its formulas, or the cell as it is; None
    for an empty cell and for a missing value that became a text, `nan`."""
    if NOTHING.fullmatch(gold.strip()):
        return None
    formulas = list(MATHS.finditer(gold))
    if formulas and not re.sub(r"\b(?:and|or)\b|[\s.,;$]|\\text\{ *(?:and|or) *\}", "", MATHS.sub("", gold)):
        return last_boxed(gold) or ", ".join(filter(None, (bare(formula(part)) for part in formulas)))
    marked = extract_latex(gold, fallback=False)
    if marked is not None or not formulas:
        return marked or gold.strip()
    # A formula that the cell begins with, and the condition behind it: `$f(x)=ax$, where $a$ is an integer`.
    behind = gold[formulas[0].end() :].lstrip(" ,")
    if not formulas[0].start() and re.match(r"(?:where|for|with|if|such that)\b", behind):
        conditional = re.sub(r"(?<!\\)\$|\\[()]", "", gold).strip()
        if conditional:
            return conditional
    return unmarked(gold) or gold.strip()


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` that closes, nested braces included; None without one."""
    boxes = boxes_of(text)
    return boxes[-1][2] if boxes else None


def boxes_of(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the last boxes that close and hold something."""
    marks = list(BOXED.finditer(text))[-TRIES:]
    boxes = [(mark.start(), *boxed_at(text, mark.end())) for mark in marks]
    return [(start, end, content) for start, end, content in boxes if content and bare(content)]


def last_listed(text: str, boxes: list[tuple[int, int, str]]) -> str:
    """The content of the last box, with those listed right before it: `\\boxed{1}, \\boxed{2}`."""
    first, _, content = boxes[-1]
    contents = [content]
    for start, end, content in reversed(boxes[:-1]):
        between = text[end:first]
        if end > first or len(between) > BETWEEN_LONGEST or "\n\n" in between or not BETWEEN.fullmatch(between):
            break
        if between and not LISTS.search(between):
            break
        contents.insert(0, content)
        first = start
    return ", ".join(dict.fromkeys(contents))


def boxed_at(text: str, start: int) -> tuple[int, str | None]:
    """Where a box ends whose brace (or single word) begins at `start`, and what it holds; None when it does not close
    within `LONGEST` characters."""
    if text[start] != "{":
        word = re.split(r"[\s$]", text[start : start + LONGEST], maxsplit=1)[0]
        return start + len(word), word
    depth = 0
    for position in range(start, min(len(text), start + LONGEST)):
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position + 1, text[start + 1 : position].strip()
    return start, None


def line_at(text: str, start: int) -> str | None:
    """The answer at the beginning of a sentence: its box or its formulas, else its words without the full stop; of a
    sentence such as `The volume is 120`, what it states."""
    line = TAGS.sub(" ", text[start : start + LONGEST].lstrip().partition("\n")[0]).strip()
    boxes = boxes_of(line)
    if boxes:
        return last_listed(line, boxes)
    match = MATHS.match(line)
    if match:
        return formulas_at(line, match)
    if line.startswith(("$$", "\\[")):  # a displayed formula that goes on in the next line
        match = MATHS.match(text[start : start + LONGEST].lstrip())
        return bare(formula(match)) if match else None
    words = SENTENCE.split(line, maxsplit=1)[0].strip().strip("*").strip()
    states = STATES.search(words)
    return (line_at(words, states.end()) if states else counted(words)) or None


def formulas_at(line: str, first: re.Match[str]) -> str | None:
    """The formulas that a sentence begins with, `$1$ and $-2$` or `$1$, $2$ and $3$`, as a list."""
    formulas, joints = [first], []
    while following := MATHS.search(line, formulas[-1].end()):
        between = line[formulas[-1].end() : following.start()]
        if not ALSO.fullmatch(between) and not COMMA.fullmatch(between):
            break
        formulas.append(following)
        joints.append(between)
    behind = line[formulas[-1].end() :]
    while joints and COMMA.fullmatch(joints[-1]) and not re.match(r"\W*(?:$|\.\s)", behind):
        del formulas[-1], joints[-1]
    parts = [part for match in formulas if not EMPTY.fullmatch(part := bare(formula(match)))]
    return ", ".join(parts) or None


def counted(words: str) -> str | None:
    """What a sentence that holds one formula, or says nothing but how many, states: `therefore $x+1$`, `Jane needs 12
    apples`, `12, as required`; else the words. None for words that state nothing."""
    words = REMARK.sub("", LEADS.sub("", words))
    if words.casefold().strip(" ,:") in IDLE or EMPTY.fullmatch(bare(words)):
        return None
    formulas = list(MATHS.finditer(words))
    outside = MATHS.sub("", words)
    if len(formulas) == 1 and not re.search(r"[0-9\\]", outside) and not HEDGED.search(outside):
        return bare(formula(formulas[0])) or None
    value = None if formulas else first_number(simplify(words))
    if value is None or len(words.split()) < 2 or HEDGED.search(words) or value != last_number(simplify(words)):
        return words
    return words if SIGNED.search(words) or len(re.findall(r"[0-9][0-9.,/]*", words)) > 1 else canonical(value)


def formula(found: re.Match[str]) -> str:
    """What stands between the signs that open and close mathematics."""
    return next(group for group in found.groups() if group is not None).strip()


def unmarked(text: str) -> str | None:
    """The last formula of a text (`$1$, $2$ and $3$` are one), or the last number where one stands behind it."""
    text = TAGS.sub(" ", text[-TAIL:])
    formulas = [match for match in MATHS.finditer(text) if not EMPTY.fullmatch(bare(formula(match)))]
    tail = text[formulas[-1].end() :] if formulas else text
    signs = [] if tail.isascii() else list(SIGNED.finditer(tail))
    if signs and not re.search(r"[0-9]", tail[signs[-1].end() :]):
        return bare(latex_signs(signs[-1][0]))  # The side is 2\sqrt{3}, with a sign of Unicode.
    behind = last_number(simplify(tail))
    if behind is not None or not formulas:
        return None if behind is None else canonical(behind)
    return ", ".join(joined(text, formulas)) or None


def joined(text: str, found: list[re.Match[str]]) -> list[str]:
    """The last formula with those that `and` or `or` join to it (and commas before that); equations of different
    unknowns are steps of the work, of which only the last counts."""
    parts = [bare(formula(found[-1]))]
    for before, after in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        between = text[before.end() : after.start()]
        if not ALSO.fullmatch(between) and not (len(parts) > 1 and COMMA.fullmatch(between)):
            break
        parts.insert(0, bare(formula(before)))
    left_sides = [EQUATION.split(part)[0].strip() if EQUATION.search(part) else None for part in parts]
    alike = len(set(left_sides)) == 1 or all(
        name is not None and re.fullmatch(r"\\?[a-zA-Z]+(?:_\w|_\{\w+\})?", name) for name in left_sides
    )
    return parts if alike else parts[-1:]
