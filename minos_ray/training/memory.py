"""What a training needs on each GPU, before anything is loaded: parameters, gradients, optimizer, activations.

Bytes per parameter after ZeRO (Rajbhandari et al. 2020, section 3); activations counted from what autograd keeps of a
decoder layer with flash attention and a gated MLP.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from minos_ray.cluster import nodes
from minos_ray.cluster.connect import joins
from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Reward, Train
from minos_ray.errors import UserError
from minos_ray.store.model_files import LOADING, locate
from minos_ray.store.run import Run
from minos_ray.training import models

ADAM = 8  # two moments in fp32
MASTER = 4  # the fp32 copy of weights trained in bf16
SUM = 4  # gradients are added up in fp32
CHUNK_BYTES = 2**26  # of logits, as `vocabulary.CHUNK_BYTES`
LIVE = 10**9  # DeepSpeed's stage3_max_live_parameters and sub_group_size
# CUDA context, buffers of NCCL and of DeepSpeed's buckets, fragmentation.
OVERHEAD_GB = 3.0
GB = 1e9
STAGES = frozenset({"sft", "reward"})


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder; `linears` as `models.linears` gives them."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv: int
    vocabulary: int
    head: int = 0  # parameters of a vocabulary head of its own
    linears: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """GB on one GPU, and in the memory of its node for each GPU when something is offloaded."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    host: float = 0.0
    update: float = 0.0  # the gradients again, while they are applied: activations are gone by then

    @property
    def gpu(self) -> float:
        """All that must fit on the GPU."""
        held = self.parameters + self.gradients + self.optimizer
        return held + max(self.activations, self.update) + OVERHEAD_GB


def shape(config: Any, trust_remote_code: bool = False) -> Shape:
    """The sizes that a transformers config names; parameters are counted on a model without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    with LOADING, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    config = config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        kv=groups * head,
        vocabulary=config.vocab_size,
        head=0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size,
        linears=models.linears(model),
    )


def estimate(model: Shape, section: Train, workers: Workers, kind: str) -> Estimate:
    """The peak of one training step of one worker; `kind` is lm, orm or prm."""
    size = 2 if section.precision == "bf16" else 4
    ranks = workers.least  # with more, each has less of it
    # A verifier with a language loss trains the vocabulary head along.
    with_head = kind == "lm" or (isinstance(section, Reward) and section.lm_weight > 0)
    backbone = model.parameters - (0 if with_head else model.head)
    added, trained = 0, backbone
    if section.lora is not None:
        added = models.adapter_size(section.lora, model.linears)
        trained = added + (0 if with_head else model.hidden)
    # DeepSpeed keeps a copy of the weights in fp32 under bf16, and under ZeRO 1 and 2 always.
    copied = size == 2 or workers.zero in (1, 2)
    optimizer = trained * (ADAM + (MASTER if copied else 0)) / (ranks if workers.zero >= 1 else 1)
    gradients, update = gradient_bytes(trained, size, workers)
    # Beside an optimizer in host memory lie the gradients that its rank applies.
    aside = gradients if workers.offload != "none" and workers.zero >= 2 else 0
    parameters = (backbone + added) * size / (ranks if workers.zero == 3 else 1)
    host = aside + (optimizer if workers.offload != "none" else 0) + (parameters if workers.offload == "all" else 0)
    # Partitioned weights are gathered layer by layer, and kept while so many more are not needed before them.
    gathered = max(2 * model.parameters / model.layers, min(backbone, LIVE)) * size if workers.zero == 3 else 0
    return Estimate(
        parameters=(gathered + (0 if workers.offload == "all" else parameters)) / GB,
        gradients=(gradients - aside) / GB,
        optimizer=(0 if workers.offload != "none" else optimizer) / GB,
        activations=activation_bytes(model, workers, with_head, size) / GB,
        host=host / GB,
        update=(update if workers.offload == "none" else 0) / GB,
    )


def gradient_bytes(trained: int, size: int, workers: Workers) -> tuple[float, float]:
    """Of the gradients' sums in fp32, and of their copy while they are applied; as DeepSpeed 0.19 keeps them."""
    sums, copied = SUM * trained, SUM * trained / workers.least
    if workers.zero == 0:
        return sums, 0
    if workers.zero == 1:
        # Sums of all weights; those of a pass in bf16 stay beside them, and DeepSpeed then applies its part in place.
        return (sums + size * trained, 0) if size == 2 else (sums, copied)
    return copied, copied if workers.zero == 2 else min(copied, SUM * LIVE)


