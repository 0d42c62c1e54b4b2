"""What a training on CPUs takes of this machine's memory, from the sizes in the base model's own files."""

import json
import os
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minos_ray.cluster.bundles import bundles, room
from minos_ray.cluster.connect import joins
from minos_ray.config.resources import Resources
from minos_ray.config.schema import Config
from minos_ray.errors import UserError
from minos_ray.store.model_files import locate, parameters
from minos_ray.store.run import Run

if TYPE_CHECKING:
    from minos_ray.training.memory import Shape

GB = 1e9
# A worker of Ray Train that has loaded torch, transformers and DeepSpeed, before any model.
PROCESS_GB = 0.8
CGROUP = Path("/sys/fs/cgroup/memory.max")


class Need(NamedTuple):
    """GB of each worker of a training: for the model, its gradients and its optimizer, and with a pass of
    `resources.train.micro_tokens`, which few rows do not fill."""

    training: str
    model: float
    full: float


def needs(config: Config, run: Run, stages: Set[str]) -> Iterator[Need]:
    """Of the trainings to be done, where they are on CPUs and the base model lies here."""
    shape = (
        shape_of_base(config, run) if stages & {"sft", "refine", "reward"} and not config.resources.train.gpu else None
    )
    if shape is None:
        return
    from minos_ray.training import memory

    for name, section, kind in memory.trainings(config, stages):
        gb = memory.estimate(shape, section, config.resources.train, kind)
        held = gb.parameters + gb.gradients + gb.optimizer + gb.host + PROCESS_GB
        yield Need(name, held + gb.update, held + max(gb.update, gb.activations))


def shape_of_base(config: Config, run: Run) -> "Shape | None":
    """The sizes of the base model, None where its files do not tell them."""
    size = parameters(config.base, run)
    if not size:
        return None
    from minos_ray.training.memory import Shape

    try:
        values = json.loads((Path(locate(config.base, run)) / "config.json").read_bytes())
        values = values.get("text_config") or values
        hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
        kv = (values.get("num_key_value_heads") or heads) * (values.get("head_dim") or hidden // heads)
        inner = values.get("intermediate_size") or 4 * hidden
        layers, words = int(values["num_hidden_layers"]), int(values["vocab_size"])
        return Shape(size, layers, hidden, int(inner), int(kv), words)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError):  # a problem of the base model
        return None


def machine_gb() -> float:
    """Memory of this machine, or of the container in it."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return (min(physical, int(limit)) if limit.isdigit() else physical) / GB


def estimates(config: Config, run: Run, stages: Set[str]) -> Iterator[str]:
    """A line for each training."""
    workers = config.resources.train
    for need in needs(config, run, stages):
        yield (
            f"resources.train: {need.training} needs about {need.model:.1f} GB of memory for each of {workers.workers} "
            f"workers on CPUs, up to {need.full:.1f} with passes of {workers.micro_tokens} tokens (micro_tokens)"
        )


def startable(resources: Resources) -> int:
    """Workers that a Ray of this machine would start, which heeds a container's limit of CPUs."""
    workers = resources.train
    if workers.least == workers.most:
        return workers.least
    from ray._private.utils import get_num_cpus

    cpus = {"CPU": float(resources.num_cpus or get_num_cpus(override_docker_cpu_warning=True))}
    return max(workers.least, room(bundles(workers).without_conditions()._replace(count=workers.most), [cpus]))


def require_memory(config: Config, run: Run, stages: Set[str]) -> None:
    """UserError when this machine, if it is to train, cannot even hold the models of the workers that would start."""
    if joins(config.resources):
        return
    workers, count, available = config.resources.train, startable(config.resources), machine_gb()
    train = workers.model_copy(update={"workers": count})
    config = config.model_copy(update={"resources": config.resources.model_copy(update={"train": train})})
    for need in needs(config, run, stages):
        if (total := need.model * count) > available:
            less = "set lora, take a smaller base model, or train on GPUs"
            if count > 1 and workers.zero < 3:
                less = "set resources.train.zero: 3, take fewer workers, or lora"
            raise UserError(
                f"resources.train: {need.training} needs at least {total:.1f} GB of memory for {count} "
                f"workers on CPUs, this machine has {available:.1f}; {less}"
            )
