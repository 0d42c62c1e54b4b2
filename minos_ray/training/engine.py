"""DeepSpeed: the engine around an objective, its optimizer step, and the full weights out of it; and collectives that
do not end: a limit for each, and which worker is waited for.

On GPUs the limit of a collective is that of NCCL's watchdog, which ends the process; Ray Train's detector speaks before
it (`trainer`).
"""

import traceback
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from minos_ray.config.resources import Workers
from minos_ray.config.training import Train
from minos_ray.errors import WorkStopped
from minos_ray.training import models, vocabulary
from minos_ray.training.base import persistent
from minos_ray.training.losses import Objective
from minos_ray.training.vocabulary import backbone_of
from minos_ray.units.actor import long_lived_imports

# How long a worker whose collective has timed out waits for the others to say the same, at least.
GRACE_S = 10.0
# Where the functions are that wait for other workers: torch's, DeepSpeed's around them, Ray Train's.
PLACES = ("torch/distributed/", "deepspeed/comm/", "ray/train/v2/_internal/execution/collective_impl.py")


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


def limit_all(seconds: float) -> None:
    """Limits the collectives of groups that are made later (DeepSpeed's); that of all workers has its limit from Ray.

    DeepSpeed 0.19 gives `new_group` no limit, so that it takes torch's default.
    """
    limit = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = limit


def addresses() -> list[str]:
    """The address of each worker's node; every rank must call it."""
    import ray

    values: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(values, ray.util.get_node_ip_address())
    return values


def hang(error: BaseException, limit_s: float, nodes: list[str], place: str) -> WorkStopped | None:
    """In one line, which workers a collective has waited for in vain; None for every other error.

    Every worker that is there gets such an error and says so. Who says nothing is who was waited for.
    """
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames if any(place in frame.filename for place in PLACES)]
    name = next((name for name in names if "wrapper" not in name), None)
    if name is None or "timed out" not in str(error).lower():
        return None
    silent = ", ".join(f"{rank + 1} of {len(nodes)} ({nodes[rank]})" for rank in silent_ranks(limit_s))
    who = f"worker {silent} does not answer" if silent else "all workers answer, but too late"
    return WorkStopped(f"{who}: {name} {place} waited {limit_s:g} s (resources.train.collective_timeout_s)")


def silent_ranks(limit_s: float) -> list[int]:
    """Those that do not call this within a tenth of the limit; 0 alone when it does not answer, for it has the list.

    They may have begun the collective later than this one, and so time out later.
    """
    store, grace = distributed_c10d._get_default_store(), timedelta(seconds=max(GRACE_S, limit_s / 10))
    silent = []
    try:
        store.set_timeout(grace)
        store.set(f"minos/{dist.get_rank()}", "timed out")
        store.wait(["minos/0"], grace)
    except RuntimeError:  # torch's DistStoreError and DistNetworkError
        return [0]
    for rank in range(dist.get_world_size()):
        try:
            store.wait([f"minos/{rank}"], timedelta(seconds=0.1) if silent else grace)
        except RuntimeError:
            silent.append(rank)
    return silent
