"""What a model holds beside its parameters is made exactly, loaded and saved, also where no parameter has memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minos_ray.errors import UserError
from minos_ray.training import base, models
from minos_ray.training.base import Stored

SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def mixture() -> Any:
    """A tiny mixture of experts, whose routing has a bias that is saved and not trained."""
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = Glm4MoeConfig(**SIZES, **experts, num_key_value_heads=1, head_dim=16, first_k_dense_replace=1)
    model = Glm4MoeForCausalLM(config)
    model.get_buffer(BIAS).copy_(torch.tensor([0.1, -0.2, 0.3, 1 / 3]))
    return model


def test_values_that_are_saved_and_not_trained_are_loaded(tmp_path: Path) -> None:
    model = mixture()
    model.save_pretrained(tmp_path)
    assert list(base.persistent(model)) == [BIAS]
    other = mixture()
    other.get_buffer(BIAS).zero_()
    with Stored(str(tmp_path)) as weights:
        models.fill_buffers(other, weights, str(tmp_path))
    assert torch.equal(other.get_buffer(BIAS), model.get_buffer(BIAS))

    stored = load_file(tmp_path / "model.safetensors")
    del stored[BIAS]
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with Stored(str(tmp_path)) as weights, pytest.raises(UserError, match=f"no values for '{BIAS}'"):
        models.fill_buffers(other, weights, str(tmp_path))
    with pytest.raises(UserError, match=f"has no weights for '{BIAS}'; they would be random"):
        models.load(str(tmp_path), "lm", "fp32", 0, {})


@pytest.mark.parametrize("name", ["MistralConfig", "Gemma3TextConfig", "GPTJConfig"])
def test_buffers_are_those_of_a_loaded_model(name: str, tmp_path: Path) -> None:
    """Rotary frequencies, Gemma's scale of embeddings, sinusoids that depend on the default precision."""
    import transformers
    from transformers import AutoModelForCausalLM

    config = getattr(transformers, name)(**SIZES)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    loaded = models.load(str(tmp_path), "lm", "bf16", 0, {})
    with models.on_meta_device():
        exact = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    rounded = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).bfloat16()
    models.copy_buffers(exact, rounded)
    expected = dict(loaded.named_buffers())
    assert expected and all(parameter.is_meta for parameter in exact.parameters())
    for name, buffer in rounded.named_buffers():
        assert buffer.dtype == expected[name].dtype and torch.equal(buffer, expected[name]), name
    assert not nn.Linear(2, 2).weight.is_meta
