"""What a training needs on each GPU, before anything is loaded: parameters, gradients, optimizer, activations.

Bytes per parameter after ZeRO (Rajbhandari et al. 2020, section 3); activations counted from what autograd keeps of a
decoder layer with flash attention and a gated MLP.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from minos_ray.cluster import probe
from minos_ray.cluster.connect import joins
from minos_ray.config.resources import Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import Train
from minos_ray.errors import UserError
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run
from minos_ray.training import lora

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
    """The sizes of a decoder; `linears` as `lora.linears` gives them."""

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

    with torch.device("meta"):
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
        linears=lora.linears(model),
    )


def estimate(of: Shape, section: Train, workers: Workers, kind: str) -> Estimate:
    """The peak of one training step of one worker; `kind` is lm also for a verifier that has a language loss."""
    size = 2 if section.precision == "bf16" else 4
    ranks = workers.workers
    backbone = of.parameters - (of.head if kind != "lm" else 0)
    added, trained = adapter(of, section, kind)
    # DeepSpeed keeps a copy of the weights in fp32 under bf16, and under ZeRO 1 and 2 always.
    copied = size == 2 or workers.zero in (1, 2)
    optimizer = trained * (ADAM + (MASTER if copied else 0)) / (ranks if workers.zero >= 1 else 1)
    gradients, update = gradient_bytes(trained, size, workers)
    # Beside an optimizer in host memory lie the gradients that its rank applies.
    aside = gradients if workers.offload != "none" and workers.zero >= 2 else 0
    parameters = (backbone + added) * size / (ranks if workers.zero == 3 else 1)
    away = aside + (optimizer if workers.offload != "none" else 0) + (parameters if workers.offload == "all" else 0)
    # Partitioned weights are gathered layer by layer, and kept while so many more are not needed before them.
    gathered = max(2 * of.parameters / of.layers, min(backbone, LIVE)) * size if workers.zero == 3 else 0
    return Estimate(
        parameters=(gathered + (0 if workers.offload == "all" else parameters)) / GB,
        gradients=(gradients - aside) / GB,
        optimizer=(0 if workers.offload != "none" else optimizer) / GB,
        activations=activations(of, workers, kind, size) / GB,
        host=away / GB,
        update=(update if workers.offload == "none" else 0) / GB,
    )


def gradient_bytes(trained: int, size: int, workers: Workers) -> tuple[float, float]:
    """Of the gradients' sums in fp32, and of their copy while they are applied; as DeepSpeed 0.19 keeps them."""
    sums, copied = SUM * trained, SUM * trained / workers.workers
    if workers.zero == 0:
        return sums, 0
    if workers.zero == 1:
        # Sums of all weights; those of a pass in bf16 stay beside them, and DeepSpeed then applies its share in place.
        return (sums + size * trained, 0) if size == 2 else (sums, copied)
    return copied, copied if workers.zero == 2 else min(copied, SUM * LIVE)


def adapter(of: Shape, section: Train, kind: str) -> tuple[int, int]:
    """Parameters that LoRA adds, and those that are trained: without it all, with it only they and the scalar head."""
    if section.lora is None:
        return 0, of.parameters - (of.head if kind != "lm" else 0)
    added = lora.size(section.lora, of.linears)
    return added, added + (of.hidden if kind != "lm" else 0)


def activations(of: Shape, workers: Workers, kind: str, size: int) -> float:
    """Bytes that autograd keeps for one packed micro-batch, and the logits."""
    # Residuals, norms, queries and attention output: 9 hidden; keys and values, rotated too: 3; the MLP: 4.
    layer = size * (9 * of.hidden + 3 * of.kv + 4 * of.intermediate)
    kept = of.layers * size * of.hidden + layer if workers.gradient_checkpointing else of.layers * layer
    # The vocabulary head works chunk by chunk, with the gradient of its weights in fp32 (`vocabulary`).
    head = 3 * CHUNK_BYTES + SUM * of.vocabulary * of.hidden if kind == "lm" else 0
    return workers.micro_tokens * kept + head


def plans(workers: Workers) -> Iterator[Workers]:
    """The plan itself, then ones that need less and less of the GPU, the cheapest change first."""
    yield workers
    current = changed(workers, gradient_checkpointing=True)
    yield current
    for zero in range(max(workers.zero, 1) + 1, 4):
        current = changed(current, zero=zero)
        yield current
    for offload in ("optimizer", "all"):
        current = changed(current, zero=3, offload=offload)
        yield current
    while current.micro_tokens > 1024:
        current = changed(current, micro_tokens=current.micro_tokens // 2)
        yield current


def changed(workers: Workers, **changes: Any) -> Workers:
    """A changed copy."""
    return workers.model_copy(update=changes)


def fitting(of: Shape, section: Train, workers: Workers, kind: str, gpu_gb: float) -> Workers | None:
    """The first plan that fits, None when none does."""
    return next((plan for plan in plans(workers) if estimate(of, section, plan, kind).gpu <= gpu_gb), None)


def trainings(config: Config, todo: Set[str]) -> list[tuple[str, Train, str]]:
    """Name, section and kind of the stages to be done."""
    found = [("sft", config.sft, "lm"), ("reward", config.reward, "lm" if config.reward.lm_weight else "prm")]
    return [training for training in found if training[0] in todo]


def stated(config: Config, run: Run, todo: Set[str] = STAGES) -> list[str]:
    """A line for each stage to be done; UserError when the base model is not there."""
    of, workers = shape_of(config.base, run), config.resources.train
    found = [(name, estimate(of, section, workers, kind)) for name, section, kind in trainings(config, todo)]
    return [
        f"resources.train: {name} needs about {e.gpu:.1f} GB on each GPU (weights {e.parameters:.1f}, gradients "
        f"{e.gradients:.1f}, optimizer {e.optimizer:.1f}, activations {e.activations:.1f}, the rest {OVERHEAD_GB:.1f})"
        + (f" and {e.host:.1f} GB of host memory for each" if e.host else "")
        for name, e in found
    ]


def refuse(config: Config, run: Run, todo: Set[str] = STAGES) -> None:
    """UserError when a GPU of `resources.train.gpu_memory_gb`, or of this machine if it is to train, cannot hold it."""
    workers = config.resources.train
    has = workers.gpu_memory_gb or (None if joins(config.resources) else probe.gpu_memory_gb())
    of = shape_of(config.base, run)
    for name, section, kind in trainings(config, todo):
        refuse_one(name, of, section, workers, kind, has)


def refuse_one(name: str, of: Shape, section: Train, workers: Workers, kind: str, has: float | None) -> None:
    """UserError when GPUs of so many GB cannot hold one training, with the first plan that fits."""
    wanted = estimate(of, section, workers, kind).gpu
    if has is not None and wanted > has:
        plan = fitting(of, section, workers, kind, has)
        raise UserError(
            f"resources.train: {name} needs about {wanted:.0f} GB on each GPU, which has {has:.0f} "
            f"(resources.train.gpu_memory_gb, else what nvidia-smi says); {advice(workers, plan)}"
        )


def advice(workers: Workers, plan: Workers | None) -> str:
    """What to change."""
    if plan is None:
        return "no setting fits: take more workers"
    changes = {key: value for key, value in plan.model_dump().items() if value != getattr(workers, key)}
    return "this fits: " + " ".join(f"resources.train.{key}={value}" for key, value in changes.items())


def shape_of(model: Model, run: Run) -> Shape:
    """The sizes of a model, from its config alone."""
    from transformers import AutoConfig

    trusted = model.trust_remote_code
    return shape(AutoConfig.from_pretrained(locate(model, run), trust_remote_code=trusted), trusted)
