"""LoRA (Hu et al. 2021): frozen weights, and beside chosen linear layers two thin matrices that are trained.

peft puts them into the transformers model in place, without a wrapper, so names and the backbone stay what they are.
"""

from collections.abc import Mapping
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from minos_ray.config.training import Kind, Lora
from minos_ray.errors import UserError
from minos_ray.training.heads import CAUSAL, HEADS, SEQUENCE, TOKEN, head_name

TASKS = {CAUSAL: "CAUSAL_LM", SEQUENCE: "SEQ_CLS", TOKEN: "TOKEN_CLS"}  # by the end of a class's name
FOLDER = "adapter"


def require_peft(key: str) -> None:
    """UserError that names `key` when peft is not installed."""
    if find_spec("peft") is None:
        raise UserError(f"{key} needs the package peft, which is not installed: pip install 'minos_ray[lora]'")


def require_targets(key: str, lora: Lora, linears: Mapping[str, int]) -> None:
    """UserError when a target is none of the model's linear layers."""
    for target in lora.targets:
        if not any(is_target(name, (target,)) for name in linears):
            layers = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears))
            raise UserError(f"{key}.targets: the model has no linear layer '{target}'; it has {layers}")


def linears(model: Any) -> dict[str, int]:
    """The linear layers of a language model by name, without its head, each with the sum of its two sizes."""
    head = model.get_output_embeddings()
    return {
        name: module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def is_target(name: str, targets: tuple[str, ...]) -> bool:
    """Whether peft counts a module among the targets: by its full name or the end of it."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def size(lora: Lora, linears: Mapping[str, int]) -> int:
    """How many parameters the adapter has."""
    return lora.rank * sum(both for name, both in linears.items() if is_target(name, lora.targets))


def attach(objective: Any, lora: Lora, seed: int) -> None:
    """Puts the adapter into the model and freezes all but it and a verifier's scalar head.

    B begins at zero: step 0 is the base. A depends on the seed and its name only, never on the rank or the backbone.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(peft_config(lora, objective.model), objective.model)
    for name, parameter in objective.model.named_parameters():
        if ".lora_A." in name:
            reset(name, parameter, seed)
    for name, parameter in objective.named_parameters():
        parameter.requires_grad_(is_trained(name.removeprefix("model.")))


def peft_config(lora: Lora, model: Any, **options: Any) -> Any:
    """The adapter in peft's terms."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=next((task for end, task in TASKS.items() if type(model).__name__.endswith(end)), TASKS[CAUSAL]),
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets),
        **options,
    )


def is_trained(name: str) -> bool:
    """Whether a parameter of the transformers model belongs to the adapter or is the scalar head."""
    return ".lora_" in name or name.partition(".")[0] in HEADS


@torch.no_grad()
def reset(name: str, matrix: torch.Tensor, seed: int) -> None:
    """Uniform as peft's own, +-1 / sqrt(inputs), drawn from the seed and the name."""
    digest = blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest))
    bound = matrix.shape[1] ** -0.5
    matrix.copy_(torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator))


def merged(state: Mapping[str, torch.Tensor], lora: Lora) -> dict[str, torch.Tensor]:
    """The weights of a plain model, `W + alpha / rank * B A`, summed in fp32."""
    plain = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            a, b = (state[name.replace("base_layer", f"lora_{side}.default")].float() for side in "AB")
            weight = (weight.float() + lora.alpha / lora.rank * (b @ a)).to(weight.dtype)
        plain[name.replace(".base_layer.", ".")] = weight
    return plain


def save(
    model: Any,
    state: Mapping[str, torch.Tensor],
    lora: Lora,
    kind: Kind,
    base: tuple[str, str | None],
    folder: str,
) -> None:
    """The adapter alone (and a verifier's head) in peft's format, into `FOLDER` below the model's folder.

    `base` is the name and the revision of the model that it belongs to.
    """
    from safetensors.torch import save_file

    target, (start, revision) = Path(folder) / FOLDER, base
    head = {} if kind == "lm" else {"modules_to_save": [head_name(model)]}
    config = peft_config(lora, model, base_model_name_or_path=start, revision=revision, inference_mode=True, **head)
    config.save_pretrained(target)
    trained = {name: weight for name, weight in state.items() if is_trained(name)}
    renamed = {f"base_model.model.{n.replace('.default.', '.')}": weight for n, weight in trained.items()}
    save_file(renamed, target / "adapter_model.safetensors", metadata={"format": "pt"})
