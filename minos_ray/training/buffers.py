"""What a model holds beside its parameters (rotary frequencies, slopes, scales), exact under ZeRO 3.

DeepSpeed's `zero.Init` rounds every floating tensor that is made inside it to the precision of the training, also one
that the model wants in fp32. So the model is made once more outside of it, with parameters that take no memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from minos_ray.errors import UserError
from minos_ray.training.stored import Stored


@contextmanager
def without_memory() -> Iterator[None]:
    """Models made inside have parameters on torch's meta device; everything else is real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def copy(exact: Any, model: nn.Module) -> None:
    """Gives every module of `model` the buffers and other tensors of the same module of `exact`, on its own device.

    Values are computed once more as `from_pretrained` does, outside the precision that `from_config` makes the default.
    """
    for module in exact.modules():
        module._is_hf_initialized = False
    exact.initialize_weights()
    for source, target in zip(exact.modules(), model.modules(), strict=True):
        for name, buffer in source._buffers.items():
            target._buffers[name] = moved(buffer, target._buffers[name])
        for name, value in vars(source).items():
            if isinstance(value, torch.Tensor):
                setattr(target, name, moved(value, getattr(target, name)))


def moved(exact: torch.Tensor | None, rounded: torch.Tensor | None) -> torch.Tensor | None:
    """The exact tensor where the rounded one lies."""
    return exact if exact is None or rounded is None else exact.to(rounded.device)


def persistent(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers that are saved with the weights, by name."""
    saved = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name in saved}


def fill(model: Any, weights: Stored, path: str) -> None:
    """Puts the stored values into the buffers that are saved with the weights; UserError when some are missing."""
    for name, buffer in persistent(model).items():
        if name not in weights:
            raise UserError(f"base.model: {path} has no values for '{name}'; resources.train.zero below 3 may do")
        buffer.copy_(weights[name])
