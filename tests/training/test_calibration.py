"""Platt scaling: the fit against scikit-learn's, what it is fitted on, and the head that it becomes part of."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.calibration import _SigmoidCalibration
from sklearn.metrics import roc_auc_score

from minos_ray.config.training import Kind
from minos_ray.errors import UserError
from minos_ray.training import base, models
from minos_ray.training.base import head_name
from minos_ray.training.results import (
    Platt,
    calibrate,
    fit_platt,
    fold,
    natural_weights,
    platt_of,
    require_enough,
    sigmoid,
)
from tests.tiny import tiny_model


def drawn(size: int, scale: float, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and outcomes whose log-odds are `scale * logit + shift`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0.5, 3.0, size)
    return logits, (rng.random(size) < sigmoid(scale * logits + shift)).astype(float)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_fit_is_that_of_scikit_learn(weighted: bool) -> None:
    logits, targets = drawn(800, 0.3, -0.7)
    weights = np.random.default_rng(1).uniform(0.2, 3.0, 800) if weighted else np.ones(800)
    theirs = _SigmoidCalibration().fit(logits, targets, sample_weight=weights)
    platt = fit_platt(logits, targets, weights)
    assert platt.scale == pytest.approx(-theirs.a_, abs=1e-4) and platt.shift == pytest.approx(-theirs.b_, abs=1e-4)


def test_it_comes_back_to_the_truth_and_leaves_the_order() -> None:
    logits, targets = drawn(20_000, 0.4, -1.0)
    facts = calibrate(logits, targets, np.ones(len(logits)), len(logits))
    assert facts["scale"] == pytest.approx(0.4, abs=0.02) and facts["shift"] == pytest.approx(-1.0, abs=0.06)
    for name in ("log_loss", "brier"):
        before, after = facts[name]
        assert after < before
    platt = platt_of(facts)
    assert platt is not None
    calibrated = sigmoid(platt.scale * logits + platt.shift)
    assert roc_auc_score(targets, calibrated) == pytest.approx(roc_auc_score(targets, logits), abs=1e-12)
    assert platt.before(calibrated) == pytest.approx(sigmoid(logits), abs=1e-5)
    assert np.isnan(platt.before(np.array([np.nan]))).all()


def test_logits_that_separate_the_classes_give_a_finite_line() -> None:
    logits = np.array([-2.0] * 40 + [2.0] * 40)
    platt = fit_platt(logits, (logits > 0).astype(float), np.ones(80))
    assert sigmoid(2 * platt.scale + platt.shift) == pytest.approx(41 / 42, abs=1e-4)


def test_a_verifier_worse_than_chance_is_left_as_it_is() -> None:
    logits, targets = drawn(500, -0.5, 0.0)
    facts = calibrate(logits, targets, np.ones(500), 500)
    assert "not above 0" in facts["left_out"] and platt_of(facts) is None and platt_of(None) is None


def test_a_logit_that_is_not_finite_leaves_the_verifier_as_it_is() -> None:
    logits, targets = drawn(500, 1.0, 0.0)
    logits[3] = np.nan
    facts = calibrate(logits, targets, np.ones(500), 500)
    assert facts["left_out"] == "a held-out logit is not finite" and platt_of(facts) is None


def test_balanced_rows_are_calibrated_to_the_share_before_balancing() -> None:
    logits, targets = drawn(40_000, 1.0, 1.5)
    share, rng = targets.mean(), np.random.default_rng(2)
    keep = (targets == 0) | (rng.random(len(targets)) < (1 - share) / share)
    kept = targets[keep]
    assert kept.mean() == pytest.approx(0.5, abs=0.02) and share > 0.6
    weights = natural_weights(kept.astype(bool), float(share))
    assert np.average(kept, weights=weights) == pytest.approx(share)
    assert fit_platt(logits[keep], kept, weights).shift == pytest.approx(1.5, abs=0.1)
    assert fit_platt(logits[keep], kept, np.ones(len(kept))).shift < 1.3


def test_too_few_or_one_sided_rows_are_refused_before_the_training() -> None:
    right, wrong = ({"targets": [target]} for target in (1.0, 0.0))
    require_enough("ORM", [right] * 25 + [wrong] * 25)
    with pytest.raises(UserError, match=r"the 49 held-out solutions of ORM are fewer than 50.*eval_rows"):
        require_enough("ORM", [right] * 25 + [wrong] * 24)
    with pytest.raises(UserError, match="60 held-out solutions of PRM are all right or all wrong"):
        require_enough("PRM", [right] * 60)


@pytest.mark.parametrize("kind", ["orm", "prm"])
def test_folded_into_the_head_it_is_the_line(kind: Kind, tmp_path: Path) -> None:
    model = models.load(tiny_model(tmp_path), kind, "fp32", 0, {}, calibrated=True).eval()
    assert type(model).__name__.endswith("ForTokenClassification")
    ids = torch.arange(5, 17)[None]
    with torch.no_grad():
        before = model(ids).logits
        state = dict(model.state_dict())
        fold(state, head_name(model), Platt(0.25, -1.5))
        model.load_state_dict(state)
        torch.testing.assert_close(model(ids).logits, 0.25 * before - 1.5)


def test_a_base_whose_heads_have_no_bias_is_named_before_the_work(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    config = (Path(folder) / "config.json").read_text()
    (Path(folder) / "config.json").write_text(config.replace("{", '{"token_classification_bias": false,', 1))
    base.check(folder, ["orm"], {}, zero3=False, with_weights=True)
    with pytest.raises(UserError, match=r"head of \w+ForTokenClassification has no bias"):
        base.check(folder, ["orm"], {}, zero3=False, with_weights=True, calibrated=True)
