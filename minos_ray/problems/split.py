"""The problems of a split, the rows of other artefacts that belong to them, and seeded choices among these rows.

Among millions a choice is made by `Outlines`, which hold no texts; those of the chosen few are read afterwards. Every
amount is a prefix of one seeded order, so a sweep over amounts nests.
"""

import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Artefact, Run

NOT_DRAWN = "problem_not_drawn"
# Candidates among which is chosen by what takes some 120 bytes of each, without their texts.
MOST_OUTLINED = 1 << 26
USABLE, REPEATED, WITHOUT_STEPS = "", "candidate_repeated", "candidate_without_steps"
OUTLINED = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels"]
T = TypeVar("T")


def read_problems(run: Run, split: str | None, columns: list[str]) -> pa.Table:
    """These columns of the problems of a split (None: of all). UserError unless the artefact is complete."""
    if split is None:
        return run.artefact("problems").read(columns)
    problems = run.artefact("problems").read(list(dict.fromkeys([*columns, "split"])))
    return problems.filter(pc.equal(problems["split"], split)).select(columns)


def problems_by_id(run: Run, split: str | None, columns: list[str]) -> dict[str, Row]:
    """These columns of the problems of a split (None: of all), by `problem_id`, which is one of them."""
    return {row["problem_id"]: row for row in read_problems(run, split, columns).to_pylist()}


def rows_of_problems(artefact: Artefact, columns: list[str], problem_ids: Set[str]) -> pa.Table:
    """The rows of these problems, `columns` of them with `problem_id`. UserError unless the artefact is complete.

    Parts are read one after the other, since a train split is small beside 256 candidates of every test problem.
    """
    parts = parts_of_problems(artefact, columns, problem_ids)
    return pa.concat_tables([artefact.empty_table(columns), *parts])


def parts_of_problems(artefact: Artefact, columns: list[str], problem_ids: Set[str]) -> Iterator[pa.Table]:
    """The rows of `rows_of_problems` of each part that has any."""
    for part in artefact.parts(columns):
        names = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
        if names:
            yield part.filter(pc.is_in(part["problem_id"], value_set=pa.array(names, pa.string())))


def count_rows(artefact: Artefact, problem_ids: Set[str], right: bool = False) -> Counter[str]:
    """How many rows, or `right` ones, each of these problems has, by its id; those without any are left out."""
    rows: Counter[str] = Counter()
    for part in artefact.parts(["problem_id", *(["correct"] if right else [])]):
        counts = pc.value_counts(part.filter(part["correct"])["problem_id"] if right else part["problem_id"])
        names, numbers = (counts.field(name).to_pylist() for name in ("values", "counts"))
        rows.update({name: number for name, number in zip(names, numbers, strict=True) if name in problem_ids})
    return rows


