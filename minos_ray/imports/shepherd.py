"""Math-Shepherd: `input` is the question and the steps, each ended by a tag; `label` has `+` or `-` for each tag.

A few rows of the release have a tag inside the question, or no `Step 1:`; both are read, and counted.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from minos_ray.files.read import BadRow
from minos_ray.grading.latex import extract_latex
from minos_ray.imports.grouping import Collection, Policy, Solution, usable
from minos_ray.imports.write import Row
from minos_ray.problems.rows import text_of
from minos_ray.store.run import Manifest, Run

TAG = "\u043a\u0438"
FIRST_STEP = re.compile(r"step 1:", re.IGNORECASE)
SIGNS = {"+": 1, "-": 0}
TAG_IN_QUESTION, UNNUMBERED = "tag inside the question", "no 'Step 1:', divided at the question mark"


class Parts(NamedTuple):
    """Question, steps and their labels, and what is odd about the row (empty when nothing is)."""

    question: str
    steps: list[str]
    labels: list[int]
    note: str


def import_shepherd(
    src: str, run: Run, *, split: Literal["train", "test"] = "train", after_first_error: Policy = "keep"
) -> list[Manifest]:
    """Problems, candidates and labels; a solution is right when its last step is."""
    collection = Collection("math-shepherd", after_first_error)
    for solution, note in usable("math-shepherd", src, collection.dropped, lambda record: read(record, split)):
        collection.add(solution)
        if note:
            collection.notes[note] += 1
    return collection.write(run, "math-shepherd", src, {"split": split, "after_first_error": after_first_error})


def read(record: Row, split: str, tag: str = TAG) -> tuple[Solution, str]:
    """One row, and what is odd about it."""
    tagged, signed, task = (text_of(record, column) for column in ("input", "label", "task"))
    question, steps, labels, note = parse(tagged, signed, tag)
    answer = extract_latex(steps[-1])
    facts = (labels[-1] == 1, answer, None, "math-shepherd", split, "rollouts")
    return Solution(question, task.lower(), steps, labels, *facts), note


def parse(tagged: str, signed: str, tag: str = TAG) -> Parts:
    """The parts of one row; BadRow when the two texts do not belong together."""
    pairs = list(pieces(tagged, signed, tag))
    if not pairs:
        raise BadRow("no step tag in 'input'")
    texts, labels = [text for text, _ in pairs], [label for _, label in pairs]
    question, first, piece, note = divided(texts)
    steps = [first, *(text.strip() for text in texts[piece + 1 :])]
    if not question or not all(steps):
        raise BadRow("an empty question or step")
    return Parts(question, steps, labels[piece:], note)


def divided(texts: list[str]) -> tuple[str, str, int, str]:
    """Question, first step, the number of the piece that it is in, and what is odd."""
    for number, text in enumerate(texts):
        match = FIRST_STEP.search(text)
        if match:
            question = " ".join(part.strip() for part in [*texts[:number], text[: match.start()]])
            return question.strip(), text[match.start() :].strip(), number, TAG_IN_QUESTION if number else ""
    question, mark, first = texts[0].partition("?")
    if not mark:
        raise BadRow("no 'Step 1:' and no question mark")
    return f"{question.strip()}?", first.strip(), 0, UNNUMBERED


def pieces(tagged: str, signed: str, tag: str) -> Iterator[tuple[str, int]]:
    """Text before each tag, and the sign that stands for the tag in the other text.

    Where the other text has the tag's letters too, they are part of a word.
    """
    position, text = 0, ""
    for piece in tagged.split(tag)[:-1]:
        if not signed.startswith(piece, position):
            raise BadRow("'label' does not follow 'input'")
        position, text = position + len(piece), text + piece
        if signed.startswith(tag, position):
            position, text = position + len(tag), text + tag
            continue
        sign = signed[position : position + 1]
        if sign not in SIGNS:
            raise BadRow("'label' has another tag than + or -")
        yield text, SIGNS[sign]
        position, text = position + 1, ""
