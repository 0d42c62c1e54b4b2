"""Linear layers whose matrix products oneDNN computes, where torch's own are slow.

On CPUs torch gives products in fp32 to MKL, which has no AVX-512 code for AMD's processors: on a core of Zen 5 it
computes 110 GFLOP/s, and oneDNN, which comes with torch as well, 230 (`benchmarks/LOG.md`). vLLM's build for CPUs uses
oneDNN for its layers too. The operator is the one that torch.compile emits for a linear layer; it has no gradient.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn


class OneDnnLinear(nn.Linear):
    """A linear layer in fp32 on a CPU."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features]."""
        return Product.apply(input, self.weight, self.bias)


class Product(torch.autograd.Function):
    """`functional.linear` and its gradients."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """[..., inputs], [outputs, inputs], [outputs] to [..., outputs]."""
        ctx.save_for_backward(input, weight)
        return linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients that are needed."""
        (gradient,), (input, weight) = output_gradients, ctx.saved_tensors
        of_input, of_weight, of_bias = ctx.needs_input_grad
        rows, inputs = (values.reshape(-1, values.shape[-1]) for values in (gradient, input))
        return (
            linear(gradient, weight.T) if of_input else None,
            linear(rows.T, inputs.T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear` by oneDNN, without gradients; of nothing, by torch, since oneDNN raises."""
    if not input.numel():
        return nn.functional.linear(input, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`functional.linear` without gradients, by oneDNN where that is faster."""
    on_cpu = (input.device.type, input.dtype) == ("cpu", torch.float32)
    return (linear if on_cpu and is_faster() else nn.functional.linear)(input, weight, bias)


@cache
def is_faster() -> bool:
    """Whether this machine has AMD's processors with AVX-512."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def take_over(backbone: nn.Module) -> None:
    """Makes the plain linear layers of a model in fp32 on the CPU `OneDnnLinear` in place, where that is faster."""
    if not is_faster():
        return
    for module in backbone.modules():
        if type(module) is nn.Linear and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.float32):
            module.__class__ = OneDnnLinear
