"""Selection: nested, balanced in every prefix, spread over problems, nothing twice, everything counted."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.critiques.error_types import wrong_steps
from minos_ray.problems.split import (
    OUTLINED,
    Outlines,
    Row,
    count_rows,
    distinct,
    quota,
    round_robin,
    select,
    select_stored,
)
from minos_ray.problems.split import drawn as drawn_problems
from minos_ray.store import columns
from minos_ray.store.run import Run


def row(problem: int, index: int, correct: bool, text: str | None = None, status: str | None = None) -> dict[str, Any]:
    """A labels row."""
    return {
        "candidate_id": f"p{problem}/{index}",
        "problem_id": f"p{problem}",
        "correct": correct,
        "status": status or ("correct" if correct else "wrong"),
        "steps": [text or f"Step 1: {problem} {index}", "The answer is: 1"],
        "step_labels": [-1, int(correct)],
    }


candidates = st.lists(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=8), max_size=8).map(
    lambda problems: [row(p, i, c, f"Step 1: {t}") for p, rows in enumerate(problems) for i, (c, t) in enumerate(rows)]
)
shares = st.sampled_from((0.0, 0.25, 0.5, 0.8, 1.0))


@given(candidates, shares, st.integers(0, 3), st.integers(0, 60), st.integers(0, 60))
def test_smaller_amount_is_a_prefix_of_the_larger(rows: list[Row], share: float, seed: int, a: int, b: int) -> None:
    small, large = (select(rows, count, share, seed).rows for count in sorted((a, b)))
    assert large[: len(small)] == small


@given(candidates, shares, st.integers(0, 60))
def test_every_prefix_has_the_share_and_nothing_comes_twice(rows: list[Row], share: float, count: int) -> None:
    found = select(rows, count, share, 0)
    chosen = found.rows
    kinds = {True: 0, False: 0}
    for r in {(r["problem_id"], r["steps"][0]): r["correct"] for r in reversed(rows)}.values():
        kinds[r] += 1
    for k in range(len(chosen) + 1):
        wrong, wanted = sum(not r["correct"] for r in chosen[:k]), quota(k, share)
        both_last = wanted <= kinds[False] and k - wanted <= kinds[True]
        assert wrong == wanted or not both_last
    texts = [(r["problem_id"], *r["steps"]) for r in chosen]
    assert len(set(texts)) == len(texts)
    allowed = (kinds[True] if share < 1 else 0) + (kinds[False] if share > 0 else 0)
    assert len(chosen) == min(count, allowed)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 40))
def test_problems_take_turns(problems: int, each: int, count: int) -> None:
    rows = [row(p, i, True) for p in range(problems) for i in range(each)]
    uses = Counter({f"p{p}": 0 for p in range(problems)})
    uses.update(r["problem_id"] for r in select(rows, count, 0.0, 5).rows)
    assert max(uses.values()) - min(uses.values()) <= 1


def test_input_order_does_not_matter_and_the_seed_does() -> None:
    rows = [row(p, i, i % 2 == 0) for p in range(9) for i in range(6)]
    ids = [
        [r["candidate_id"] for r in select(rs, 20, 0.5, s).rows] for rs, s in ((rows, 1), (rows[::-1], 1), (rows, 2))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_what_is_passed_over_and_what_is_lacking_is_counted() -> None:
    rows = [
        row(0, 0, True),
        row(0, 1, True, text="Step 1: 0 0"),
        row(0, 2, False),
        row(0, 3, False, status="no_answer"),
        row(0, 4, False, status="timeout"),
        {**row(0, 5, True), "steps": ["The answer is: 1"]},
        row(1, 0, True),
        row(1, 1, True),
    ]
    found = select(rows, 6, 0.5, 0)
    assert found.passed_over == {
        "candidate_repeated": 1,
        "candidate_no_answer": 1,
        "candidate_timeout": 1,
        "candidate_without_steps": 1,
    }
    assert len(found.rows) == 4 and found.short == {"too_few_wrong": 2}


def test_a_share_of_one_never_fills_up_with_the_other_kind() -> None:
    rows = [row(0, i, i > 1) for i in range(6)]
    assert [r["correct"] for r in select(rows, 5, 1.0, 0).rows] == [False, False]


@pytest.mark.parametrize("count", [0, 3])
def test_no_candidates(count: int) -> None:
    assert select([], count, 0.5, 0).rows == []


TEXTS = st.lists(st.sampled_from(["", "a", "b", "ab"]), max_size=3)
LABELS = st.tuples(
    TEXTS, st.booleans(), st.sampled_from(["graded", "graded", "no_answer", "timeout"]), st.integers(-1, 1)
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), LABELS), max_size=40), shares, st.integers(0, 30), st.integers(1, 9))
def test_choosing_without_texts_chooses_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[int, tuple[list[str], bool, str, int]]],
    share: float,
    count: int,
    part: int,
) -> None:
    rows = [
        {
            **row(problem, index, correct),
            "status": status if status != "graded" else "correct" if correct else "wrong",
            "steps": steps,
            "step_labels": [label] * len(steps),
        }
        for index, (problem, (steps, correct, status, label)) in enumerate(drawn)
    ]
    labels = Run(str(tmp_path_factory.mktemp("labels"))).artefact("labels")
    labels.begin({"import": "test"})
    rest = {"answer": None, "step_scores": None, "step_source": "", "error_types": []}
    for first in range(0, len(rows), part):
        labels.write_part(str(first), columns.table("labels", [{**r, **rest} for r in rows[first : first + part]]))
    labels.complete({"rows": len(rows)})
    train = {f"p{problem}" for problem in range(4)}
    of_train = [row for row in rows if row["problem_id"] in train]
    found, expected = select_stored(labels, train, count, share, 3), select(of_train, count, share, 3)
    assert found == expected and all(list(row) == OUTLINED for row in found.rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minos_ray.problems.split.MOST_OUTLINED", 5)
        chosen, left_out = drawn_problems(count_rows(labels, train), 5)
        expected = select([row for row in of_train if row["problem_id"] in chosen], count, share, 3)
        expected.passed_over |= {"problem_not_drawn": left_out} if left_out else {}
        assert select_stored(labels, train, count, share, 3) == expected
    usable, passed_over = distinct([row for row in of_train if not row["correct"]])
    outlines = Outlines.read(labels, train, wrong_only=True)
    assert outlines.ids.take(np.flatnonzero(outlines.usable)).to_pylist() == [row["candidate_id"] for row in usable]
    assert outlines.passed_over == passed_over
    assert outlines.has_error[outlines.usable].tolist() == [bool(wrong_steps(row["step_labels"])) for row in usable]


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 5))
def test_turns_are_taken_in_the_order_of_a_shuffle(problems: list[int], seed: int) -> None:
    import random

    rows = [{"problem_id": str(problem), "number": number} for number, problem in enumerate(problems)]
    shuffled, seen = random.Random(str(seed)).sample(rows, len(rows)), Counter[str]()
    rounds = []
    for each in shuffled:
        rounds.append(seen[each["problem_id"]])
        seen[each["problem_id"]] += 1
    assert round_robin(rows, str(seed)) == [shuffled[k] for k in sorted(range(len(rows)), key=rounds.__getitem__)]
