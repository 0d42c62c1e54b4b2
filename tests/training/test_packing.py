"""Packed rows give what each row gives alone, in models of several families."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minos_ray.training import packing

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def model(family: str, **more: Any) -> Any:
    """A random model of a family."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(family, **SIZES, **more))


def alone(backbone: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    """Each row through the model as transformers runs it."""
    return torch.cat([backbone(input_ids=row[None], use_cache=False).last_hidden_state[0] for row in rows])


def together(backbone: Any, rows: list[torch.Tensor]) -> torch.Tensor:
    """All rows packed."""
    packing.use(backbone)
    packed = packing.Packed(torch.tensor([len(row) for row in rows]))
    ids = torch.cat(rows)[None]
    out = backbone(input_ids=ids, position_ids=packed.position_ids, packed=packed, use_cache=False)
    return out.last_hidden_state[0]


def random_rows(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 4}),
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 8}),
    ],
)
def test_packed_is_as_alone(family: str, more: dict[str, Any]) -> None:
    backbone, rows = model(family, **more), random_rows([7, 1, 13, 2, 13])
    expected = alone(backbone, rows)
    torch.testing.assert_close(together(backbone, rows), expected, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    rows = random_rows([5, 9, 3])
    gradients = []
    for again in (False, True):
        backbone = model("mistral", sliding_window=None).train()
        if again:
            backbone.gradient_checkpointing_enable({"use_reentrant": False})
        together(backbone, rows).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in backbone.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
@settings(max_examples=40)
def test_grid_and_back_are_inverse(lengths: list[int]) -> None:
    packed = packing.Packed(torch.tensor(lengths))
    tokens = torch.arange(sum(lengths))
    assert torch.equal(packed.grid[packed.in_grid], tokens)
    assert packed.position_ids[0].tolist() == [place for length in lengths for place in range(length)]


def test_a_change_in_one_row_moves_no_other() -> None:
    backbone, rows = model("mistral", sliding_window=None), random_rows([6, 6, 6])
    before = together(backbone, rows)
    rows[1] = (rows[1] + 1) % 50
    after = together(backbone, rows)
    same = (before == after).all(-1)
    assert same[:6].all() and same[12:].all() and not same[6:12].any()
