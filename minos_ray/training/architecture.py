"""Models: made from nothing, loaded for an objective, saved so that transformers and vLLM load them unaided."""

from copy import copy
from pathlib import Path
from typing import Any

import torch

from minos_ray.config.training import Kind, Pretrain
from minos_ray.errors import UserError
from minos_ray.steps import encoding
from minos_ray.training import base_weights, buffers
from minos_ray.training.buffers import without_memory
from minos_ray.training.heads import auto_class, labels, own_class, reads_last, scalar_head
from minos_ray.training.stored import Stored

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def new_mistral(section: Pretrain, tokenizer: Any) -> Any:
    """A seeded Mistral with tied embeddings, of the size that the section says."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(section.seed)
    return MistralForCausalLM(
        MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=section.hidden,
            intermediate_size=section.intermediate,
            num_hidden_layers=section.layers,
            num_attention_heads=section.heads,
            num_key_value_heads=section.kv_heads,
            max_position_embeddings=section.max_positions,
            sliding_window=None,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def load(path: str, kind: Kind, precision: str, seed: int, options: dict[str, Any]) -> Any:
    """The model at `path` for an objective; the scalar head of a verifier is new, small and depends on `seed` only.

    UserError when weights are missing, of another shape, or tied by the config and yet not the same.
    """
    with base_weights.about(path):
        auto = auto_class(kind, base_weights.config_of(path, kind, options))
    base_weights.require_files(path)
    how = {"dtype": DTYPES[precision], "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = auto.from_pretrained(path, **labels(kind), **options, **how)
    base_weights.require_whole(model, kind, info, path)
    base_weights.require_tied(model, path)
    if kind != "lm":
        reset_head(scalar_head(model), seed)
    return model


def load_partitioned(
    path: str, kind: Kind, precision: str, seed: int, options: dict[str, Any], settings: dict[str, Any]
) -> Any:
    """The same for ZeRO 3: weights go from the files into every rank's share, and no rank ever holds all of them."""
    import deepspeed
    from transformers.initialization import no_init_weights

    trusted = {"trust_remote_code": options.get("trust_remote_code", False)}
    with base_weights.about(path):
        config = base_weights.config_of(path, kind, options)
        auto = auto_class(kind, config)
    # Without `dtype`: where fp16 is unknown, DeepSpeed 0.19 turns a given one into bf16; the settings name it as well.
    with deepspeed.zero.Init(config_dict_or_path=settings), no_init_weights():
        model = auto.from_config(config, dtype=DTYPES[precision], **trusted)
    model.tie_weights()  # part of the initialisation that was left out
    with without_memory():
        buffers.copy(auto.from_config(config, dtype=DTYPES[precision], **trusted), model)
    head = None if kind == "lm" else scalar_head(model)
    with Stored(path) as weights:
        base_weights.require_same(weights, base_weights.tied(model), path)
        buffers.fill(model, weights, path)
        for name, parameter in model.named_parameters():
            if head is None or all(parameter is not own for own in head.parameters()):
                fill(parameter, name, weights, path)
    if head is not None:
        with deepspeed.zero.GatheredParameters(list(head.parameters()), modifier_rank=0):
            if torch.distributed.get_rank() == 0:
                reset_head(head, seed)
    return model


def fill(parameter: torch.nn.Parameter, name: str, weights: Stored, path: str) -> None:
    """Puts a stored tensor into every rank's share of a parameter; what is wrong is said on every rank: the one that
    copies would fail alone."""
    import deepspeed

    if name not in weights:
        raise UserError(f"base.model: {path} has no weights for '{name}'; resources.train.zero below 3 may do")
    if (shape := weights.shape(name)) != tuple(parameter.ds_shape):
        wanted = tuple(parameter.ds_shape)
        raise UserError(f"base.model: in {path} '{name}' is {shape}, and its config.json wants {wanted}")
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
        with Stored(path) as weights:
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


def padding_token(tokenizer: Any, embeddings: int) -> int | None:
    """The tokenizer's own, else EOS. One that was added to the tokenizer alone has no embedding: transformers would not
    load a model with it."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in known if token is not None and token < embeddings), None)


def save(
    model: Any, state: dict[str, torch.Tensor], tokenizer: Any, kind: Kind, folder: str, every_token: bool = False
) -> None:
    """Config, safetensors and tokenizer. `state` holds the whole weights, also when ranks hold shards.

    `every_token`: an ORM that was trained at every token, so that its score means something after each step. A critic
    has no chat template: it goes on from the bare text, whatever its base was asked.
    """
    config = model.config
    config.pad_token_id = padding_token(tokenizer, config.get_text_config().vocab_size)
    config.step_encoding = {"name": encoding.NAME, "version": encoding.VERSION}
    if kind != "lm" and not own_class(model, kind):
        config.verifier_kind = kind
    if reads_last(model):
        config.problem_type = "multi_label_classification"
    if kind == "orm":
        config.orm_positions = "every_token" if every_token else "last"
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state)
    if kind == "lm" and getattr(tokenizer, "chat_template", None):
        tokenizer = copy(tokenizer)
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
