"""DeepSpeed: the engine around an objective, its optimizer step, and the full weights out of it."""

from typing import Any

import torch

from minos_ray.config.resources import Workers
from minos_ray.config.training import Train
from minos_ray.training import models, vocabulary
from minos_ray.training.base import persistent
from minos_ray.training.losses import Objective
from minos_ray.training.vocabulary import backbone_of
from minos_ray.work.actor import long_lived_imports


def prepare(gpu: bool) -> None:
    """To be called before deepspeed is imported: on CPUs nothing is compiled; libraries log errors only."""
    import os

    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    with long_lived_imports("deepspeed"):
        import deepspeed.ops
        import transformers.models.auto.modeling_auto  # noqa: F401 what loading a model imports
        from deepspeed.utils import logger
        from transformers.utils import logging

    if not gpu:
        deepspeed.ops.__compatible_ops__ = {}
    logger.setLevel("ERROR")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def start(objective: Objective, section: Train, workers: Workers) -> Any:
    """An engine whose `step()` ends an accumulation of any number of `backward()`."""
    import deepspeed

    if section.lora is not None:
        models.attach(objective, section.lora, section.seed)
    if workers.zero < 3:  # whose shards DeepSpeed gathers by its own linear function
        vocabulary.take_layers(backbone_of(objective.model))
    if workers.gradient_checkpointing:
        objective.model.gradient_checkpointing_enable({"use_reentrant": False})
    # The loop sets the rate of each step; a rate of 0 until then: DeepSpeed's own first step must not decay weights.
    optimizer = torch.optim.AdamW(parameter_groups(objective, section.weight_decay), lr=0.0, fused=True)
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings(section, workers))
    # In bf16 without ZeRO, DeepSpeed 0.19 makes the state by a step without gradients, and Adam's bias correction would
    # count it: the first update was a quarter too small.
    for state in optimizer.state.values():
        state["step"].zero_()
    if section.precision == "bf16" and not workers.zero:
        # Gradients of bf16 weights are added up in fp32: in bf16 a sum over many packs stops growing. With ZeRO the
        # settings say so; without it DeepSpeed 0.19 has no setting, and its own first step needs bf16 gradients.
        for parameter in objective.parameters():
            parameter.grad_dtype = torch.float32
    return engine


def update(engine: Any) -> None:
    """One optimizer step.

    What no pack has used (an expert) gets a gradient of zero: DeepSpeed would make one in bf16, and torch accepts fp32
    only where `grad_dtype` is set.
    """
    for parameter in engine.module.parameters():
        if parameter.requires_grad and parameter.grad is None and parameter.grad_dtype != parameter.dtype:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
    engine.step()


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """What is trained: matrices decay, norms and biases do not. No group is empty, DeepSpeed could not flatten it."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    # A parameter that ZeRO 3 has partitioned is empty; its true shape is beside it.
    matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) > 1]
    vectors = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def settings(section: Train, workers: Workers) -> dict[str, Any]:
    """DeepSpeed's configuration. The loop owns accumulation: a step has as many micro-batches as it needs.

    Gradients are added up, over packs and over ranks, in fp32.
    """
    sums = {"data_types": {"grad_accum_dtype": "fp32"}} if workers.zero else {}
    # Where the optimizer's state, and with ZeRO 3 the weights, live between their uses.
    host = {"device": "cpu", "pin_memory": workers.gpu}
    offload = {"offload_optimizer": host} if workers.offload != "none" else {}
    offload |= {"offload_param": host} if workers.offload == "all" else {}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": section.clip,
        "bf16": {"enabled": section.precision == "bf16"},
        "communication_data_type": "fp32",
        **sums,
        # In fp32 as many bytes as DeepSpeed's own 5e8 in bf16.
        "zero_optimization": {"stage": workers.zero, "reduce_bucket_size": 250_000_000, **offload},
        # torch's fused AdamW runs on host memory as well; DeepSpeed's own would have to be compiled on every node.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def full_weights(engine: Any, zero: int) -> dict[str, torch.Tensor]:
    """Every weight of the transformers model and every saved buffer, on the CPU of rank 0 (empty elsewhere).

    All ranks must call it.
    """
    import contextlib

    import deepspeed

    state = {}
    for name, weight in engine.module.model.named_parameters():
        gathered = deepspeed.zero.GatheredParameters([weight]) if zero == 3 else contextlib.nullcontext()
        with gathered:
            if engine.global_rank == 0:
                state[name] = weight.detach().to("cpu", copy=True)
    if engine.global_rank == 0:
        state |= {name: buffer.to("cpu", copy=True) for name, buffer in persistent(engine.module.model).items()}
    return state
