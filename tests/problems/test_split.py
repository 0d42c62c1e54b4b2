"""Problems that are drawn where their rows are too many."""

from collections import Counter
from pathlib import Path

import pytest

from minos_ray.problems.split import count_rows, drawn, rows_of_problems
from tests.runs import make_run

SIZES = [1 + number % 7 for number in range(200)]


@pytest.mark.parametrize("most", [10_000, sum(SIZES), sum(SIZES) - 1, 300, 40, 1])
def test_rows_of_whole_problems_up_to_the_limit_and_the_others_are_counted(tmp_path: Path, most: int) -> None:
    artefact = make_run(tmp_path, SIZES).artefact("labels")
    names = {f"p{number}" for number in range(0, 200, 2)} | {"without any"}
    every = rows_of_problems(artefact, ["candidate_id", "problem_id"], names).to_pylist()
    counted = count_rows(artefact, names)
    assert counted == Counter(row["problem_id"] for row in every)
    chosen, left_out = drawn(counted, most)
    rows = [row for row in every if row["problem_id"] in chosen]
    assert chosen <= names and len(rows) + left_out == len(every) and (len(rows) <= most or len(chosen) == 1)
    assert chosen, "never nothing"
    if most >= len(every):
        assert chosen == counted.keys()
    wider, _ = drawn(counted, 2 * most)
    assert chosen <= wider and (len(chosen) < len(wider) or chosen == counted.keys() or len(rows) > most // 4)


def test_the_draw_depends_on_no_parts_and_other_problems_halve_it_alone(tmp_path: Path) -> None:
    labels = make_run(tmp_path / "a", SIZES).artefact("labels")
    names = {f"p{number}" for number in range(200)}
    chosen, left_out = drawn(count_rows(labels, names), 100)
    other, rows = make_run(tmp_path / "b", [1]).artefact("labels"), labels.read()
    other.begin({"import": "in parts"})
    for number in range(5):
        other.write_part(str(number), rows.take(list(range(number, rows.num_rows, 5))))
    other.complete({})
    assert drawn(count_rows(other, names), 100) == (chosen, left_out) and 0 < len(chosen) < 200
    few = {f"p{number}" for number in range(0, 200, 3)}
    alone, _ = drawn(count_rows(labels, few), 100)
    assert few & chosen < alone < few


def test_one_problem_stays_however_many_rows_it_has() -> None:
    assert drawn({"p": 5}, 3) == ({"p"}, 0)
    chosen, left_out = drawn({f"p{number}": 5 for number in range(50)}, 3)
    assert len(chosen) == 1 and left_out == 49 * 5


def test_paid_problems_stay_while_they_have_at_most_half_of_the_rows() -> None:
    rows = {f"p{number}": 4 for number in range(400)}
    paid = {f"p{number}" for number in range(0, 400, 16)}
    chosen, left_out = drawn(rows, 200, paid)
    assert paid < chosen and left_out == 4 * (400 - len(chosen)) >= 1600 - 200
    many = {f"p{number}" for number in range(0, 400, 2)}
    chosen, _ = drawn(rows, 200, many)
    assert 0 < len(chosen & many) <= 25 and chosen - many, "the others have a part, too"


def test_right_rows_are_counted_alone(tmp_path: Path) -> None:
    labels = make_run(tmp_path, SIZES).artefact("labels")
    names = {f"p{number}" for number in range(50)}
    rows = rows_of_problems(labels, ["problem_id", "correct"], names).to_pylist()
    assert count_rows(labels, names, right=True) == Counter(row["problem_id"] for row in rows if row["correct"])
