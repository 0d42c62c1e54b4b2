"""Meta-evaluation on cases worked out by hand."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.evaluation import verdicts

# Truth: error at 1, error at 0, all right, all right, unknown. Said: 1, none, none, 2, 0.
LABELS = [[1, 0, 0], [0, 1], [1, 1], [1, 1, 1], [1, -1]]
SCORES = [[0.9, 0.1, 0.9], [0.6, 0.9], [0.5, 0.8], [0.9, 0.9, 0.49], [0.2, 0.9]]


def steps(scores: list, labels: list) -> dict | None:
    """The step level of lists."""
    return verdicts.step_row("prm", pa.array(scores, pa.list_(pa.float32())), pa.array(labels, pa.list_(pa.int8())))


def test_processbench_f1_by_hand() -> None:
    found = steps(SCORES, LABELS)
    assert (found["wrong_solutions"], found["right_solutions"]) == (2, 2)
    assert (found["accuracy_on_wrong"], found["accuracy_on_right"]) == (0.5, 0.5)
    assert found["first_error_f1"] == 0.5


def test_f1_is_zero_when_one_side_is_never_right_and_none_when_it_is_not_there() -> None:
    assert steps(SCORES[1:3], LABELS[1:3])["first_error_f1"] == 0.0
    assert steps(SCORES[:1], LABELS[:1])["first_error_f1"] is None


def test_a_solution_that_was_not_scored_is_a_miss() -> None:
    found = steps([*SCORES, [], None], [*LABELS, [1, 1], [0]])
    assert (found["right_solutions"], found["accuracy_on_right"]) == (3, pytest.approx(1 / 3))
    assert (found["wrong_solutions"], found["accuracy_on_wrong"]) == (3, pytest.approx(1 / 3))
    assert found["examples"] == 11


def test_steps_use_labelled_steps_only() -> None:
    found = steps(SCORES, LABELS)
    assert found["examples"] == 11
    assert found["accuracy"] == pytest.approx(7 / 11)
    assert found["min"] == {"by_step": [3, 1, 1], "first_error": {"before": 0, "at": 2, "after": 0}}


def test_steps_have_their_confusion_and_another_threshold_moves_it() -> None:
    found = steps(SCORES, LABELS)
    assert found["confusion"] == {"tp": 6, "fp": 2, "tn": 1, "fn": 2}
    column = pa.array(SCORES, pa.list_(pa.float32())), pa.array(LABELS, pa.list_(pa.int8()))
    strict = verdicts.step_row("prm", *column, threshold=0.85)
    assert (strict["threshold"], strict["accuracy_on_right"], strict["accuracy_on_wrong"]) == (0.85, 0.0, 1.0)


def test_what_is_unread_is_a_miss_on_either_side_and_has_no_score() -> None:
    scores, correct = np.array([np.nan, np.nan, 0.9, 0.2]), np.array([False, True, True, False])
    found = verdicts.outcome_row("critic", scores, correct)
    assert (found["accuracy"], found["auc"], found["brier"]) == (0.5, 1.0, pytest.approx((0.01 + 0.04) / 2))
    everything = verdicts.outcome_row("critic", np.full(4, np.nan), correct)
    assert (everything["accuracy"], everything["f1"], everything["auc"]) == (0.0, 0.0, None)
    assert (found["unscored"], everything["unscored"]) == (2, 4)


def test_a_set_where_nothing_was_scored_is_all_missed() -> None:
    column = pa.array([[], []], pa.list_(pa.float32())), pa.array([[1, 1], [1, 0]], pa.list_(pa.int8()))
    assert verdicts.step_row("orm", *column) is None
    found = verdicts.step_row("prm", *column, by_step=True)
    assert (found["examples"], found["unscored"], found["accuracy"]) == (0, 2, None)
    assert (found["first_error_f1"], found["accuracy_on_wrong"], found["accuracy_on_right"]) == (0.0, 0.0, 0.0)
    assert found["min"] == {"by_step": [], "first_error": {"before": 0, "at": 0, "after": 0}}
    assert verdicts.step_row("prm", column[0], pa.array([[-1], []], pa.list_(pa.int8())), by_step=True) is None


def test_no_labelled_step_gives_no_step_level() -> None:
    assert steps([[0.2]], [[-1]]) is None
    assert steps([[], []], [[1], [0]]) is None
    assert steps([[0.2, 0.3]], [[1]]) is None
    assert steps([], []) is None


@given(st.lists(st.lists(st.integers(-1, 1), max_size=5), max_size=10))
def test_first_errors_are_those_found_one_by_one(labels: list[list[int]]) -> None:
    expected = []
    for row in labels:
        place = next((at for at, label in enumerate(row) if label != 1), None)
        if not row:
            expected.append(verdicts.UNKNOWN)
        elif place is None:
            expected.append(verdicts.ALL_RIGHT)
        else:
            expected.append(place if row[place] == 0 else verdicts.UNKNOWN)
    column = pa.array(labels, pa.list_(pa.int8()))
    assert verdicts.first_errors(verdicts.flat(column)).tolist() == expected


def test_error_types_are_counted_by_their_first_and_by_what_is_rejected() -> None:
    rows = [["", "logical", "accumulation"], ["calculation"], [], [""], ["", ""], ["logical", "logical"]]
    errors = verdicts.errors(pa.chunked_array([rows[:2], rows[2:]], pa.list_(pa.string())))
    found = verdicts.counts(errors)
    assert found["logical"] == {"steps": 3, "candidates": 2, "first": 2}
    assert found["accumulation"] == {"steps": 1, "candidates": 1, "first": 0}
    assert found["unrelated"] == {"steps": 0, "candidates": 0, "first": 0}
    correct = np.array([False, False, False, True, True, False])
    rejected = verdicts.rejected({"v": np.array([0.1, 0.9, 0.2, 0.9, 0.9, 0.5])}, correct, errors)["v"]
    assert rejected["logical"] == (2, 1)
    assert rejected["calculation"] == (1, 0)
    assert rejected["untyped"] == (1, 1)
    assert "unrelated" not in rejected


ROWS = st.tuples(
    st.none() | st.lists(st.integers(0, 4).map(lambda quarters: quarters / 4), max_size=4),
    st.lists(st.integers(-1, 1), max_size=4),
)


@given(st.lists(ROWS, max_size=8))
def test_all_measures_of_steps_are_those_found_row_by_row(rows: list) -> None:
    whole = [(scores, labels) for scores, labels in rows if labels and scores and len(scores) == len(labels)]
    known = [(s, label) for scores, labels in whole for s, label in zip(scores, labels, strict=True) if label >= 0]
    found = steps([scores for scores, _ in rows], [labels for _, labels in rows])
    if not known:
        assert found is None
        return
    lowest, sides = [scores.index(min(scores)) for scores, _ in whole], {"before": 0, "at": 0, "after": 0}
    for place, (_, labels) in zip(lowest, whole, strict=True):
        if (truth := slow_first_error(labels)) >= 0:
            sides["before" if place < truth else "at" if place == truth else "after"] += 1
    counts = [lowest.count(k) for k in range(max(lowest) + 1)]
    assert found["min"] == {"by_step": counts, "first_error": sides}
    said = [slow_said(scores, labels) for scores, labels in rows]
    truth = [slow_first_error(labels) for _, labels in rows]
    wrong = [s == t for s, t in zip(said, truth, strict=True) if t >= 0]
    right = [s == t for s, t in zip(said, truth, strict=True) if t == verdicts.ALL_RIGHT]
    assert found["accuracy_on_wrong"] == (pytest.approx(sum(wrong) / len(wrong)) if wrong else None)
    assert found["accuracy_on_right"] == (pytest.approx(sum(right) / len(right)) if right else None)
    assert found["examples"] == len(known)
    assert found["confusion"]["tp"] == sum(score >= 0.5 and label == 1 for score, label in known)


def slow_first_error(labels: list[int]) -> int:
    """By going from step to step."""
    for at, label in enumerate(labels):
        if label != 1:
            return at if label == 0 else verdicts.UNKNOWN
    return verdicts.ALL_RIGHT if labels else verdicts.UNKNOWN


def slow_said(scores: list[float] | None, labels: list[int]) -> int:
    """By going from step to step."""
    if not labels or not scores or len(scores) != len(labels):
        return verdicts.UNSCORED
    return next((at for at, score in enumerate(scores) if score < 0.5), verdicts.ALL_RIGHT)


def test_one_long_solution_does_not_widen_the_others() -> None:
    column = pa.array([[1.0, 0.5]] * 1000 + [[0.5] * 5000], pa.list_(pa.float32()))
    assert verdicts.flat(column).values.nbytes == 8 * 7000
