"""Before a training the model is tried out: what packed rows would change is trained on padded ones, or refused."""

from typing import Any

import pytest
import torch

from minos_ray.errors import UserError
from minos_ray.training.objective import PACKED, Objective, choose_way
from minos_ray.training.packing import pack
from tests.training.test_packing import SIZES


def objective(family: str, **more: Any) -> Objective:
    """Around a random language model of a family, with weights large enough that every difference shows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, initializer_range=0.3, pad_token_id=0, **more)
    return Objective(AutoModelForCausalLM.from_config(config), "lm")


def choose(tried: Objective, packing: str = "auto") -> str | None:
    return choose_way(lambda rows, few: tried(*map(torch.from_numpy, pack(rows, few))), tried, packing, "mine")


def test_a_model_that_can_be_packed_is_and_nothing_is_said() -> None:
    tried = objective("llama").train()
    assert choose(tried) is None and tried.way == PACKED and tried.training


@pytest.mark.parametrize(
    ("family", "more", "reason"),
    [
        ("falcon", {}, "not of transformers' attention interface"),
        ("stablelm", {}, "its attention has"),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}, "kind conv"),
        ("mamba", {}, "kind linear_attention"),
    ],
)
def test_another_is_padded_and_one_line_says_why(family: str, more: dict[str, Any], reason: str) -> None:
    tried = objective(family, **more)
    said = choose(tried)
    assert not tried.way.packed
    assert said is not None and "\n" not in said and "mine" in said and reason in said


def test_packing_on_refuses_what_cannot_be_packed() -> None:
    with pytest.raises(UserError, match=r"resources\.train\.packing: on: model 'mine' \(FalconForCausalLM\)"):
        choose(objective("falcon"), "on")
    tried = objective("llama")
    assert choose(tried, "on") is None and tried.way == PACKED


def test_packing_off_is_padded_without_a_word() -> None:
    tried = objective("llama")
    assert choose(tried, "off") is None and not tried.way.packed and not tried.way.by_model


def test_a_model_that_looks_ahead_is_refused() -> None:
    with pytest.raises(UserError, match="is not trained as transformers computes it"):
        choose(objective("bert"))


def test_a_keyword_of_attention_that_nobody_knows_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.LlamaAttention.forward
    monkeypatch.setattr(
        modeling_llama.LlamaAttention, "forward", lambda self, *args, **more: plain(self, *args, **more, slopes=1)
    )
    tried = objective("llama")
    assert "its attention wants slopes" in (choose(tried) or "") and not tried.way.packed
