"""`minos grade`: grades the texts of any file and says how it went."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.config.resources import Actors
from minos_ray.errors import UserError
from minos_ray.files.read import is_nothing, kind, readable, written
from minos_ray.files.slices import Reader, Rows, Slice, beside
from minos_ray.grading.graders import STYLES, Grading
from minos_ray.observe.progress import Progress
from minos_ray.store.columns import STATUSES
from minos_ray.units.file_slices import on_actors

RESULT = pa.schema(
    [("answer", pa.string()), ("correct", pa.bool_()), ("status", pa.string()), ("correct_strict", pa.bool_())]
)
ADDED = tuple(RESULT.names)
# Below, starting Ray costs more than its actors save (docs/grading.md has the measurement).
RAY_ROWS = 1_000_000
WAIT_S = 600.0  # for the first CPU, as `resources.wait_s` of a config


def grade_file(
    file: str, gold: str, text: str, out: str, style: str = "gsm8k", timeout_s: float = 5.0, ray_rows: int = RAY_ROWS
) -> dict[str, int]:
    """Grades column `text` against column `gold` of any file or folder of rows and writes all rows, in order, with
    `answer`, `correct`, `status` and `correct_strict` added, to the Parquet file `out`.

    From `ray_rows` rows on Ray Data actors do the work, and on a cluster that is joined. Returns the rows by status,
    `strict_correct`, and how many rows only one of the two comparisons calls correct.
    """
    if style not in STYLES:
        raise UserError(f"--style '{style}' is not known; there are {', '.join(STYLES)}")
    start, aside, staged = time.monotonic(), f"{out}.{os.getpid()}.tmp", f"{out}.{os.getpid()}.rows.tmp"
    try:
        require_writable(file, out, aside)
        rows = Rows(file, staged, (gold, text))
        for option, column in (("--gold", gold), ("--text", text)):
            if column not in rows.schema.names:
                names = ", ".join(rows.schema.names)
                raise UserError(f"{option} '{column}': {file} has no such column; it has {names}")
        slices = rows.slices()
        if not slices:
            raise UserError(f"file '{file}' is empty: no rows")
        total = sum(part.rows for part in slices)
        use_ray = total >= ray_rows or "RAY_ADDRESS" in os.environ
        results = (on_ray if use_ray else here)(slices, SliceGrader(gold, text, style, timeout_s))
        counts = write(rows, results, total, aside)
        os.replace(aside, out)
    finally:
        for path in (aside, staged):
            with suppress(FileNotFoundError):
                os.unlink(path)
    seconds = time.monotonic() - start
    shares = ", ".join(f"{status} {counts[status]:,} ({counts[status] / total:.1%})" for status in STATUSES)
    print(f"{out}: {total:,} rows, {total / max(seconds, 1e-9):,.0f} rows/s: {shares}")
    strict = counts["strict_correct"]
    print(
        f"strict comparison of published tables: correct {strict:,} ({strict / total:.1%}); "
        f"{counts['only_here']:,} rows are correct only here, {counts['only_strict']:,} only there"
    )
    return counts


def require_writable(file: str, out: str, aside: str) -> None:
    """UserError when the output cannot be written, or would take the place of rows in another format, found out before
    any work."""
    if os.path.isdir(out):
        raise UserError(f"--out '{out}' is a folder; it must name a Parquet file")
    if kind(file) != ".parquet" and os.path.exists(file) and os.path.exists(out) and os.path.samefile(file, out):
        raise UserError(f"--out '{out}' is the file with the rows itself, and would become Parquet; name another one")
    try:
        open(aside, "xb").close()
    except OSError as error:
        raise UserError(f"--out '{out}' cannot be written: {error.strerror}") from error


class SliceGrader:
    """What grades slices, here or in an actor; processes start with the first slice, so it can be sent."""

    def __init__(self, gold: str, text: str, style: str, timeout_s: float, workers: int = 1) -> None:
        self.gold, self.text, self.style, self.timeout_s, self.workers = gold, text, style, timeout_s, workers
        self.read = Reader([gold, text])
        self.grading: Grading | None = None

    def __call__(self, part: Slice) -> pa.Table:
        """The result columns of a slice."""
        self.grading = self.grading or Grading(STYLES[self.style], self.timeout_s, self.workers)
        rows = self.read(part)
        with readable(part.file):
            golds, texts = strings(rows, self.gold), strings(rows, self.text)
        grades, strict = self.grading(golds, texts), self.grading.strict(golds, texts)
        columns = [[getattr(grade, name) for grade in grades] for name in ADDED[:3]]
        return pa.table([*columns, strict], schema=RESULT)


def strings(rows: pa.Table, column: str) -> list[str]:
    """A column as texts; an empty cell, or a file without it, is an empty text, which answers nothing."""
    if column not in rows.column_names:
        return [""] * rows.num_rows
    return ["" if is_nothing(value) else written(value) for value in rows[column].to_pylist()]


def here(slices: list[Slice], grader: SliceGrader) -> Iterator[pa.Table]:
    """Results in order, graded in this process with as many comparing processes as there are CPUs."""
    grader.workers = len(os.sched_getaffinity(0))
    try:
        yield from map(grader, slices)
    finally:
        if grader.grading is not None:
            grader.grading.close()


def on_ray(slices: list[Slice], grader: SliceGrader) -> Iterator[pa.Table]:
    """Results in order, graded by Ray Data actors on all CPUs; only results that came early wait in memory."""
    early: dict[int, pa.Table] = {}
    following = 0
    for number, results in on_actors("grade", dict(enumerate(slices)), grader, Actors(), actors, WAIT_S):
        early[number] = results
        while following in early:
            yield early.pop(following)
            following += 1


def actors(slices: int, cpus: int, grows: bool) -> tuple[int, int]:
    """The least and the most actors for so many slices: one on each CPU, and more where nodes may come."""
    least = max(1, min(cpus, slices))
    return least, max(least, slices) if grows else least


def write(rows: Rows, results: Iterator[pa.Table], total: int, aside: str) -> dict[str, int]:
    """Writes rows and results as they come; returns the counts."""
    fields = [field for field in rows.schema if field.name not in ADDED]
    schema = pa.schema([*fields, *RESULT], rows.schema.metadata)
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(aside, schema) as writer, Progress("grade", total) as progress:
        for block in beside(rows.blocks(), results, ADDED):
            writer.write_table(block.cast(schema))
            counts.update(counted(block))
            progress.advance(block.num_rows)
    names = (*STATUSES, "strict_correct", "only_here", "only_strict")
    return {name: counts[name] for name in names}


def counted(block: pa.Table) -> dict[str, int]:
    """Rows by status, and how the strict comparison differs."""
    ours, strict = block["correct"], block["correct_strict"]
    by_status = {status["values"]: status["counts"] for status in block["status"].value_counts().to_pylist()}
    return by_status | {
        "strict_correct": pc.sum(strict).as_py(),
        "only_here": pc.sum(pc.and_not(ours, strict)).as_py(),
        "only_strict": pc.sum(pc.and_not(strict, ours)).as_py(),
    }
