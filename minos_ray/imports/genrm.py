"""GenRM critiques (genrm-star/genrm-critiques, round 0): solutions of GSM8K training questions by Gemini 1.0 Pro,
each with a label and a critique.

Files are read as published (gzipped jsonl), or the same as Parquet with the columns of `COLUMNS`. A critique was asked
to end in a verdict; one in thirty is cut off before.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Literal

import pyarrow.parquet as pq

from minos_ray.config import Count
from minos_ray.errors import UserError
from minos_ray.files import (
    BadRow,
    check_no_lfs_pointer,
    files,
    is_nothing,
    kind,
    read_file,
    read_parquet,
    readable,
)
from minos_ray.grading.graders import gsm8k
from minos_ray.imports.tables import (
    OTHER_GOLD,
    Row,
    begin_import,
    candidate,
    critique,
    label,
    require_rows,
    write_rows,
)
from minos_ray.observe.progress import Progress
from minos_ray.steps.split import own_solution, paragraphs_or_lines, without_thinking
from minos_ray.store import columns
from minos_ray.store.run import Artefact, Manifest, Run, open_path

MODEL, PROMPT = "gemini-1.0-pro", "genrm-round-0"
LARGEST = 1 << 31
ROW_ARTEFACTS = ("candidates", "labels", "critiques")
COLUMNS = ("question_id", "question", "target", "candidate_id", "solution", "correct", "critique")
TYPES = (int | str, str, str, int, str, bool | int | float, str)
PUBLISHED = ("question_id", "question", "target", "model_output_id", "model_output", "correctness", "verifier_output")
REFERENCE = "\nExpected Answer: "
BATCH = 8192
How = Literal["stated", "implied", "cut off", "no verdict"]

TAGS = re.compile(r"</?(?:b|i|u|em|strong|p)>")
CHOICE = r"\(?\s*(?:yes|no)\s*/\s*(?:yes|no)\s*\)?"
WORD = r"(?P<verdict>yes|no|correct|incorrect|right|wrong)\b(?![ \t]*[/(?])"
GOOD = {"yes", "correct", "right"}

# An open bracket before the word is the choice, cut off: `correct (Yes`.
GAP = r"(?:[^\w(]*|\W*\((?=\w+\)))"
ASKED = rf"\bis the (?:final |given )?(?:answer|solution) correct\b[^\w(]*(?:{CHOICE})?"
QUESTION = rf"{ASKED}(?:\W*\b(?:answer|verification)\b)?{GAP}{WORD}"
# `Grade: Yes` is said of steps, too; `Grade: Verification: Yes` of the whole.
NAMED = r"\b(?:final (?:grade|verdict|verification)|(?:overall|grad(?:e|ing)|verdict)\W*(?=verification\b))"
HEADING = rf"{NAMED}\W*(?:verification\W*)?(?:correct\W*{CHOICE}\W*)?{WORD}"
# `(Yes/Yes)` where the choice was asked for: both say the same.
TWICE = (
    rf"(?:{NAMED}\W*(?:verification\W*)?|\bis the (?:final |given )?answer correct\W*)"
    r"\(?(?P<verdict>yes|no)/(?P=verdict)\b"
)
STATED = [re.compile(form, re.IGNORECASE) for form in (QUESTION, HEADING, TWICE)]
CLOSING = re.compile(
    r"(?:(?:final grade|conclusion|overall|therefore|verification)\W*)*"
    rf"(?:the|this) (?:solution|answer) (?:provided |given |in the solution )?is (?P<not>not )?{WORD}",
    re.IGNORECASE,
)
# A verdict on the answer line at the end, perhaps with the heading of another one that was cut off.
ANSWER_LINE = re.compile(
    rf"\bthe final answer is (?P<not>not )?{WORD}[^\n]*(?:\n\W*(?:final grade\W*)?(?:verification\W*)?)?\Z",
    re.IGNORECASE,
)
STEP_WRONG = re.compile(
    r"\((?:incorrect|no|wrong)\)|\b(?:verification|grade|result|comment):\W*(?:no\b|incorrect|wrong)"
    r"|\bstep (?:[0-9]+ )?is (?:incorrect|wrong)|- (?:incorrect|wrong)\b",
    re.IGNORECASE,
)
LAST_WORDS = re.compile(rf"(?:\bfinal grade\W*)?(?:\bverification\W*)?{QUESTION}[ \t*.)]*", re.IGNORECASE)
EMPTY_HEADING = re.compile(r"\W*(?:(?:final grade|final|grade|verification|conclusion)\W*)*", re.IGNORECASE)
TAIL = 600
ENDINGS = {".", "!", ")", '"'}


def import_genrm(
    src: str, run: Run, *, test_fraction: float = 0.1, seed: int = 0, questions: Count | None = None
) -> list[Manifest]:
    """Problems, candidates, labels and critiques of a file or a folder of files, published or as Parquet.

    Questions, never rows, are divided into train and test, by a hash of seed and id; `questions` keeps that many.
    Every critique is kept: `agrees` says whether its verdict is the label, those without verdict are `unparsable`.
    One that was cut off after it called a step wrong is `implied`: its verdict is as good as a stated no (65 % agree
    with the label, 62 % of the stated ones), but stage 1 does not train on it, since the text ends before the judgement
    and would teach the critic to stop in the middle. That leaves out 2,077 of 179,000 agreeing rows.
    """
    if not 0 < test_fraction < 1:
        raise UserError(f"import genrm: test_fraction = {test_fraction} is not between 0 and 1")
    start = time.monotonic()
    paths = files(src)
    ids, rows = question_ids(paths)
    # By position in an order that depends on the seed and the id only.
    in_order = sorted(ids, key=lambda question: blake2b(f"{seed}/{question}".encode(), digest_size=8).digest())
    chosen = in_order[:questions]
    tests = round(test_fraction * len(chosen))
    split_by_question = {question: "test" if place < tests else "train" for place, question in enumerate(chosen)}
    options = {"test_fraction": test_fraction, "seed": seed, "questions": questions}
    artefacts = begin_import(run, ("problems", *ROW_ARTEFACTS), "genrm", src, **options)
    importer = Importer(artefacts, split_by_question)
    with Progress("import genrm", rows) as progress:
        for number, batch in enumerate(batches(paths)):
            importer.add(f"{number:05d}", batch)
            progress.advance(len(batch))
    require_rows(importer.problems, src, importer.dropped)
    return importer.finish(time.monotonic() - start)


class Importer:
    """Turns batches of foreign rows into parts, and counts on the way."""

    def __init__(self, artefacts: dict[str, Artefact], wanted: dict[int, str]) -> None:
        self.artefacts, self.wanted = artefacts, wanted
        self.problems: dict[int, Row] = {}
        self.ids: set[tuple[int, int]] = set()
        self.solutions: set[tuple[int, int]] = set()
        self.dropped: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.critiques: Counter[str] = Counter()

    def add(self, part: str, batch: list[Row]) -> None:
        """Writes the rows of one batch that are usable."""
        usable = [row for row in batch if self._keep(row)]
        if not usable:
            return
        candidates = [candidate(problem_id(row), row["candidate_id"], row["solution"], MODEL) for row in usable]
        labels = [self._label(row, row_candidate) for row, row_candidate in zip(usable, candidates, strict=True)]
        critiques = [self._critique(row, row_label) for row, row_label in zip(usable, labels, strict=True)]
        for name, rows in zip(ROW_ARTEFACTS, (candidates, labels, critiques), strict=True):
            self.artefacts[name].write_part(part, columns.table(name, rows))

    def _keep(self, row: Row) -> bool:
        """Whether a row is usable and wanted; remembers its problem."""
        empty = next((f"empty {name}" for name in COLUMNS if is_nothing(row[name]) or row[name] == ""), None)
        reason = row.get("unread") or empty or oddity(row)
        if not reason:  # does it go with those before it?
            first = self.problems.get(row["question_id"], row)
            if (row["question_id"], row["candidate_id"]) in self.ids:
                reason = "repeated candidate_id"
            elif row["question"] != first["question"]:
                reason = "another question for the same id"
            elif row["target"] != first["target"]:
                reason = OTHER_GOLD
        if reason:
            self.dropped[reason] += 1
            return False
        if row["question_id"] not in self.wanted:
            return False
        self.ids.add((row["question_id"], row["candidate_id"]))
        self.problems.setdefault(row["question_id"], row)
        return True

    def _label(self, row: Row, own: Row) -> Row:
        """The label as given, with the answer that our grader reads; counts where it judges otherwise."""
        grade = gsm8k(row["target"], row["solution"])
        correct = bool(row["correct"])
        self.labels["correct" if correct else "wrong"] += 1
        self.labels["given label differs from our grader"] += grade.correct != correct
        solution = (row["question_id"], hash(row["solution"]))
        self.labels["repeated solutions"] += solution in self.solutions
        self.solutions.add(solution)
        steps = paragraphs_or_lines(own_solution(row["solution"]))
        return label(own, grade.answer, correct, steps, [-1] * len(steps), "none")

    def _critique(self, row: Row, given: Row) -> Row:
        text = without_thinking(row["critique"])
        verdict = read_verdict(text)
        status = "unparsable" if verdict.right is None else "ok" if verdict.how == "stated" else "implied"
        written = training_text(text, verdict)
        critique_row = critique(given, MODEL, PROMPT, written, given["step_labels"], verdict.right, status)
        self.critiques[f"verdict {verdict.how}"] += 1
        self.critiques["agrees"] += critique_row["agrees"]
        return critique_row

    def finish(self, seconds: float) -> list[Manifest]:
        """Writes the problems and completes all artefacts."""
        details = {"seconds": round(seconds, 1)}
        questions = sorted(self.problems, key=lambda question: (isinstance(question, str), question))
        splits = {
            split: [problem(self.problems[question], split) for question in questions if self.wanted[question] == split]
            for split in ("train", "test")
        }
        manifests = [write_rows(self.artefacts["problems"], splits, {}, **details)]
        for name, counts in zip(ROW_ARTEFACTS, (Counter(), self.labels, self.critiques), strict=True):
            manifests.append(self.artefacts[name].complete({"rows": len(self.ids), **counts}, self.dropped, details))
        return manifests


def oddity(row: Row) -> str | None:
    """The first column that holds something else than it should."""
    for name, type_ in zip(COLUMNS, TYPES, strict=True):
        if not isinstance(row[name], type_):
            return f"another type of {name}"
    if row["correct"] not in (0, 1):
        return "correct is neither 0 nor 1"
    index = row["candidate_id"]
    return None if type(index) is int and 0 <= index < LARGEST else "candidate_id is no index"


def problem_id(row: Row) -> str:
    """The id of a question, the same in either split."""
    return f"gsm8k-gemini-{row['question_id']}"


def problem(row: Row, split: str) -> Row:
    """The row of `problems`; only the published files hold the reference solution."""
    return {
        "problem_id": problem_id(row),
        "dataset": "gsm8k",
        "split": split,
        "question": row["question"].strip(),
        "answer": row["target"],
        "solution": row.get("reference"),
    }


def question_ids(paths: Iterable[str]) -> tuple[set[int], int]:
    """All question ids and the number of rows; UserError names the first file or column that does not fit."""
    ids: set[int] = set()
    rows = 0
    for path in paths:
        for row in parquet_rows(path, ["question_id"]) if kind(path) == ".parquet" else published(path):
            rows += 1
            if isinstance(row["question_id"], int | str):
                ids.add(row["question_id"])
    return ids, rows


def batches(paths: Iterable[str]) -> Iterator[list[Row]]:
    """Rows of all files, a few thousand at a time."""
    for path in paths:
        rows = parquet_rows(path) if kind(path) == ".parquet" else published(path)
        while batch := list(islice(rows, BATCH)):
            yield batch


def parquet_rows(path: str, columns: Iterable[str] = COLUMNS) -> Iterator[Row]:
    """The rows of one Parquet file; one that cannot be read as `published` gives it."""
    with readable(path):
        check_no_lfs_pointer(path)
        fs, root = open_path(path)
        require_columns(path, COLUMNS, pq.read_schema(root, filesystem=fs).names)
        yield from (row if isinstance(row, dict) else unread(row) for row in read_parquet(path, list(columns)))


def unread(row: BadRow) -> Row:
    """A row that could not be read: empty columns, and the reason."""
    return {**dict.fromkeys(COLUMNS), "unread": str(row)}


def published(path: str) -> Iterator[Row]:
    """The rows of one published file under our names; `reference` is the solution that the critic was shown.

    A line that cannot be read has only empty columns, and its reason as `unread`.
    """
    checked = False
    for record in read_file(path):
        if isinstance(record, BadRow):
            yield unread(record)
            continue
        if not checked:
            require_columns(path, PUBLISHED, list(record))
            checked = True
        row = {ours: record.get(theirs) for ours, theirs in zip(COLUMNS, PUBLISHED, strict=True)}
        prompt = record.get("verifier_prompt")
        reference = prompt.partition(REFERENCE)[2].strip() if isinstance(prompt, str) else ""
        yield {**row, "reference": reference or None}


def require_columns(path: str, wanted: Iterable[str], there: list[str]) -> None:
    """UserError for the first column that is not there."""
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UserError(f"import genrm: '{path}' has no column '{missing[0]}'; it has {', '.join(there)}")


@dataclass(frozen=True)
class Verdict:
    """Whether the critique calls the solution right, and how that is known; None where it is not.

    `implied`: there is no final verdict, but a step is called wrong.
    """

    right: bool | None
    how: How


def read_verdict(critique: str) -> Verdict:
    """The final verdict of one critique; the last one counts."""
    text = plain(critique)
    for form in STATED:
        matches = list(form.finditer(text[-TAIL:])) or list(form.finditer(text))
        if matches:
            return Verdict(matches[-1]["verdict"].lower() in GOOD, "stated")
    closing = CLOSING.match(text.strip().rpartition("\n\n")[2]) or ANSWER_LINE.search(text[-TAIL:])
    if closing:
        return Verdict((closing["verdict"].lower() in GOOD) != bool(closing["not"]), "stated")
    if STEP_WRONG.search(text):
        return Verdict(False, "implied")
    return Verdict(None, "no verdict" if text.rstrip()[-1:] in ENDINGS else "cut off")


def plain(text: str) -> str:
    """The text without bold type and headings; single stars stay, they multiply."""
    text = text.replace("**", "").replace("##", "").replace("`", "")
    return TAGS.sub("", text) if "<" in text else text


def training_text(critique: str, verdict: Verdict) -> str:
    """The critique, bold type undone, with its last words replaced by `The final answer is True.` or `False.`.

    A line that was cut off is left out; a critique without verdict is returned as it is.
    """
    if verdict.right is None:
        return critique.strip()
    text = plain(critique)
    lines = (text[:-TAIL] + LAST_WORDS.sub("", text[-TAIL:])).rstrip().split("\n")
    if verdict.how == "implied" and lines[-1].rstrip()[-1:] not in ENDINGS:
        lines.pop()
    while lines and EMPTY_HEADING.fullmatch(lines[-1]):
        lines.pop()
    written = [line.rstrip() for line in lines if line.strip()]
    return "\n".join([*written, f"The final answer is {verdict.right}."])
