"""Verifiers as classes of transformers: which one a family has, where its scalar head is, and Platt scaling, which
becomes part of the head.

An ORM is a `*ForSequenceClassification`, a PRM a `*ForTokenClassification`. Where transformers has only one of the two
for a family both kinds are saved as that one, and the config says which kind it is (`verifier_kind`): their forward
passes are the same, a linear layer on hidden states, read at the last token or at each.

Platt scaling is a line through a verifier's logits, so that their sigmoids are chances of being right. It is fitted on
the rows that stage 2 holds out (Platt 1999; for networks Guo et al. 2017, 1706.04599). The weight of the head is then
multiplied by `scale`, its bias too and moved by `shift`. So transformers, vLLM and every command read calibrated logits
from the saved model and need to know nothing of it. The order of scores stays, up to the rounding of the head to
`reward.precision`; log loss and Brier score are those of the line before that.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minos_ray.config.training import Kind
from minos_ray.errors import UserError
from minos_ray.store.columns import Row

if TYPE_CHECKING:
    from torch import nn

SEQUENCE, TOKEN, CAUSAL = "ForSequenceClassification", "ForTokenClassification", "ForCausalLM"
# In order of preference; an architecture that ends so is loaded by transformers' `AutoModel` + that ending.
ENDINGS: dict[Kind, tuple[str, ...]] = {"lm": (CAUSAL,), "orm": (SEQUENCE, TOKEN), "prm": (TOKEN, SEQUENCE)}
MAPPINGS = {
    SEQUENCE: "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    TOKEN: "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    CAUSAL: "MODEL_FOR_CAUSAL_LM_MAPPING",
}

# What transformers calls the layer from a decoder's hidden states to scores.
HEADS = ("score", "classifier")
LABEL = "correct"
LEAST = 50  # held-out solutions
MARGIN = float(np.finfo(np.float32).eps)  # scores are stored in single precision: a log-odds must stay finite


def labels(kind: Kind) -> dict[str, Any]:
    """What a verifier's config says about its one label."""
    return {} if kind == "lm" else {"num_labels": 1, "id2label": {0: LABEL}, "label2id": {LABEL: 0}}


def auto_class(kind: Kind, config: Any, calibrated: bool = False) -> Any:
    """The class of transformers that a kind is trained and saved as; UserError when the family has none.

    A `calibrated` verifier needs a head with a bias, which a `*ForTokenClassification` has alone.
    """
    import transformers

    endings = ENDINGS[kind] if kind == "lm" or not calibrated else (TOKEN,)
    for ending in endings:
        auto = getattr(transformers, f"AutoModel{ending}")
        in_library = type(config) in getattr(transformers, MAPPINGS[ending])
        if in_library or auto.__name__ in (getattr(config, "auto_map", None) or {}):
            return auto
    classes = " and no ".join(f"*{ending}" for ending in endings)
    model = {"lm": "a language model", "orm": "an ORM", "prm": "a PRM"}[kind]
    raise UserError(
        f"transformers {transformers.__version__} has no {classes} for model type '{config.model_type}', so {model} of "
        "it could not be loaded by others; take a base of another family (docs/training.md names them)"
    )


def by_token(config: Any) -> bool:
    """Whether a saved verifier gives a logit at every token, by the architecture that its config names."""
    return any(name.endswith(TOKEN) for name in config.architectures or [])


def saved_class(config: Any) -> Any:
    """The class of transformers that loads a saved verifier."""
    import transformers

    return getattr(transformers, f"AutoModel{TOKEN if by_token(config) else SEQUENCE}")


def reads_last(model: Any) -> bool:
    """Whether the class of a verifier gives the logit of the last token alone."""
    return type(model).__name__.endswith(SEQUENCE)


def own_class(model: Any, kind: Kind) -> bool:
    """Whether the class of a verifier says by its name which kind it is."""
    return type(model).__name__.endswith(ENDINGS[kind][0])


def head_name(model: Any) -> str:
    """The name of a verifier's scalar head; UserError unless one linear layer is all that stands behind the decoder.

    Dropout in front of it aside: training has its own, and scoring none.
    """
    from torch import nn

    behind = {
        name: module
        for name, module in model.named_children()
        if name != model.base_model_prefix and not isinstance(module, nn.Dropout)
    }
    name, head = next(iter(behind.items()), ("", None))
    scalar = name in HEADS and isinstance(head, nn.Linear) and head.out_features == 1
    pooled = reads_last(model) and getattr(model.base_model, "pooler", None) is not None
    if len(behind) != 1 or not scalar or pooled:
        parts = ", ".join([*(["pooler"] if pooled else []), *behind]) or "nothing"
        raise UserError(
            f"{type(model).__name__} has {parts} behind its decoder, where one linear layer to one score is needed "
            f"({' or '.join(HEADS)}); take a base of another family (docs/training.md names them)"
        )
    return name


def scalar_head(model: Any, calibrated: bool = False) -> "nn.Linear":
    """The linear layer from hidden state to logit; UserError where a calibrated verifier's has no bias."""
    head = getattr(model, head_name(model))
    if calibrated and head.bias is None:
        raise UserError(f"reward.calibration: the head of {type(model).__name__} has no bias to shift; set it to none")
    return head


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
