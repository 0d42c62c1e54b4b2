"""What GPUs of a known size cannot hold: trainings, and engines whose weights alone are too much."""

import math
from collections.abc import Iterator, Mapping, Set

from minos_ray.cluster.bundles import Bundles
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.pipeline.compare import GB
from minos_ray.pipeline.estimate import engine_bytes
from minos_ray.store.model_files import is_hub_id
from minos_ray.store.run import Run


def base_is_here(config: Config) -> bool:
    """Whether the base model is neither on a hub nor still to be made."""
    return not is_hub_id(config.base.model) and not config.base.model.startswith("run:")


def memory_matters(config: Config, todo: Set[str]) -> bool:
    """Whether GPUs will train a model whose sizes are known here and now."""
    return config.resources.train.gpu and bool(todo & {"sft", "reward"}) and base_is_here(config)


def trainings_too_large(config: Config, run: Run, todo: Set[str], gpu_gb: float) -> Iterator[str]:
    """The training that GPUs of a cluster cannot hold, if they have less than `resources.train.gpu_memory_gb` says.

    What does not fit into that much is refused elsewhere.
    """
    workers = config.resources.train
    if gpu_gb >= (workers.gpu_memory_gb or math.inf) or not memory_matters(config, todo):
        return
    from minos_ray.training import memory

    told = workers.model_copy(update={"gpu_memory_gb": gpu_gb})
    resources = config.resources.model_copy(update={"train": told})
    try:
        memory.refuse(config.model_copy(update={"resources": resources}), run, todo)
    except UserError as error:
        yield str(error)


def engines_too_large(config: Config, run: Run, pools: Mapping[str, Bundles], gpu_gb: float) -> Iterator[str]:
    """Engines whose weights do not fit; a model that is still to be trained has the size of the base."""
    models = {"sample": config.generator, "score": config.base, "judge": config.base}
    for name, model in models.items():
        section = getattr(config.resources, name)
        if name not in pools or not section.gpus or model is None:
            continue
        weights = engine_bytes(model, run, section.dtype) / GB / section.gpus
        if weights > (usable := gpu_gb * section.gpu_memory_utilization):
            yield (
                f"resources.{name}: the weights of '{model.model}' take {weights:.2f} GB on each of {section.gpus} "
                f"GPUs, which offer {usable:.2f}; raise resources.{name}.gpus"
            )