def drawn(rows: Mapping[str, int], most: int, paid: Set[str] = frozenset()) -> tuple[Set[str], int]:
    """The problems to take rows from: all, but where they have more than `most` rows a half, a quarter, ... of them,
    which their ids decide; and how many rows the others have. So memory does not grow with the run.

    One problem stays, however many rows it has. A draw of a smaller `most`, or beside more problems, is a subset.
    Problems that are `paid` for have half of `most` to themselves and are drawn apart.
    """
    if (total := sum(rows.values())) <= most:
        return rows.keys(), 0
    first = halved({name: number for name, number in rows.items() if name in paid}, most // 2)
    others = {name: number for name, number in rows.items() if name not in paid}
    names = first | halved(others, most - sum(rows[name] for name in first))
    return names, total - sum(rows[name] for name in names)


def halved(rows: Mapping[str, int], most: int) -> Set[str]:
    """The problems after as many halvings as leave at most `most` rows, or one problem."""
    digests = {name: int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") for name in rows}
    names, divisor = set(rows), 1
    while len(names) > 1 and sum(rows[name] for name in names) > most:
        divisor *= 2
        names = {name for name in names if digests[name] % divisor == 0} or {min(names, key=digests.__getitem__)}
    return names


def round_robin(rows: Sequence[Row], seed: str) -> list[Row]:
    """Shuffled rows such that each problem gives its first before any gives its second, and so on."""
    numbers: dict[str, int] = {}
    problems = [numbers.setdefault(row["problem_id"], len(numbers)) for row in rows]
    return [rows[i] for i in turns(np.array(problems, dtype=np.int64), seed)]


def turns(problems: np.ndarray, seed: str) -> np.ndarray:
    """[rows]: the numbers of the rows in the order of `round_robin`; `problems` [rows] are numbers from 0."""
    size = len(problems)
    shuffled = np.array(random.Random(seed).sample(range(size), size), dtype=np.int64)
    by_problem = np.argsort(problems[shuffled], kind="stable")
    starts = np.flatnonzero(np.diff(problems[shuffled][by_problem], prepend=-1))
    rounds = np.empty(size, dtype=np.int64)
    rounds[by_problem] = np.arange(size) - np.repeat(starts, np.diff(np.append(starts, size)))
    return shuffled[np.argsort(rounds, kind="stable")]


def quota(length: int, fraction: float) -> int:
    """How many of the first `length` rows are wrong ones."""
    return int(length * fraction + 0.5)


@dataclass
class Selection:
    """Label rows in the order of the critiques; candidates passed over by reason; how many of a kind were lacking."""

    rows: list[Row]
    passed_over: dict[str, int]
    short: dict[str, int]


def select(labels: Iterable[Row], count: int, wrong_share: float, seed: int) -> Selection:
    """The first `count` candidates in the seeded order: `wrong_share` of every prefix is wrong, problems take turns.

    Candidates without an answer or a verdict on it, and repeated solutions of a problem, are passed over and counted.
    When one kind runs out the other fills up (unless its share is 0), and the shortage is counted.
    """
    usable, passed_over = distinct(labels)
    wrong = round_robin([row for row in usable if not row["correct"]], f"{seed}/wrong")
    right = round_robin([row for row in usable if row["correct"]], f"{seed}/right")
    rows = alternate(wrong, right, wrong_share, count)
    return Selection(rows, dict(passed_over), lacking(len(wrong), len(right), count, wrong_share))


def select_stored(labels: Artefact, problem_ids: Set[str], count: int, wrong_share: float, seed: int) -> Selection:
    """`select` among the labels of these problems, of which only the chosen ones are read whole."""
    outlines = Outlines.read(labels, problem_ids)
    wrong, right = (np.flatnonzero(outlines.usable & (outlines.correct == side)) for side in (False, True))
    wrong = wrong[turns(outlines.problems[wrong], f"{seed}/wrong")]
    right = right[turns(outlines.problems[right], f"{seed}/right")]
    chosen = alternate(wrong, right, wrong_share, count)
    short = lacking(len(wrong), len(right), count, wrong_share)
    return Selection(outlines.rows(labels, chosen, OUTLINED), outlines.passed_over, short)


def lacking(wrong: int, right: int, count: int, wrong_share: float) -> dict[str, int]:
    """How many of each kind there are too few of."""
    wanted_wrong = quota(count, wrong_share)
    short = {"too_few_wrong": wanted_wrong - wrong, "too_few_right": count - wanted_wrong - right}
    return {kind: number for kind, number in short.items() if number > 0}


class Outlines(NamedTuple):
    """Labelled candidates in the order of their ids, as [candidates] each: 60 bytes a candidate.

    `problems` numbers the problems, `usable` is true for each distinct solution of a problem with a graded answer, as
    in `distinct`, `has_error` where a step before the answer line is labelled wrong. Those that are not usable are
    counted by reason in `passed_over`.
    """

    ids: pa.Array
    problems: np.ndarray
    correct: np.ndarray
    has_error: np.ndarray
    usable: np.ndarray
    passed_over: dict[str, int]

    @classmethod
    def read(cls, labels: Artefact, problem_ids: Set[str], wrong_only: bool = False) -> "Outlines":
        """Those of the candidates of these problems, or of the wrong ones among them; labels are read part by part.

        Of more than `MOST_OUTLINED` candidates those of some of the problems, see `drawn`.
        """
        problem_ids, not_drawn = drawn(count_rows(labels, problem_ids), MOST_OUTLINED)
        numbers: dict[str, int] = {}
        reasons = {USABLE: 0, REPEATED: 1}
        kinds = np.int32, np.bool_, np.bool_, np.int8, np.uint64
        ids, columns = [pa.array([], pa.string())], [tuple(np.zeros(0, kind) for kind in kinds)]
        for part in labels.parts(OUTLINED):
            names = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
            rows = part.filter(pc.is_in(part["problem_id"], value_set=pa.array(names, pa.string())))
            rows = rows.filter(pc.invert(rows["correct"])) if wrong_only else rows
            ids += rows["candidate_id"].chunks
            columns.append(outline_columns(rows, numbers, reasons))
        table = pa.chunked_array(ids)
        problems, correct, has_error, reason, solutions = map(np.concatenate, zip(*columns, strict=True))
        order = pc.sort_indices(table).to_numpy()
        problems, reason = problems[order], reason[order]
        # Stable sorts: of equal solutions of a problem the first one stands first.
        alike = np.lexsort((solutions[order], problems))
        same = (np.diff(problems[alike]) == 0) & (np.diff(solutions[order][alike]) == 0)
        repeated = alike[1:][same]
        reason[repeated] = np.where(reason[repeated] == reasons[USABLE], reasons[REPEATED], reason[repeated])
        counts = {name: int((reason == number).sum()) for name, number in reasons.items() if name != USABLE}
        passed_over = {name: number for name, number in {**counts, NOT_DRAWN: not_drawn}.items() if number}
        usable = reason == reasons[USABLE]
        return cls(table.take(pa.array(order)), problems, correct[order], has_error[order], usable, passed_over)

    def rows(self, labels: Artefact, chosen: Sequence[int], columns: list[str]) -> list[Row]:
        """The label rows of the chosen candidates, in their order."""
        ids = self.ids.take(pa.array(chosen, pa.int64())).to_pylist()
        rows = labels.read_where("candidate_id", ids, columns).to_pylist()
        by_id = {row["candidate_id"]: row for row in rows}
        return [by_id[name] for name in ids]


def outline_columns(rows: pa.Table, numbers: dict[str, int], reasons: dict[str, int]) -> tuple[np.ndarray, ...]:
    """Of rows of labels, [rows] each: number of the problem, correct, has_error, number of a reason, and 64 bits of a
    digest of the solution; new problems and reasons get the next numbers."""
    encoded = rows["problem_id"].combine_chunks().dictionary_encode()
    problems = [numbers.setdefault(name, len(numbers)) for name in encoded.dictionary.to_pylist()]
    steps, labels = rows["steps"].combine_chunks(), rows["step_labels"].combine_chunks()
    short = pc.less(pc.list_value_length(steps), 2).to_numpy(zero_copy_only=False)  # nothing before the answer line
    reason = np.where(short, reasons.setdefault(WITHOUT_STEPS, len(reasons)), reasons[USABLE]).astype(np.int8)
    for status in rows["status"].unique().to_pylist():
        if status not in GRADED:
            of_status = pc.equal(rows["status"], status).to_numpy()
            reason[of_status] = reasons.setdefault(f"candidate_{status}", len(reasons))
    owners = pc.list_parent_indices(labels).to_numpy()
    before_answer = np.diff(owners, append=-1) == 0
    wrong = pc.equal(labels.flatten(), 0).to_numpy(zero_copy_only=False) & before_answer
    has_error = np.bincount(owners[wrong], minlength=len(rows)) > 0
    of_problem = np.array(problems, dtype=np.int32)[encoded.indices.to_numpy()]
    return of_problem, rows["correct"].to_numpy(), has_error, reason, digests(steps)


def digests(steps: pa.ListArray) -> np.ndarray:
    """[solutions]: 64 bits of the texts of each one's steps and of where they end."""
    lengths = pc.binary_length(steps.flatten()).to_numpy(zero_copy_only=False).astype(np.int32)
    ends = np.cumsum(pc.list_value_length(steps).to_numpy(zero_copy_only=False))
    texts = pc.binary_join(steps, "").to_pylist()
    found = bytearray()
    for text, start, end in zip(texts, np.append(0, ends), ends, strict=False):
        found += blake2b(text.encode() + lengths[start:end].tobytes(), digest_size=8).digest()
    return np.frombuffer(found, np.uint64)


def distinct(labels: Iterable[Row]) -> tuple[list[Row], Counter[str]]:
    """Rows with a graded answer, each solution of a problem once, in the order of candidate ids; the rest counted."""
    seen: set[Hashable] = set()
    usable, passed_over = [], Counter[str]()
    for row in sorted(labels, key=lambda row: row["candidate_id"]):
        text = (row["problem_id"], *row["steps"])
        reason = REPEATED if text in seen else None
        if row["status"] not in GRADED:
            reason = f"candidate_{row['status']}"
        elif len(row["steps"]) < 2:  # nothing before the answer line
            reason = WITHOUT_STEPS
        seen.add(text)
        if reason:
            passed_over[reason] += 1
        else:
            usable.append(row)
    return usable, passed_over


def alternate(wrong: Sequence[T], right: Sequence[T], share: float, count: int) -> list[T]:
    """The first `count` of both merged so that each prefix of length k holds `quota(k, share)` wrong ones as long as
    both last."""
    wrong, right = (wrong if share > 0 else wrong[:0]), (right if share < 1 else right[:0])
    merged: list[T] = []
    taken = 0
    for k in range(1, min(count, len(wrong) + len(right)) + 1):
        want_wrong = quota(k, share) > quota(k - 1, share)
        if taken < len(wrong) and (want_wrong or k - 1 - taken >= len(right)):
            merged.append(wrong[taken])
            taken += 1
        else:
            merged.append(right[k - 1 - taken])
    return merged