def activation_bytes(model: Shape, workers: Workers, with_head: bool, size: int) -> float:
    """Of what autograd keeps for one packed micro-batch, and of the vocabulary's logits."""
    # Residuals, norms, queries and attention output: 9 hidden; keys and values, rotated too: 3; the MLP: 4.
    layer = size * (9 * model.hidden + 3 * model.kv + 4 * model.intermediate)
    checkpointed = model.layers * size * model.hidden + layer
    per_token = checkpointed if workers.gradient_checkpointing else model.layers * layer
    # The vocabulary head works chunk by chunk, with the gradient of its weights in fp32 (`vocabulary`).
    head = 3 * CHUNK_BYTES + SUM * model.vocabulary * model.hidden if with_head else 0
    return workers.micro_tokens * per_token + head


def plans(workers: Workers) -> Iterator[Workers]:
    """The plan itself, then ones that need less and less of the GPU, the cheapest change first."""
    yield workers
    changes: dict[str, Any] = {"gradient_checkpointing": True}
    yield workers.model_copy(update=changes)
    for zero in range(max(workers.zero, 1) + 1, 4):
        changes["zero"] = zero
        yield workers.model_copy(update=changes)
    for offload in ("optimizer", "all"):
        changes |= {"zero": 3, "offload": offload}
        yield workers.model_copy(update=changes)
    tokens = workers.micro_tokens
    while tokens > 1024:
        tokens //= 2
        yield workers.model_copy(update=changes | {"micro_tokens": tokens})


def first_fit(model: Shape, section: Train, workers: Workers, kind: str, gpu_gb: float) -> Workers | None:
    """The first plan that fits into so many GB, None when none does."""
    return next((plan for plan in plans(workers) if estimate(model, section, plan, kind).gpu <= gpu_gb), None)


def trainings(config: Config, todo: Set[str]) -> list[tuple[str, Train, str]]:
    """Name, section and kind of the stages to be done."""
    return [(name, section, "prm" if name == "reward" else "lm") for name, section in config.trainings(todo)]


def summary(config: Config, run: Run, todo: Set[str] = STAGES) -> Iterator[str]:
    """A line for each stage to be done; UserError when the base model is not there."""
    model, workers = shape_of(config.base, run), config.resources.train
    for name, section, kind in trainings(config, todo):
        e = estimate(model, section, workers, kind)
        host = f" and {e.host:.1f} GB of host memory for each" if e.host else ""
        yield (
            f"resources.train: {name} needs about {e.gpu:.1f} GB on each GPU (weights {e.parameters:.1f}, gradients "
            f"{e.gradients:.1f}, optimizer {e.optimizer:.1f}, activations {e.activations:.1f}, the rest "
            f"{OVERHEAD_GB:.1f}){host}"
        )


def check(config: Config, run: Run, todo: Set[str] = STAGES) -> None:
    """UserError when a GPU of `resources.train.gpu_memory_gb`, or of this machine if it is to train, cannot hold it."""
    workers = config.resources.train
    gpu_gb = workers.gpu_memory_gb or (None if joins(config.resources) else nodes.gpu_memory_gb())
    model = shape_of(config.base, run)
    for name, section, kind in trainings(config, todo):
        require_room(name, model, section, workers, kind, gpu_gb)


def require_room(name: str, model: Shape, section: Train, workers: Workers, kind: str, gpu_gb: float | None) -> None:
    """UserError when GPUs of so many GB cannot hold one training, with the first plan that fits."""
    needed = estimate(model, section, workers, kind).gpu
    if gpu_gb is not None and needed > gpu_gb:
        plan = first_fit(model, section, workers, kind, gpu_gb)
        raise UserError(
            f"resources.train: {name} needs about {needed:.0f} GB on each GPU, which has {gpu_gb:.0f} "
            f"(resources.train.gpu_memory_gb, else what nvidia-smi says); {advice(workers, plan)}"
        )


def advice(workers: Workers, plan: Workers | None) -> str:
    """What to change so that the training fits."""
    if plan is None:
        return "no setting fits: take more workers"
    present = workers.model_dump()
    changes = {key: value for key, value in plan.model_dump().items() if value != present[key]}
    return "this fits: " + " ".join(f"resources.train.{key}={value}" for key, value in changes.items())


def shape_of(model: Model, run: Run) -> Shape:
    """The sizes of a model, from its config alone."""
    from transformers import AutoConfig

    trusted = model.trust_remote_code
    return shape(AutoConfig.from_pretrained(locate(model, run), trust_remote_code=trusted), trusted)
