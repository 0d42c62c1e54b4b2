"""Where a verifier is computed, and how its memory is given back before the next one is loaded."""

import gc

from minos_ray.errors import UserError


def device(gpus: float, available: bool) -> str:
    """`cuda` for an actor that has been given GPUs, else `cpu`, also on a machine that has some: Ray hides none from an
    actor that asked for none, and what it would take belongs to others. UserError when there is none to be seen.
    """
    if gpus and not available:
        raise UserError(
            f"resources.score.gpus = {gpus:g}, but torch sees no GPU here (a build for CPUs, or no driver); "
            "set resources.score.gpus: 0 or install torch for CUDA"
        )
    return "cuda" if gpus else "cpu"


def device_of(gpus: float) -> str:
    """The device of this process."""
    import torch

    return device(gpus, torch.cuda.is_available())


def give_back() -> None:
    """Frees the memory of a model that nobody refers to any more: cycles keep it, and torch keeps what it once had."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
