"""A forest through models of several families against each sequence alone, as transformers runs it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from minos_ray.errors import UserError
from minos_ray.scoring import forest as layouts
from minos_ray.scoring.forest import BY_RUNS, Backbone, backbone_of, forests
from minos_ray.training.base import scalar_head

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_labels": 1,
    "pad_token_id": 0,
}


def verifier(family: str, **more: Any) -> Any:
    """A random token classifier of a family."""
    from transformers import AutoConfig, AutoModelForTokenClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **more)
    return AutoModelForTokenClassification.from_config(config).eval()


def tree(sequences: int) -> list[list[int]]:
    """Sequences of up to 40 tokens that branch off one another."""
    rng = np.random.default_rng(0)
    found = [rng.integers(0, 50, 30).tolist()]
    for _ in range(sequences - 1):
        parent = found[rng.integers(len(found))]
        found.append(parent[: rng.integers(1, len(parent) + 1)] + rng.integers(0, 50, rng.integers(1, 10)).tolist())
    return [sequence[:40] for sequence in found]


@pytest.mark.parametrize("run", [1, 7, 64])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 40}),
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 8}),
    ],
)
@torch.inference_mode()
def test_every_node_is_as_alone(family: str, more: dict[str, Any], run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "RUN", run)
    model, sequences = verifier(family, **more), tree(20)
    expected = [model.base_model(input_ids=torch.tensor([s])).last_hidden_state[0] for s in sequences]
    backbone = Backbone(model)
    (forest,) = forests(sequences, range(len(sequences)), 10_000)
    everywhere = np.arange(len(forest.ids))
    hidden = backbone(forest, everywhere)
    some = np.unique([path[-1] for path in forest.paths])
    assert torch.allclose(backbone(forest, some), hidden[some], atol=1e-5)
    for member, path in zip(forest.members, forest.paths, strict=True):
        assert torch.allclose(hidden[path], expected[member], atol=1e-5)


@torch.inference_mode()
def test_half_precision_stays_close() -> None:
    model, sequences = verifier("mistral", sliding_window=None), tree(10)
    (forest,) = forests(sequences, range(len(sequences)), 10_000)
    places = np.arange(len(forest.ids))
    exact = Backbone(model)(forest, places)
    half = Backbone(verifier("mistral", sliding_window=None).bfloat16())(forest, places)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().mean() < 0.02


@torch.inference_mode()
def test_a_head_may_be_computed_in_single_precision_from_half_precision_states() -> None:
    model = verifier("llama").bfloat16()
    head = scalar_head(model)

    class Upcast(type(model)):
        def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
            states = self.model(input_ids=input_ids).last_hidden_state
            return SimpleNamespace(logits=torch.nn.functional.linear(states.float(), head.weight.float()) + head.bias)

    model.__class__ = Upcast
    assert model(torch.tensor([[1, 2]])).logits.dtype == torch.float32
    backbone_of(model, head, "m")


def test_a_model_of_another_build_is_refused() -> None:
    from transformers import AutoConfig, AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=32, n_head=2))
    with pytest.raises(UserError, match="GPT2Model has no decoder layers with self_attn and mlp"):
        Backbone(model)


@pytest.mark.parametrize("family", ["mistral", "phi3", "mixtral", "stablelm", "gpt2"])
@torch.inference_mode()
def test_families_are_read_as_alone(family: str) -> None:
    model, sequences = verifier(family), tree(12)
    expected = [model.base_model(input_ids=torch.tensor([s])).last_hidden_state[0] for s in sequences]
    made, plain = backbone_of(model, scalar_head(model), "m")
    assert isinstance(made, Backbone) == (family in BY_RUNS)
    (forest,) = forests(sequences, range(len(sequences)), 10_000)
    hidden = made(forest, np.arange(len(forest.ids)))
    some = np.unique([path[-1] for path in forest.paths])
    for member, path in zip(forest.members, forest.paths, strict=True):
        assert torch.allclose(hidden[path], expected[member], atol=2e-5)
    assert torch.allclose(plain(forest, some), hidden[some], atol=2e-5)


def test_what_reads_both_ways_is_refused() -> None:
    model = verifier("bert")
    with pytest.raises(UserError, match=r"model 'm' .* does not read a sequence as it does beside others"):
        backbone_of(model, scalar_head(model), "m")


@torch.inference_mode()
def test_many_keys_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = verifier("mistral", sliding_window=None), tree(20)
    (forest,) = forests(sequences, range(len(sequences)), 10_000)
    places, backbone = np.arange(len(forest.ids)), Backbone(model)
    whole = backbone(forest, places)
    monkeypatch.setattr(layouts, "KEYS", 100)
    assert len(layouts.View(forest, places, whole.device, whole.dtype).read) > 5
    assert torch.allclose(backbone(forest, places), whole, atol=1e-5)


def test_numbers_of_rows_cost_no_memory() -> None:
    """oneDNN keeps code for every shape: 512 of them would be a quarter of a gigabyte."""
    linear = torch.nn.Linear(256, 256)
    layers = torch.nn.Sequential(linear)
    layouts.pack_linear(layers)
    rows = torch.randn(1, 512, 256)
    with torch.inference_mode():
        expected = linear(rows)
        layers(rows)
        before = psutil.Process().memory_full_info().uss
        for count in range(1, 513):
            torch.testing.assert_close(layers(rows[:, :count]), expected[:, :count], rtol=1e-4, atol=1e-4)
        assert psutil.Process().memory_full_info().uss - before < 64 << 20
