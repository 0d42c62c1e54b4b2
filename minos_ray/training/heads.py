"""Verifiers as classes of transformers: which one a family has, and where its scalar head is.

An ORM is a `*ForSequenceClassification`, a PRM a `*ForTokenClassification`. Where transformers has only one of the two
for a family both kinds are saved as that one, and the config says which kind it is (`verifier_kind`): their forward
passes are the same, a linear layer on hidden states, read at the last token or at each.
"""

from typing import TYPE_CHECKING, Any

from minos_ray.config.training import Kind
from minos_ray.errors import UserError

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
