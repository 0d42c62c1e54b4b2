"""Models: made from nothing, loaded for an objective, saved so that transformers and vLLM load them unaided."""

import json
from pathlib import Path
from typing import Any

import torch

from minos_ray.sections import Pretrain
from minos_ray.training import encoding
from minos_ray.training.job import Kind

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LABEL = "correct"


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
    """The model at `path` for an objective; the scalar head of a verifier is new, small and depends on `seed` only."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

    options = {**options, "dtype": DTYPES[precision]}
    if kind == "lm":
        return AutoModelForCausalLM.from_pretrained(path, **options)
    auto = AutoModelForSequenceClassification if kind == "orm" else AutoModelForTokenClassification
    model = auto.from_pretrained(path, num_labels=1, id2label={0: LABEL}, label2id={LABEL: 0}, **options)
    reset_head(model.score, seed)
    return model


def vocabulary_head(model: Any, path: str, revision: str | None = None) -> torch.nn.Linear:
    """The vocabulary head that the model at `path` has as a language model, for a verifier's language loss.

    It is the embedding itself where both are tied; it is trained along, but no part of the saved verifier.
    """
    embedding = model.get_input_embeddings().weight
    head = torch.nn.Linear(embedding.shape[1], embedding.shape[0], bias=False, dtype=embedding.dtype)
    if model.config.tie_word_embeddings:
        head.weight = embedding
    else:
        head.load_state_dict({"weight": stored(path, "lm_head.weight", revision)})
    return head


def stored(path: str, name: str, revision: str | None) -> torch.Tensor:
    """One tensor of a checkpoint, without loading the rest."""
    from safetensors import safe_open
    from transformers.utils import cached_file

    index = cached_file(
        path, "model.safetensors.index.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    shard = json.loads(Path(index).read_text())["weight_map"][name] if index else "model.safetensors"
    with safe_open(cached_file(path, shard, revision=revision), framework="pt") as tensors:
        return tensors.get_tensor(name)


def reset_head(head: torch.nn.Linear, seed: int) -> None:
    """Weights so small that the first logits are near 0; the same for every backbone."""
    weights = torch.randn(head.weight.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(weights * 0.1 / head.in_features**0.5)
        if head.bias is not None:
            head.bias.zero_()


def save(model: Any, state: dict[str, torch.Tensor], tokenizer: Any, kind: Kind, folder: str) -> None:
    """Config, safetensors and tokenizer. `state` holds the whole weights, also when ranks hold shards."""
    config = model.config
    config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    config.step_encoding = {"name": encoding.NAME, "version": encoding.VERSION}
    if kind == "orm":
        config.problem_type = "multi_label_classification"
    Path(folder).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
