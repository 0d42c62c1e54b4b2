"""Resampled measures against scikit-learn and one by one."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from minos_ray.evaluation import meta
from minos_ray.evaluation.meta_intervals import aucs, first_error_f1s, interval, outcome_intervals, step_intervals
from minos_ray.evaluation.statistics import resamples
from minos_ray.sections import Evaluate

SETTINGS = Evaluate(bootstrap=300, seed=3)


def test_resampled_aucs_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 40) / 6, rng.random(40) < 0.5
    draws = np.concatenate(list(resamples(40, 30, 1)))
    found = aucs(iter([draws]), scores, truth)
    expected = [roc_auc_score(truth, scores, sample_weight=draw) for draw in draws]
    assert found == pytest.approx(expected)
    assert np.isnan(aucs(iter([np.array([[1.0, 0.0]])]), np.array([0.2, 0.4]), np.array([True, False]))).all()


def test_resampled_first_error_f1s_are_those_of_the_drawn_solutions() -> None:
    truth = np.array([0, 1, -1, -1, 2, meta.UNKNOWN])
    said = np.array([0, 0, -1, 1, 2, 0])
    draws = np.concatenate(list(resamples(6, 50, 2)))
    found = first_error_f1s(iter([draws]), said == truth, truth)
    for draw, value in zip(draws, found, strict=True):
        rows = np.repeat(np.arange(6), draw.astype(int))
        expected = meta.first_error_f1(said[rows], truth[rows])["first_error_f1"]
        assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_intervals_hold_the_measure_and_steps_stay_together() -> None:
    rng = np.random.default_rng(1)
    scores, correct = rng.random(200), rng.random(200) < 0.5
    found = outcome_intervals(scores, correct, 0.5, np.zeros(200, dtype=bool), SETTINGS)
    row = meta.outcome("v", scores, correct)
    for name in ("accuracy", "auc"):
        low, high = found[f"{name}_ci"]
        assert low < row[name] < high and 0.1 < high - low < 0.2
    labels = [[1, 1, 1], [1, 0, -1]] * 20
    given = [[0.9, 0.8, 0.7], [0.9, 0.1, 0.9]] * 12 + [[0.2, 0.8, 0.7], [0.9, 0.9, 0.9]] * 8
    both = meta.aligned(pa.array(given, pa.list_(pa.float32())), pa.array(labels, pa.list_(pa.int8())))
    step = step_intervals(both, 0.5, SETTINGS)
    row = meta.steps("v", pa.array(given, pa.list_(pa.float32())), pa.array(labels, pa.list_(pa.int8())))
    for name in ("accuracy", "first_error_f1"):
        low, high = step[f"{name}_ci"]
        assert low < row[name] < high


def test_nothing_has_no_interval() -> None:
    nothing = outcome_intervals(np.zeros(0), np.zeros(0, bool), 0.5, np.zeros(0, bool), SETTINGS)
    assert nothing == {"accuracy_ci": None, "auc_ci": None}
    assert interval(np.array([np.nan])) is None
    all_unread = outcome_intervals(np.zeros(2), np.array([True, False]), 0.5, np.ones(2, bool), SETTINGS)
    assert all_unread == {"accuracy_ci": [0.0, 0.0], "auc_ci": None}
