"""Models: loaded for an objective, with ZeRO 3 in shards, with LoRA's adapters, and saved so that transformers and vLLM
load them unaided.

LoRA (Hu et al. 2021): frozen weights, and beside chosen linear layers two thin matrices that are trained. peft puts
them into the transformers model in place, without a wrapper, so names and the backbone stay what they are.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from copy import copy
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minos_ray.config.schema import Model
from minos_ray.config.training import Kind, Lora, StepEncoding
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.store.model_files import LOADING, locate
from minos_ray.store.run import Run
from minos_ray.training import base
from minos_ray.training.base import (
    CAUSAL,
    HEADS,
    SEQUENCE,
    TOKEN,
    auto_class,
    head_name,
    labels,
    own_class,
    reads_last,
    scalar_head,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TASKS = {CAUSAL: "CAUSAL_LM", SEQUENCE: "SEQ_CLS", TOKEN: "TOKEN_CLS"}  # by the end of a class's name
FOLDER = "adapter"


def load(path: str, kind: Kind, precision: str, seed: int, options: dict[str, Any], calibrated: bool = False) -> Any:
    """The model at `path` for an objective; the scalar head of a verifier is new, small and depends on `seed` only.

    UserError when weights are missing, of another shape, or tied by the config and yet not the same.
    """
    with base.naming_errors(path):
        auto = auto_class(kind, base.config_of(path, kind, options), calibrated)
    if not base.bin_files(path):
        with base.Stored(path):  # UserError when a file is missing, or none of safetensors
            pass
    loading = {"dtype": DTYPES[precision], "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = auto.from_pretrained(path, **labels(kind), **options, **loading)
    base.require_complete(model, kind, info, path)
    # transformers leaves those apart that were stored apart
    base.require_equal(model, path, lambda name, other: model.get_parameter(name) is not model.get_parameter(other))
    if kind != "lm":
        reset_head(scalar_head(model, calibrated), seed)
    return model


def load_partitioned(
    path: str,
    kind: Kind,
    precision: str,
    seed: int,
    options: dict[str, Any],
    settings: dict[str, Any],
    calibrated: bool = False,
) -> Any:
    """The same for ZeRO 3: weights go from the files into every rank's shard, and no rank ever holds all of them."""
    import deepspeed
    from transformers.initialization import no_init_weights

    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    with base.naming_errors(path):
        config = base.config_of(path, kind, options)
        auto = auto_class(kind, config, calibrated)
    # Without `dtype`: where fp16 is unknown, DeepSpeed 0.19 turns a given one into bf16; the settings name it as well.
    with deepspeed.zero.Init(config_dict_or_path=settings), no_init_weights():
        model = auto.from_config(config, dtype=DTYPES[precision], **trusted)
    model.tie_weights()  # part of the initialisation that was left out
    with on_meta_device():
        copy_buffers(auto.from_config(config, dtype=DTYPES[precision], **trusted), model)
    head = None if kind == "lm" else scalar_head(model, calibrated)
    with base.Stored(path) as weights:
        base.require_equal(model, path, weights.differ)
        fill_buffers(model, weights, path)
        for name, parameter in model.named_parameters():
            if head is None or all(parameter is not made_anew for made_anew in head.parameters()):
                fill_parameter(parameter, name, weights, path)
    if head is not None:
        with deepspeed.zero.GatheredParameters(list(head.parameters()), modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                reset_head(head, seed)
    return model


def fill_parameter(parameter: Any, name: str, weights: base.Stored, path: str) -> None:
    """Puts a stored tensor into every rank's shard of a parameter; UserError on all ranks when it does not fit.

    `parameter` is partitioned by DeepSpeed, with its whole shape in `ds_shape`. Checked on all ranks: the one that
    copies would fail alone, and the others would wait for it.
    """
    import deepspeed

    if name not in weights:
        raise UserError(f"base.model: {path} has no weights for '{name}'; resources.train.zero below 3 may do")
    if (shape := weights.shape(name)) != tuple(parameter.ds_shape):
        expected = tuple(parameter.ds_shape)
        raise UserError(f"base.model: in {path} '{name}' is {shape}, and its config.json wants {expected}")
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(weights[name])


def vocabulary_head(model: Any, path: str) -> torch.nn.Linear:
    """The vocabulary head that the model at `path` has as a language model, for a verifier's language loss.

    It is the embedding itself where both are tied; it is trained along, but no part of the saved verifier.
    """
    embedding, config = model.get_input_embeddings().weight, model.config.get_text_config()
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, dtype=embedding.dtype)
    if config.tie_word_embeddings:
        head.weight = embedding
    else:
        with base.Stored(path) as weights:
            if "lm_head.weight" not in weights:
                raise UserError(f"reward.lm_weight: {path} has no weights for 'lm_head.weight'")
            head.load_state_dict({"weight": weights["lm_head.weight"]})
    return head


def reset_head(head: torch.nn.Linear, seed: int) -> None:
    """Weights so small that the first logits are near 0; the same for every backbone."""
    weights = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(weights * 0.1 / head.in_features**0.5)
        if head.bias is not None:
            head.bias.zero_()


