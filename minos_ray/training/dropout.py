"""The base model's own randomness in training, switched off: what is trained is the function that is scored with.

Dropout of a model (GPT-2, Phi-2: 0.1) is drawn by rank and pack, so two layouts of one step would train different
functions; the only dropout here is drawn by place (`losses.kept`), and LoRA's own.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

# Noise on what the experts of Mixtral, MiniMax, Phi-MoE and DBRX read.
JITTER = ("jitter_noise", "input_jitter_noise", "moe_jitter_eps")
# Routers that draw the experts of a token by chance in training (SparseMixer), without a share that could be 0.
DRAWING = ("PhimoeTopKRouter",)
Share = tuple[Any, str, float]


def switch_off(model: nn.Module) -> list[Share]:
    """Sets all shares of dropout, layer drop and jitter in a transformers model to 0, also in its configs, which some
    attention reads at each call; routers that draw experts draw no more. Returns what was in the configs, for
    `put_back`."""
    for module in model.modules():
        names = ("p",) if isinstance(module, nn.modules.dropout._DropoutNd) else shares(module, JITTER)
        for name in names:
            setattr(module, name, 0.0)
        if type(module).__name__ in DRAWING:
            stay_in_evaluation(module)
    configs = {id(config): config for module in model.modules() for config in with_parts(getattr(module, "config", 0))}
    had = [(config, name, getattr(config, name)) for config in configs.values() for name in shares(config)]
    for config, name, _ in had:
        setattr(config, name, 0.0)
    return had


def stay_in_evaluation(module: nn.Module) -> None:
    """The module computes what it computes in evaluation, also when its model is set to training."""
    module.eval()
    module.train = lambda mode=True: module  # type: ignore[method-assign]


def put_back(had: list[Share]) -> None:
    """The configs as they were: a saved model says what its base says."""
    for config, name, value in had:
        setattr(config, name, value)


def shares(owner: Any, more: tuple[str, ...] = ()) -> list[str]:
    """Attributes that hold such a share; numbers called `..._drop...` elsewhere are whole ones or truth values."""
    return [
        name for name, value in vars(owner).items() if isinstance(value, float) and ("drop" in name or name in more)
    ]


def with_parts(config: Any) -> Iterator[Any]:
    """A config of transformers and the configs inside; none for anything else."""
    from transformers import PreTrainedConfig

    if isinstance(config, PreTrainedConfig):
        yield config
        for value in vars(config).values():
            yield from with_parts(value)
