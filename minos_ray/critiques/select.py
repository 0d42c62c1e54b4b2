"""Which candidates get a critique: one seeded order; every amount is a prefix of it, so a sweep over amounts nests.

Among millions the choice is made by `Outlines`, which hold no texts; those of the chosen few are read afterwards.
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.problems.split import MOST_OUTLINED, NOT_DRAWN, count_rows, drawn, quota, round_robin, turns
from minos_ray.store.columns import GRADED, Row
from minos_ray.store.run import Artefact

T = TypeVar("T")
USABLE, REPEATED, WITHOUT_STEPS = "", "candidate_repeated", "candidate_without_steps"
OUTLINED = ["candidate_id", "problem_id", "correct", "status", "steps", "step_labels"]


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
        ids, columns = [pa.array([], pa.string())], [OutlineColumns.none()]
        for part in labels.parts(OUTLINED):
            names = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
            rows = part.filter(pc.is_in(part["problem_id"], value_set=pa.array(names, pa.string())))
            rows = rows.filter(pc.invert(rows["correct"])) if wrong_only else rows
            ids += rows["candidate_id"].chunks
            columns.append(OutlineColumns.of(rows, numbers, reasons))
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


class OutlineColumns(NamedTuple):
    """Of the candidates of a part, [candidates] each: numbers of the problem and of a reason, and 64 bits of a digest
    of the solution."""

    problems: np.ndarray
    correct: np.ndarray
    has_error: np.ndarray
    reasons: np.ndarray
    solutions: np.ndarray

    @classmethod
    def none(cls) -> "OutlineColumns":
        """Of no candidate."""
        kinds = np.int32, np.bool_, np.bool_, np.int8, np.uint64
        return cls(*(np.zeros(0, kind) for kind in kinds))

    @classmethod
    def of(cls, rows: pa.Table, numbers: dict[str, int], reasons: dict[str, int]) -> "OutlineColumns":
        """Of rows of labels; new problems and reasons get the next numbers."""
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
        return cls(of_problem, rows["correct"].to_numpy(), has_error, reason, digests(steps))


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
