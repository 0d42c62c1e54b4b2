"""Graders: what a text answers, and whether that is the gold answer; grading many texts: cheap comparisons here, slow
ones in child processes that can be killed, each pair once; and `minos grade`, which grades the texts of any file. Gold
comes first everywhere.

Beside its own comparison each has the strict one behind the published tables (MetaMATH's evaluation, used by
Math-Minos), which knows one mark, rounds numbers, and compares expressions as strings: only to state what it says.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.config.load import resolve
from minos_ray.config.resources import Actors
from minos_ray.errors import UserError
from minos_ray.files import is_nothing, kind, readable, written
from minos_ray.grading.child import Comparer, side_by_side
from minos_ray.grading.latex import extract_latex, gold_latex
from minos_ray.grading.numbers import extract_number, gold_number
from minos_ray.grading.same import same_text
from minos_ray.observe.progress import Progress
from minos_ray.store.columns import STATUSES, Status
from minos_ray.units.file_slices import Reader, Rows, Slice, beside, on_actors

MARK = "The answer is: "
LARGEST, LONGEST = 10**300, 300  # value and digits beyond which no float compares numbers
NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
DEGREES = re.compile(r"\^(?:\{\\circ\}|\\circ)")
QUOTIENT = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")
SLOW = "minos_ray.grading.same:same_value"
Pair = tuple[str, str]
RESULT = pa.schema(
    [("answer", pa.string()), ("correct", pa.bool_()), ("status", pa.string()), ("correct_strict", pa.bool_())]
)
ADDED = tuple(RESULT.names)
# Below, starting Ray costs more than its actors save (docs/grading.md has the measurement).
RAY_ROWS = 1_000_000
WAIT_S = 600.0  # for the first CPU, as `resources.wait_s` of a config
REMEMBERED = 100_000  # verdicts; answers are short, so some 30 MB


def strict_number(gold: str, text: str) -> bool:
    """GSM8K: the first number behind the last `The answer is: `, rounded to an integer, equals the gold number."""
    expected, stated = gold_number(gold), stated_number(text)
    if expected is None or stated is None or abs(Fraction(expected)) > LARGEST:
        return False
    return float(Fraction(expected)) == stated


def stated_number(text: str) -> int | None:
    """The rounded number that the strict comparison reads; it knows `1,234`, not `1,234,567`."""
    _, mark, after = text.rpartition(MARK)
    match = NUMBER.search(after.strip()) if mark else None
    if match is None:
        return None
    above, slash, below = match[0].replace(",", "").partition("/")
    if slash and (len(above) > LONGEST or len(below) > LONGEST or not re.search(r"\d", above)):
        return None
    value = float(above)
    if slash and below != "0":
        value = float(Fraction(f"{above}/{below}")) if int(below) else None
    return None if value is None or value in (float("inf"), float("-inf")) else round(value)


def strict_latex(gold: str, text: str) -> bool:
    """MATH: what stands behind the last `The answer is: `, up to a full stop at the end of a line, is the gold answer
    as a string, after the normalisation of Hendrycks et al. (2021)."""
    _, mark, after = text.rpartition(MARK)
    answer = after.split(".\n", 1)[0].strip().removesuffix(".").strip()
    expected = gold_latex(gold)
    return bool(mark) and expected is not None and same_string(expected, answer)


def same_string(gold: str, answer: str) -> bool:
    """Whether both are the same string once normalised; as they are where one cannot be."""
    try:
        return stripped(gold) == stripped(answer)
    except (IndexError, ValueError):
        return gold == answer


def stripped(answer: str) -> str:
    """The normal form; the order of the rules is part of it. ValueError, IndexError for what it cannot read."""
    text = answer.replace("\n", "").replace("\\!", "").replace("\\\\", "\\")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac").replace("\\left", "").replace("\\right", "")
    text = DEGREES.sub("", text).replace("\\$", "")
    text, *units = text.split("\\text{ ")  # what stands before `\text{ cm}`
    if len(units) > 1:
        raise ValueError("two units")
    text = text.replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    left, equals, right = text.partition("=")
    if equals and "=" not in right and len(left) <= 2:
        text = right
    head, *roots = text.split("\\sqrt")  # `\sqrt3` is `\sqrt{3}`; IndexError when nothing follows
    text = "\\sqrt".join([head, *(root if root[0] == "{" else f"{{{root[0]}}}{root[1:]}" for root in roots)])
    text = braced_fractions(text.replace(" ", ""))
    text = "\\frac{1}{2}" if text == "0.5" else text
    quotient = QUOTIENT.fullmatch(text)
    return f"\\frac{{{quotient[1]}}}{{{quotient[2]}}}" if quotient else text


def braced_fractions(text: str) -> str:
    """`\\frac12` as `\\frac{1}{2}`; IndexError when nothing follows, the text as it is when too little does."""
    head, *parts = text.split("\\frac")
    done = [head]
    for part in parts:
        if part[0] != "{" and len(part) < 2:
            return text
        above, below, tail = part[0], part[1:2], part[2:]
        below = below if below == "{" else f"{{{below}}}"
        done.append(part if above == "{" else f"{{{above}}}{below}{tail}")
    return "\\frac".join(done)


@dataclass(frozen=True)
class Graded:
    """The outcome for one text; `answer` is None without one, and a comparison that never ended is a `timeout`."""

    answer: str | None
    correct: bool
    status: Status


def graded(answer: str | None, same: bool | None) -> Graded:
    """The outcome of a comparison; `same` is None when it was not decided within its limits."""
    if answer is None:
        return Graded(None, False, "no_answer")
    if same is None:
        return Graded(answer, False, "timeout")
    return Graded(answer, same, "correct" if same else "wrong")


@dataclass(frozen=True)
class Grader:
    """`extract(text)` finds an answer and `same(gold, answer)` compares it.

    `slow` names a second comparison, `package.module:function`, asked when `same` says no; it may hang, so stages run
    it in processes that can be killed. Calling a grader directly runs everything right here. `gold` reads the gold
    answer in a gold cell (which may be a whole solution); None where there is none, and then nothing is right.
    `strict(gold, text)` is what published tables would have said of the text.
    """

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]
    slow: str | None = None
    gold: Callable[[str], str | None] = str
    strict: Callable[[str, str], bool] | None = None

    def __call__(self, gold: str, text: str) -> Graded:
        answer, expected = self.extract(text), self.gold(gold)
        if answer is None or expected is None:
            return graded(answer, False)
        same = self.same(expected, answer) or (self.slow is not None and resolve(self.slow)(expected, answer))
        return graded(answer, same)


gsm8k = Grader(extract_number, str.__eq__, gold=gold_number, strict=strict_number)
gsm8k_marked = Grader(partial(extract_number, fallback=False), str.__eq__, gold=gold_number, strict=strict_number)
math = Grader(extract_latex, same_text, SLOW, gold_latex, strict_latex)
math_marked = Grader(partial(extract_latex, fallback=False), same_text, SLOW, gold_latex, strict_latex)

STYLES = {"gsm8k": gsm8k, "math": math}


class Verdicts:
    """Verdicts by (gold, answer), the `limit` last used: bounded, however many rows come."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self.limit = limit
        self.known: dict[Pair, bool | None] = {}

    def recall(self, pairs: Iterable[Pair]) -> dict[Pair, bool | None]:
        """What is known about these pairs, which thereby become the ones last used."""
        return {pair: self.known.setdefault(pair, self.known.pop(pair)) for pair in pairs if pair in self.known}

    def learn(self, verdicts: dict[Pair, bool | None]) -> None:
        """Takes verdicts in and lets the longest unused go."""
        self.known.update(verdicts)
        for pair in list(islice(self.known, max(0, len(self.known) - self.limit))):
            del self.known[pair]


