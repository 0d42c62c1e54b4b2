"""Platt scaling: a line through a verifier's logits, so that their sigmoids are chances of being right.

It is fitted on the rows that stage 2 holds out (Platt 1999; for networks Guo et al. 2017, 1706.04599) and becomes part
of the head: its weight is multiplied by `scale`, its bias too and moved by `shift`. So transformers, vLLM and every
command read calibrated logits from the saved model and need to know nothing of it. The order of scores stays, up to
the rounding of the head to `reward.precision`; log loss and Brier score are those of the line before that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from minos_ray.errors import UserError
from minos_ray.store.columns import Row

LEAST = 50  # held-out solutions
MARGIN = float(np.finfo(np.float32).eps)  # scores are stored in single precision: a log-odds must stay finite


class Platt(NamedTuple):
    """A calibrated logit is `scale * logit + shift`."""

    scale: float
    shift: float

    def before(self, scores: np.ndarray) -> np.ndarray:
        """The scores that a verifier gave without it, from its calibrated ones; both in 0..1, NaN stays."""
        scores = np.clip(scores.astype(np.float64), MARGIN, 1 - MARGIN)
        with np.errstate(invalid="ignore"):
            return sigmoid((np.log(scores) - np.log1p(-scores) - self.shift) / self.scale)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """In double precision, without overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


def require_enough(name: str, held_out: Sequence[Row]) -> None:
    """UserError unless `LEAST` solutions are held out, with right and wrong targets among them."""
    targets = {target > 0.5 for row in held_out for target in row["targets"]}
    if len(held_out) < LEAST or len(targets) < 2:
        lack = "all right or all wrong" if len(targets) < 2 else f"fewer than {LEAST}"
        raise UserError(
            f"reward.calibration = platt: the {len(held_out)} held-out solutions of {name} are {lack}: no line is "
            "fitted on; set reward.eval_rows higher, label more candidates, or set it to none"
        )


def natural_weights(correct: np.ndarray, right_share: float | None) -> np.ndarray:
    """[rows]: what a held-out solution counts, so that the share of right ones is what it was before balancing.

    Otherwise a verifier whose rows were balanced by `reward.wrong_share` would be calibrated to that share.
    """
    share = correct.mean()
    if right_share is None or share in (0, 1):
        return np.ones(len(correct))
    return np.where(correct, right_share / share, (1 - right_share) / (1 - share))


def fit(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Platt:
    """The line with the lowest cross-entropy; all arrays are [targets], targets 0 or 1.

    Targets are Platt's (N + 1) / (N + 2) and 1 / (N + 2), which keep it finite where the logits separate the classes.
    """
    from scipy.optimize import minimize

    right = targets > 0.5
    positives, negatives = weights[right].sum(), weights[~right].sum()
    smooth = np.where(right, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(line: np.ndarray) -> tuple[float, np.ndarray]:
        calibrated = line[0] * logits + line[1]
        slope = weights * (sigmoid(calibrated) - smooth)
        entropy = weights @ (np.logaddexp(0.0, calibrated) - smooth * calibrated)
        return entropy / weights.sum(), np.array([slope @ logits, slope.sum()]) / weights.sum()

    scale, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    return Platt(float(scale), float(shift))


def calibrate(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, rows: int) -> dict[str, Any]:
    """What the manifest and the model's config say of it: the line, and log loss and Brier score [before, after].

    A line that falls would turn the ranking around: such a verifier is worse than chance, and stays as it is.
    """
    facts: dict[str, Any] = {"method": "platt", "rows": rows, "targets": len(targets)}
    facts["right_share"] = float(np.average(targets > 0.5, weights=weights))
    if not np.isfinite(logits).all():
        return facts | {"left_out": "a held-out logit is not finite"}
    platt = fit(logits, targets, weights)
    if not platt.scale > 0:
        return facts | {"left_out": f"the fitted scale {platt.scale:.4g} is not above 0"}
    both = (logits, platt.scale * logits + platt.shift)
    losses = [np.average(np.logaddexp(0.0, x) - targets * x, weights=weights) for x in both]
    squares = [np.average((sigmoid(x) - targets) ** 2, weights=weights) for x in both]
    return facts | {**platt._asdict(), "log_loss": list(map(float, losses)), "brier": list(map(float, squares))}


def platt_of(facts: Mapping[str, Any] | None) -> Platt | None:
    """The line from what `calibrate` said; None for a verifier that has none."""
    return Platt(facts["scale"], facts["shift"]) if facts and "scale" in facts else None


def fold(weights: dict[str, Any], head: str, platt: Platt) -> None:
    """Makes the line a part of the head of that name, in the tensors to be saved."""
    weight, bias = f"{head}.weight", f"{head}.bias"
    weights[weight] = weights[weight] * platt.scale
    weights[bias] = weights[bias] * platt.scale + platt.shift
