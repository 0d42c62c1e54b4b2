"""Metrics against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from minos_ray.evaluation.verdicts import binary

PAIRS = st.lists(st.tuples(st.integers(0, 20).map(lambda k: k / 20), st.booleans()), min_size=1, max_size=60)


@given(PAIRS)
def test_metrics_are_those_of_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    scores, truth = (np.array(side) for side in zip(*pairs, strict=True))
    found, said = binary(scores, truth), scores >= 0.5
    both = [False, True]
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(truth, said))
    assert found["f1"] == pytest.approx(oracle.f1_score(truth, said, zero_division=0))
    macro = oracle.f1_score(truth, said, average="macro", labels=both, zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro)
    assert found["brier"] == pytest.approx(oracle.brier_score_loss(truth, scores, labels=both, pos_label=True))
    # Scores are stored in single precision, in which scikit-learn clips them, too.
    losses = oracle.log_loss(truth, scores.astype(np.float32), labels=both)
    assert found["log_loss"] == pytest.approx(losses, rel=1e-5, abs=1e-6)
    # Bins between quantiles, without their sizes: those are counted here.
    right, given_ = calibration_curve(truth, scores, n_bins=10, strategy="quantile")
    edges = np.quantile(scores, np.linspace(0, 1, 11))[1:-1]
    sizes = np.unique(np.searchsorted(edges, scores), return_counts=True)[1]
    assert found["ece_equal_mass"] == pytest.approx((np.abs(right - given_) * sizes).sum() / len(scores))
    if truth.all() or not truth.any():
        assert found["auc"] is None
    else:
        assert found["auc"] == pytest.approx(oracle.roc_auc_score(truth, scores))


def test_calibration_error_by_hand() -> None:
    scores, truth = np.array([0.05, 0.05, 0.95, 1.0]), np.array([False, True, True, True])
    assert binary(scores, truth)["ece"] == pytest.approx((abs(0.1 - 1) + abs(1.95 - 2)) / 4)


def test_nothing_to_judge_gives_no_numbers() -> None:
    assert set(binary(np.zeros(0), np.zeros(0, bool)).values()) == {None}
