"""Math-Shepherd: `input` is the question and the steps, each ended by a tag; `label` has `+` or `-` for each tag."""

from collections.abc import Iterator

from minos_ray.errors import UserError
from minos_ray.imports.grouping import Collection
from minos_ray.labels.latex import extract_latex
from minos_ray.problems.files import BadRow, records
from minos_ray.problems.rows import text_of
from minos_ray.store import Manifest, Run

TAG = "\u043a\u0438"
FIRST_STEP = "Step 1:"
SIGNS = {"+": 1, "-": 0}


def import_shepherd(src: str, run: Run, *, split: str = "train") -> list[Manifest]:
    """Problems, candidates and labels; a solution is right when its last step is."""
    if split not in ("train", "test"):
        raise UserError(f"import math-shepherd: split = '{split}' is neither train nor test")
    found = Collection("math-shepherd", split, "rollouts")
    for record in records(src):
        try:
            if isinstance(record, BadRow):
                raise record
            tagged, signed, task = (text_of(record, column) for column in ("input", "label", "task"))
            question, steps, labels = parse(tagged, signed)
        except BadRow as error:
            found.dropped[str(error)] += 1
            continue
        answer = extract_latex(steps[-1])
        found.add(question, task.lower(), "math-shepherd", steps, labels, answer, labels[-1] == 1)
    return found.write(run, "math-shepherd", src, {"split": split})


def parse(tagged: str, signed: str) -> tuple[str, list[str], list[int]]:
    """Question, steps and their labels; BadRow when the two texts do not belong together."""
    pairs = list(pieces(tagged, signed))
    if not pairs:
        raise BadRow("no step tag in 'input'")
    question, mark, first = pairs[0][0].partition(FIRST_STEP)
    if not mark or not question.strip():
        raise BadRow("no question before 'Step 1:'")
    steps = [f"{FIRST_STEP}{first}".strip(), *(piece.strip() for piece, _ in pairs[1:])]
    if not all(steps):
        raise BadRow("an empty step")
    return question.strip(), steps, [label for _, label in pairs]


def pieces(tagged: str, signed: str) -> Iterator[tuple[str, int]]:
    """Text before each tag, and the sign that stands for the tag in the other text."""
    at = 0
    for piece in tagged.split(TAG)[:-1]:
        sign = signed[at + len(piece) : at + len(piece) + 1]
        if not signed.startswith(piece, at) or sign not in SIGNS:
            raise BadRow("'label' does not follow 'input'")
        at += len(piece) + 1
        yield piece, SIGNS[sign]
