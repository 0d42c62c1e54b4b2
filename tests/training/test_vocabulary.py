"""The loss over a vocabulary in chunks of places is that of all logits at once, and so are its gradients."""

import pytest
import torch
from torch import nn

from minos_ray.training import vocabulary
from minos_ray.training.vocabulary import Scales, take_over

PLACES, WIDTH, WORDS = 23, 16, 50
SCALES = {"plain": Scales(), "scaled": Scales(0.5, 0.125), "capped": Scales(1.0, 2.0, 3.0)}


def plain(hidden: torch.Tensor, head: nn.Linear, targets: torch.Tensor, scales: Scales) -> torch.Tensor:
    """The summed cross-entropy with all logits in memory."""
    logits = head(hidden * scales.before).float() * scales.after
    if scales.cap is not None:
        logits = scales.cap * torch.tanh(logits / scales.cap)
    return nn.functional.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("rows_of_a_chunk", [1, 5, 23, 1000])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", SCALES)
def test_chunks_change_neither_loss_nor_gradients(
    name: str, bias: bool, rows_of_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 4 * WORDS * rows_of_a_chunk)
    torch.manual_seed(0)
    head, hidden = nn.Linear(WIDTH, WORDS, bias=bias), torch.randn(PLACES, WIDTH, requires_grad=True)
    targets, places = torch.randint(WORDS, (PLACES,)), [hidden, *head.parameters()]
    expected = plain(hidden, head, targets, SCALES[name])
    gradients = torch.autograd.grad(3 * expected, places)
    assert take_over(head, SCALES[name])
    loss, logs = head(hidden, targets)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert -logs.sum().item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, right in zip(torch.autograd.grad(3 * loss, places), gradients, strict=True):
        assert gradient.dtype == right.dtype
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-6 * right.abs().max().item())


def test_the_gradient_of_a_head_in_bf16_is_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many chunks: a sum in bf16 would be off by far more than its rounding."""
    monkeypatch.setattr(vocabulary, "CHUNK_BYTES", 4 * WORDS)
    torch.manual_seed(0)
    count = 2000
    head, hidden = nn.Linear(WIDTH, WORDS, bias=False), torch.rand(count, WIDTH)
    targets = torch.randint(WORDS, (count,))
    head.to(torch.bfloat16)
    rounded = hidden.to(torch.bfloat16)
    exact = nn.Linear(WIDTH, WORDS, bias=False)
    exact.weight.data = head.weight.data.float()
    (right,) = torch.autograd.grad(plain(rounded.float(), exact, targets, Scales()), exact.parameters())
    assert take_over(head, Scales())
    (gradient,) = torch.autograd.grad(head(rounded, targets)[0], head.parameters())
    assert gradient.dtype == torch.bfloat16
    assert (gradient.float() - right).norm() < 0.01 * right.norm()
