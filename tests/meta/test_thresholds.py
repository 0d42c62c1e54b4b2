"""Thresholds against every threshold tried one by one."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minos_ray.evaluation import verdicts
from minos_ray.meta.measures import best_first_error, best_outcome

SCORE = st.integers(0, 8).map(lambda eighths: eighths / 8)
TRIED = np.arange(0, 1.0001, 1 / 32)


def both(scores: list, labels: list) -> verdicts.Aligned:
    return verdicts.align_steps(pa.array(scores, pa.list_(pa.float32())), pa.array(labels, pa.list_(pa.int8())))


@given(st.lists(st.lists(st.tuples(SCORE, st.integers(-1, 1)), max_size=4), max_size=8), st.integers(0, 3))
def test_no_threshold_finds_first_errors_better(rows: list, unscored: int) -> None:
    labels = [[label for _, label in row] for row in rows]
    scores = [[] if at < unscored else [score for score, _ in row] for at, row in enumerate(rows)]
    found = both(scores, labels)
    truth = verdicts.first_errors(found.labels)
    chosen = best_first_error(found)
    if not (truth >= 0).any() or not (truth == verdicts.ALL_RIGHT).any() or not found.complete.any():
        assert chosen is None
        return
    reached = [
        verdicts.first_error_f1(found.predicted_first_errors(t), truth)["first_error_f1"] for t in (chosen, *TRIED)
    ]
    assert reached[0] == pytest.approx(max(reached))


@given(st.lists(st.tuples(SCORE, st.booleans()), max_size=12))
def test_no_threshold_judges_outcomes_better(rows: list[tuple[float, bool]]) -> None:
    scores, correct = np.array([s for s, _ in rows]), np.array([c for _, c in rows], dtype=bool)
    chosen = best_outcome(scores, correct)
    assert 0 <= chosen <= 1
    if not rows:
        assert chosen == 0.5
    else:
        reached = [((scores >= t) == correct).mean() for t in (chosen, *TRIED)]
        assert reached[0] == pytest.approx(max(reached))


def test_half_way_between_scores_by_hand() -> None:
    found = both([[0.9, 0.75], [0.25, 0.9], [0.9, 0.8]], [[1, 1], [0, 1], [1, 1]])
    assert best_first_error(found) == pytest.approx(0.5)
    assert best_outcome(np.array([0.2, 0.9]), np.array([False, True])) == pytest.approx(0.55)


def test_of_several_the_nearest_to_a_half() -> None:
    scores, correct = np.array([0.1, 0.3, 0.7, 0.9]), np.array([False, True, False, True])
    assert best_outcome(scores, correct) == pytest.approx(0.2)
    assert best_outcome(scores[:1], correct[:1]) == 0.55
    assert best_outcome(np.array([0.0, 1.0]), np.array([False, True])) == 0.5
