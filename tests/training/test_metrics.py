"""Metrics against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from minos_ray.training.results import classification

PAIRS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


@given(PAIRS)
def test_like_scikit_learn(pairs: list[tuple[int, bool]]) -> None:
    logits = np.array([logit / 2 for logit, _ in pairs])
    truth = np.array([float(label) for _, label in pairs])
    found = classification(logits, truth)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, logits > 0))
    assert found["f1"] == pytest.approx(f1_score(truth, logits > 0, zero_division=0))
    if 0 < truth.sum() < len(truth):
        assert found["auc"] == pytest.approx(roc_auc_score(truth, logits))
    else:
        assert found["auc"] is None
