"""`minos grade`: grades the texts of any file and says how it went."""

import os
import time

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.errors import UserError
from minos_ray.labels.answers import STYLES, Graded
from minos_ray.labels.grading import Grading
from minos_ray.problems.files import read_table
from minos_ray.progress import Progress

ADDED = ("answer", "correct", "status")
CHUNK = 5000


def grade_file(
    file: str, gold: str, text: str, out: str, style: str = "gsm8k", timeout_s: float = 5.0
) -> dict[str, int]:
    """Grades column `text` against column `gold` of a jsonl, parquet or csv file and writes all rows, in order, with
    `answer`, `correct` and `status` added, to the Parquet file `out`. Returns the number of rows by status."""
    if style not in STYLES:
        raise UserError(f"--style '{style}' is not known; there are {', '.join(STYLES)}")
    rows = read_table(file)
    for option, column in (("--gold", gold), ("--text", text)):
        if column not in rows.column_names:
            raise UserError(f"{option} '{column}': {file} has no such column; it has {', '.join(rows.column_names)}")
    start = time.monotonic()
    grades = grade_columns(strings(rows, gold), strings(rows, text), style, timeout_s)
    write(rows, grades, out)
    counts = {
        status: sum(g.status == status for g in grades) for status in ("correct", "wrong", "no_answer", "timeout")
    }
    rate = len(grades) / max(time.monotonic() - start, 1e-9)
    shares = ", ".join(f"{status} {count:,} ({count / len(grades):.1%})" for status, count in counts.items())
    print(f"{out}: {len(grades):,} rows, {rate:,.0f} rows/s: {shares}")
    return counts


def strings(rows: pa.Table, column: str) -> list[str]:
    """A column as texts; an empty cell is an empty text, which answers nothing."""
    return ["" if value is None else str(value) for value in rows[column].to_pylist()]


def grade_columns(golds: list[str], texts: list[str], style: str, timeout_s: float) -> list[Graded]:
    """All outcomes, in order, with as many comparing processes as there are CPUs."""
    grades: list[Graded] = []
    workers = len(os.sched_getaffinity(0))
    with Grading(STYLES[style], timeout_s, workers) as grading, Progress("grade", len(texts)) as progress:
        for at in range(0, len(texts), CHUNK):
            grades += grading(golds[at : at + CHUNK], texts[at : at + CHUNK])
            progress.advance(len(golds[at : at + CHUNK]))
    return grades


def write(rows: pa.Table, grades: list[Graded], out: str) -> None:
    """The rows with the outcome columns, written aside and renamed; columns of the same name are replaced."""
    rows = rows.select([name for name in rows.column_names if name not in ADDED])
    for name, kind in zip(ADDED, (pa.string(), pa.bool_(), pa.string()), strict=True):
        rows = rows.append_column(name, pa.array([getattr(grade, name) for grade in grades], kind))
    aside = f"{out}.{os.getpid()}.tmp"
    try:
        pq.write_table(rows, aside)
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be written: {error}") from error
    os.replace(aside, out)
