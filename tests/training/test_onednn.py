"""Linear layers computed by oneDNN give what torch's own do, with the same gradients."""

import pytest
import torch
from torch import nn

from minos_ray.training import vocabulary
from minos_ray.training.vocabulary import OneDnnLinear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (1, 37), (2, 1, 9), (0,), (2, 0)])
def test_a_layer_and_its_gradients_are_those_of_torch(
    shape: tuple[int, ...], bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "is_faster", lambda: True)
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias))
    model[0].load_state_dict(plain.state_dict())
    vocabulary.take_layers(model)
    assert isinstance(model[0], OneDnnLinear)
    # A transposed input too: what attention gives is not contiguous.
    for hidden in (torch.randn(*shape, 24), torch.randn(24, *shape).movedim(0, -1)):
        hidden.requires_grad_()
        expected, computed = plain(hidden), model(hidden)
        torch.testing.assert_close(computed, expected, rtol=1e-5, atol=1e-5)
        gradient = torch.randn_like(expected)
        pairs = zip(
            torch.autograd.grad(computed, [hidden, *model.parameters()], gradient),
            torch.autograd.grad(expected, [hidden, *plain.parameters()], gradient),
            strict=True,
        )
        for ours, right in pairs:
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)


def test_only_layers_in_fp32_on_the_cpu_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "is_faster", lambda: True)
    half, elsewhere = nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 4, device="meta")
    vocabulary.take_layers(nn.Sequential(half, elsewhere, nn.LayerNorm(4)))
    assert type(half) is nn.Linear and type(elsewhere) is nn.Linear


def test_a_frozen_layer_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the layers below a LoRA adapter."""
    monkeypatch.setattr(vocabulary, "is_faster", lambda: True)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    vocabulary.take_layers(model)
    model[0].requires_grad_(False)
    model(torch.randn(3, 4)).sum().backward()
    assert model[0].weight.grad is None and model[0].bias.grad is None
    assert model[1].weight.grad is not None
