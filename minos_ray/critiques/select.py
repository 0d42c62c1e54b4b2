"""Which candidates get a critique: one seeded order; every amount is a prefix of it, so a sweep over amounts nests."""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from minos_ray.problems.split import quota, round_robin
from minos_ray.store.columns import GRADED, Row


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
    rows = alternate(wrong, right, wrong_share)[:count]
    wanted_wrong = quota(count, wrong_share)
    short = {"too_few_wrong": wanted_wrong - len(wrong), "too_few_right": count - wanted_wrong - len(right)}
    return Selection(rows, dict(passed_over), {kind: lacking for kind, lacking in short.items() if lacking > 0})


def distinct(labels: Iterable[Row]) -> tuple[list[Row], Counter[str]]:
    """Rows with a graded answer, each solution of a problem once, in the order of candidate ids; the rest counted."""
    seen: set[Hashable] = set()
    usable, passed_over = [], Counter[str]()
    for row in sorted(labels, key=lambda row: row["candidate_id"]):
        text = (row["problem_id"], *row["steps"])
        reason = "candidate_repeated" if text in seen else None
        if row["status"] not in GRADED:
            reason = f"candidate_{row['status']}"
        elif len(row["steps"]) < 2:  # nothing before the answer line
            reason = "candidate_without_steps"
        seen.add(text)
        if reason:
            passed_over[reason] += 1
        else:
            usable.append(row)
    return usable, passed_over


def alternate(wrong: list[Row], right: list[Row], share: float) -> list[Row]:
    """Both lists merged so that each prefix of length k holds `quota(k, share)` wrong rows as long as both last."""
    wrong, right = (wrong if share > 0 else []), (right if share < 1 else [])
    merged: list[Row] = []
    taken = 0
    for k in range(1, len(wrong) + len(right) + 1):
        want_wrong = quota(k, share) > quota(k - 1, share)
        if taken < len(wrong) and (want_wrong or k - 1 - taken >= len(right)):
            merged.append(wrong[taken])
            taken += 1
        else:
            merged.append(right[k - 1 - taken])
    return merged
