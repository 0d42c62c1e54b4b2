"""Resampled measures against scikit-learn and one by one."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation import verdicts
from minos_ray.evaluation.statistics import intervals, resampled_means, resamples
from minos_ray.meta.measures import (
    aucs,
    draws_of_solutions,
    harmonic_means,
    interval,
    outcome_intervals,
    step_intervals,
    sum_by_problem,
)

SETTINGS = Evaluate(bootstrap=300, seed=3)


def test_resampled_aucs_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.integers(0, 6, 40) / 6, rng.random(40) < 0.5
    draws = np.concatenate(list(resamples(40, 30, 1)))
    found = aucs(iter([draws]), scores, truth)
    expected = [roc_auc_score(truth, scores, sample_weight=draw) for draw in draws]
    assert found == pytest.approx(expected)
    assert np.isnan(aucs(iter([np.array([[1.0, 0.0]])]), np.array([0.2, 0.4]), np.array([True, False]))).all()


def test_resampled_first_error_f1s_are_those_of_the_drawn_problems() -> None:
    truth = np.array([0, 1, -1, -1, 2, verdicts.UNKNOWN, -1, 0])
    said = np.array([0, 0, -1, 1, 2, 0, -1, 1])
    problem = np.array([3, 3, 5, 5, 6, 7, 7, 9])
    sides = np.stack([truth >= 0, truth == verdicts.ALL_RIGHT], axis=1)
    hit, whole = sum_by_problem(problem, sides & (said == truth)[:, None]), sum_by_problem(problem, sides)
    draws = np.concatenate(list(resamples(5, 50, 2)))
    found = harmonic_means(resampled_means(draws, hit, whole))
    rows_of = [np.flatnonzero(problem == name) for name in np.unique(problem)]
    for draw, value in zip(draws, found, strict=True):
        rows = np.concatenate([rows_of[place] for place in np.repeat(np.arange(5), draw.astype(int))])
        expected = verdicts.first_error_f1(said[rows], truth[rows])["first_error_f1"]
        assert np.isnan(value) if expected is None else value == pytest.approx(expected)


def test_one_solution_of_each_problem_gives_the_intervals_of_the_evaluation() -> None:
    hit = np.random.default_rng(4).random(80) < 0.6
    found = outcome_intervals(hit.astype(float), np.ones(80, bool), 0.5, np.arange(80), SETTINGS)
    _, low, high = intervals(hit[:, None].astype(float), SETTINGS.bootstrap, SETTINGS.seed)
    assert found["accuracy_ci"] == pytest.approx([low[0], high[0]])


def test_a_problem_is_drawn_with_all_its_solutions() -> None:
    draws = [np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])]
    spread = np.concatenate(list(draws_of_solutions(iter(draws), np.array([0, 0, 1, 2, 2]))))
    assert spread.tolist() == [[2, 2, 0, 1, 1], [0, 0, 3, 0, 0]]


def test_intervals_hold_the_truth_when_solutions_of_a_problem_are_alike() -> None:
    """Problem p is solved with chance p, and the score is p: accuracy E max(p, 1 - p) = 3/4, AUC 5/6."""
    settings, problem = Evaluate(bootstrap=200), np.repeat(np.arange(60), 16)
    held = {"accuracy": [], "auc": [], "steps": []}
    for study in range(150):
        rng = np.random.default_rng(study)
        scores = rng.random(60)[problem]
        correct = rng.random(960) < scores
        found = outcome_intervals(scores, correct, 0.5, problem, settings)
        both = verdicts.align_steps(pa.array(scores[:, None].tolist()), pa.array(correct[:, None].astype(int).tolist()))
        steps = step_intervals(both, 0.5, problem, settings)
        ends = {"accuracy": (0.75, found["accuracy_ci"]), "auc": (5 / 6, found["auc_ci"])}
        for name, (truth, (low, high)) in {**ends, "steps": (0.75, steps["accuracy_ci"])}.items():
            held[name].append(low <= truth <= high)
    assert {name: np.mean(hits) for name, hits in held.items()} == {n: pytest.approx(0.945, abs=0.05) for n in held}


def test_all_right_is_no_certainty() -> None:
    everything = np.ones(60)
    found = outcome_intervals(everything, everything > 0, 0.5, np.arange(60) // 2, SETTINGS)
    low, high = found["accuracy_ci"]
    assert 0.9 < low < 0.98 and high == 1
    labels = pa.array([[1, 1], [1, 0]] * 30)
    both = verdicts.align_steps(pa.array([[0.9, 0.9], [0.9, 0.1]] * 30), labels)
    low, high = step_intervals(both, 0.5, np.arange(60), SETTINGS)["first_error_f1_ci"]
    assert 0.9 < low < 0.99 and high == 1


def test_intervals_hold_the_measure_and_steps_stay_together() -> None:
    rng = np.random.default_rng(1)
    scores, correct = rng.random(200), rng.random(200) < 0.5
    found = outcome_intervals(scores, correct, 0.5, np.arange(200), SETTINGS)
    row = verdicts.outcome_row("v", scores, correct)
    for name in ("accuracy", "auc"):
        low, high = found[f"{name}_ci"]
        assert low < row[name] < high and 0.1 < high - low < 0.2
    labels = [[1, 1, 1], [1, 0, -1]] * 20
    given = [[0.9, 0.8, 0.7], [0.9, 0.1, 0.9]] * 12 + [[0.2, 0.8, 0.7], [0.9, 0.9, 0.9]] * 8
    both = verdicts.align_steps(pa.array(given, pa.list_(pa.float32())), pa.array(labels, pa.list_(pa.int8())))
    step = step_intervals(both, 0.5, np.arange(40), SETTINGS)
    row = verdicts.step_row("v", pa.array(given, pa.list_(pa.float32())), pa.array(labels, pa.list_(pa.int8())))
    for name in ("accuracy", "first_error_f1"):
        low, high = step[f"{name}_ci"]
        assert low < row[name] < high


def test_nothing_has_no_interval() -> None:
    nothing = outcome_intervals(np.zeros(0), np.zeros(0, bool), 0.5, np.zeros(0, int), SETTINGS)
    assert nothing == {"accuracy_ci": None, "auc_ci": None}
    assert interval(np.array([np.nan])) is None
    all_unread = outcome_intervals(np.full(2, np.nan), np.array([True, False]), 0.5, np.arange(2), SETTINGS)
    assert all_unread["auc_ci"] is None and all_unread["accuracy_ci"][0] == 0.0