def save(
    model: Any,
    state: dict[str, torch.Tensor],
    tokenizer: Any,
    kind: Kind,
    folder: str,
    every_token: bool = False,
    layout: StepEncoding = encoding.LINES,
) -> None:
    """Writes config, safetensors and tokenizer. `state` holds all weights, also where ranks hold shards.

    `every_token`: an ORM that was trained at every token, so that its score means something after each step. A critic
    of lines gets no chat template: it goes on from the bare text, whatever its base was asked.
    """
    config = model.config
    # A token that was added to the tokenizer alone has no embedding: transformers would not load a model that pads
    # with it.
    tokens = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    embeddings = config.get_text_config().vocab_size
    config.pad_token_id = next((token for token in tokens if token is not None and token < embeddings), None)
    config.step_encoding = encoding.saved_form(tokenizer, layout)
    if kind != "lm" and not own_class(model, kind):
        config.verifier_kind = kind
    if reads_last(model):
        config.problem_type = "multi_label_classification"
    if kind == "orm":
        config.orm_positions = "every_token" if every_token else "last"
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state)
    if kind == "lm" and layout.name == "lines" and getattr(tokenizer, "chat_template", None):
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)


@contextmanager
def on_meta_device() -> Generator[None]:
    """Models made inside have parameters on torch's meta device; their buffers are real.

    DeepSpeed's `zero.Init` rounds every floating tensor that is made inside it to the precision of the training, also
    one that the model needs in fp32 (rotary frequencies, slopes, scales). So under ZeRO 3 a model is made once more
    outside of it, and gives its buffers.
    """
    register = nn.Module.register_parameter

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = to_meta  # ty: ignore[invalid-assignment] torch names the parameter `param`
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def copy_buffers(exact: Any, model: nn.Module) -> None:
    """Gives every module of `model` the buffers and other tensors of the same module of `exact`, on its own device.

    Values are computed once more as `from_pretrained` does, outside the precision that `from_config` makes the default.
    """
    for module in exact.modules():
        module._is_hf_initialized = False
    exact.initialize_weights()
    for source, target in zip(exact.modules(), model.modules(), strict=True):
        for name, buffer in source._buffers.items():
            target._buffers[name] = at_device_of(buffer, target._buffers[name])
        for name, value in vars(source).items():
            if isinstance(value, torch.Tensor):
                setattr(target, name, at_device_of(value, getattr(target, name)))


def at_device_of(exact: torch.Tensor | None, rounded: torch.Tensor | None) -> torch.Tensor | None:
    """The exact tensor on the device of the rounded one."""
    return exact if exact is None or rounded is None else exact.to(rounded.device)


def fill_buffers(model: Any, weights: base.Stored, path: str) -> None:
    """Puts the stored values into the buffers that are saved with the weights; UserError when some are missing."""
    for name, buffer in base.persistent(model).items():
        if name not in weights:
            raise UserError(f"base.model: {path} has no values for '{name}'; resources.train.zero below 3 may do")
        buffer.copy_(weights[name])


def require_peft(key: str) -> None:
    """UserError that names `key` when peft is not installed."""
    if find_spec("peft") is None:
        raise UserError(f"{key} needs the package peft, which is not installed: pip install 'peft>=0.17'")


def require_targets(key: str, lora: Lora, start: Model, run: Run) -> None:
    """UserError when a target is none of the linear layers of the model, by its config alone."""
    from transformers import AutoConfig

    trusted = start.trust_remote_code
    names = linears(on_meta(AutoConfig.from_pretrained(locate(start, run), trust_remote_code=trusted), trusted))
    for target in lora.targets:
        if not any(is_target(name, (target,)) for name in names):
            layers = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))
            raise UserError(f"{key}.targets: the model has no linear layer '{target}'; it has {layers}")


def on_meta(config: Any, trust_remote_code: bool = False) -> Any:
    """The language model of a transformers config, without memory."""
    from transformers import AutoModelForCausalLM

    with LOADING, torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


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


def adapter_size(lora: Lora, linears: Mapping[str, int]) -> int:
    """How many parameters the adapter has."""
    return lora.rank * sum(both for name, both in linears.items() if is_target(name, lora.targets))


def attach(objective: Any, lora: Lora, seed: int) -> None:
    """Puts the adapter into the model and freezes all but it and a verifier's scalar head.

    B begins at zero: step 0 is the base. A depends on the seed and its name only, never on the rank or the backbone.
    """
    from peft import inject_adapter_in_model

    inject_adapter_in_model(peft_config(lora, objective.model), objective.model)
    for name, parameter in objective.model.named_parameters():
        if ".lora_A." in name:  # uniform as peft's own, +-1 / sqrt(inputs)
            digest = blake2b(f"{seed} {name}".encode(), digest_size=7).digest()
            generator, bound = torch.Generator().manual_seed(int.from_bytes(digest)), parameter.shape[1] ** -0.5
            with torch.no_grad():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
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


def save_adapter(
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