class Grading(ExitStack):
    """Grades lists of texts with `workers` comparers, which `close` ends; verdicts are remembered by (gold, answer),
    timeouts too."""

    def __init__(self, grader: Callable[[str, str], Graded], timeout_s: float, workers: int = 1) -> None:
        super().__init__()
        self.grader = grader
        slow = grader.slow if isinstance(grader, Grader) else None
        self.comparers = [Comparer(slow, timeout_s) for _ in range(workers)] if slow else []
        self.verdicts = Verdicts()
        for comparer in self.comparers:
            self.callback(comparer.close)

    def __call__(self, golds: Sequence[str], texts: Sequence[str]) -> list[Graded]:
        """One outcome per (gold, text), in order."""
        if not isinstance(self.grader, Grader):
            return [self.grader(gold, text) for gold, text in zip(golds, texts, strict=True)]
        expected = {gold: self.grader.gold(gold) for gold in dict.fromkeys(golds)}
        answers = [self.grader.extract(text) for text in texts]
        pairs = [(expected[gold], answer) for gold, answer in zip(golds, answers, strict=True)]
        # A verdict on each pair: remembered, cheap, or slow.
        comparable = {(gold, a): None for gold, a in pairs if gold is not None and a is not None}
        verdicts = self.verdicts.recall(comparable)
        compared: dict[Pair, bool | None] = {
            pair: self.grader.same(*pair) for pair in comparable if pair not in verdicts
        }
        unequal = [pair for pair in compared if not compared[pair]]
        if self.comparers and unequal:
            compared.update(zip(unequal, side_by_side(self.comparers, unequal), strict=True))
        self.verdicts.learn(compared)
        verdicts |= compared
        return [
            graded(answer, gold is not None and answer is not None and verdicts[gold, answer]) for gold, answer in pairs
        ]

    def strict(self, golds: Sequence[str], texts: Sequence[str]) -> list[bool]:
        """What the comparison behind published tables says; a grader without one is its own."""
        strict = self.grader.strict if isinstance(self.grader, Grader) else None
        if strict is None:
            return [grade.correct for grade in self(golds, texts)]
        return [strict(gold, text) for gold, text in zip(golds, texts, strict=True)]


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
        results = (on_ray if use_ray else in_process)(slices, SliceGrader(gold, text, style, timeout_s))
        counts = write_results(rows, results, total, aside)
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


def in_process(slices: list[Slice], grader: SliceGrader) -> Iterator[pa.Table]:
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


def write_results(rows: Rows, results: Iterator[pa.Table], total: int, aside: str) -> dict[str, int]:
    """Writes rows and results as they come; returns the counts."""
    fields = [field for field in rows.schema if field.name not in ADDED]
    schema = pa.schema([*fields, *RESULT], rows.schema.metadata)
    counts: Counter[str] = Counter()
    with pq.ParquetWriter(aside, schema) as writer, Progress("grade", total) as progress:
        for block in beside(rows.blocks(), results, ADDED):
            writer.write_table(block.cast(schema))
            ours, strict = block["correct"], block["correct_strict"]
            for status in block["status"].value_counts().to_pylist():
                counts[status["values"]] += status["counts"]
            counts["strict_correct"] += pc.sum(strict).as_py()
            counts["only_here"] += pc.sum(pc.and_not(ours, strict)).as_py()
            counts["only_strict"] += pc.sum(pc.and_not(strict, ours)).as_py()
            progress.advance(block.num_rows)
    names = (*STATUSES, "strict_correct", "only_here", "only_strict")
    return {name: counts[name] for name in names}
