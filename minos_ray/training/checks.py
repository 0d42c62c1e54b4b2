"""What would stop the stages `sft`, `refine` and `reward`, what they take, also of this machine's memory, and what they
will write.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from minos_ray.cluster.connect import joins
from minos_ray.cluster.room import bundles, room
from minos_ray.config.load import NamedFunction, resolve
from minos_ray.config.resources import Resources, Workers
from minos_ray.config.schema import Config, Model
from minos_ray.config.training import BINARY, Kind, Train
from minos_ray.errors import UserError, errors_of
from minos_ray.graph.state import Todo, hub_config, require_model
from minos_ray.labels.stage import require_for_prms
from minos_ray.store.model_files import is_hub_id, load_tokenizer, locate, parameters
from minos_ray.store.run import Run
from minos_ray.training.data import total_steps

if TYPE_CHECKING:
    from minos_ray.training.trainer import Shape

CRITICS = frozenset({"sft", "refine"})  # both train as section `sft` says
STAGES = CRITICS | {"reward"}
# fp32 weights and Adam's two moments, in every checkpoint of a full training; bf16 weights come on top.
STATE_BYTES = 12
# Ray's logs, spilled blocks and the cache of compiled kernels.
TEMPORARY_BYTES = 1e9
GB = 1e9
# A worker of Ray Train that has loaded torch, transformers and DeepSpeed, before any model.
PROCESS_GB = 0.8
CGROUP = Path("/sys/fs/cgroup/memory.max")


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The corpus and the tokenizer of a base model from scratch, and the loss of verifiers."""
    if "pretrain" in stages and config.pretrain:
        source = {"run": None} if config.pretrain.needs else {}
        options = {"seed": 0, **source, **config.pretrain.options}
        yield NamedFunction("pretrain.corpus", config.pretrain.corpus, "(seed, ...) -> documents", (), options)
        yield NamedFunction("pretrain.tokenizer", config.pretrain.tokenizer, "(texts, vocab_size)", ((), 300))
    if "reward" in stages and config.reward.loss != BINARY:
        yield NamedFunction("reward.loss", config.reward.loss, "a function of logits and targets", kind=Callable)


def models(config: Config, stages: Set[str]) -> Iterator[tuple[str, Model]]:
    """The base model, with its key."""
    if stages & STAGES:
        yield "base.model", config.base


def problems_of(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """One line for each thing wrong with the base model, adapters, rows, or the memory that a training needs."""
    if todo.stages & STAGES:
        yield from errors_of(check_base, config, run, todo.stages)
    if any(f"models/{verifier}" in todo.artefacts for verifier in config.reward.verifiers):
        yield from errors_of(require_for_prms, config, run, "reward.verifiers", config.reward.verifiers)
    if "sweep/results.parquet" in todo.artefacts:
        yield from errors_of(require_for_prms, config, run, "sweep.kinds", config.sweep.kinds)
    yield from gpu_problems(config, run, todo.stages)
    yield from errors_of(require_memory, config, run, todo.stages)
    for name, section in config.trainings(todo.stages):
        if section.lora is not None:
            from minos_ray.training.models import require_peft, require_targets

            yield from errors_of(require_peft, f"{name}.lora")
            if base_is_known(config):
                yield from errors_of(require_targets, f"{name}.lora", section.lora, config.base, run)
    if "reward" in todo.stages and config.reward.loss != BINARY:
        yield from loss_problems(config, run, todo)
    if config.reward.consensus and "reward" in todo.stages:
        manifest = run.artefact("critiques").manifest()
        if manifest is None or "import" not in manifest.inputs:
            from minos_ray.training.reward import require_blind

            yield from errors_of(require_blind, config.critique.prompt)


def loss_problems(config: Config, run: Run, todo: Todo) -> list[str]:
    """A loss that is none for what is trained, or that has nothing to compare as far as labels are there."""
    from minos_ray.training import verifier_losses

    if errors_of(resolve, config.reward.loss):  # a line of its own, as of any function
        return []
    kinds = [kind for kind in trained_kinds(config, todo.stages) if kind != "lm"]
    if lines := errors_of(verifier_losses.check_loss, config.reward, kinds):
        return lines
    labelled = run.artefact("labels").manifest() is not None and "labels" not in todo.artefacts
    compares = verifier_losses.compares_solutions(resolve(config.reward.loss))
    return errors_of(verifier_losses.check_partners, config, run) if labelled and compares else []


def check_base(config: Config, run: Run, stages: Set[str]) -> None:
    """The base must have the classes that are trained, and where its weights lie here all that these need."""
    from minos_ray.training.base import check, require_vocabulary_head, tokenizer_of

    base = config.base
    if base.model.startswith("run:"):
        return
    on_hub = is_hub_id(base.model)
    try:
        require_model("base.model", base, run)
        file = hub_config(base.model, base.revision) if on_hub else f"{locate(base, run)}/config.json"
    except UserError:  # a line of its own, by `graph.models`
        return
    if file is None:
        return
    options, folder = {"trust_remote_code": base.trust_remote_code}, os.path.dirname(file)
    zero3 = config.resources.train.zero == 3
    calibrated = config.reward.calibration != "none"
    check(folder, trained_kinds(config, stages), options, zero3, with_weights=not on_hub, calibrated=calibrated)
    if not on_hub:
        tokenizer_of(folder, base.trust_remote_code, critic=bool(stages & CRITICS), layout=base.encoding)
        if config.reward.lm_weight and "reward" in stages:
            require_vocabulary_head(folder, options)


def encoding_note(config: Config, run: Run, stages: Set[str]) -> Iterator[str]:
    """A line about the step encoding of a base that lies here and has a chat template."""
    if not stages & STAGES or not base_is_known(config):
        return
    from minos_ray.steps.encoding import digest

    base = config.base
    with suppress(UserError, ValueError):  # `check_base` names what is wrong with the base, or with its templates
        template = digest(load_tokenizer(locate(base, run), base.trust_remote_code))
        if template and base.encoding.name == "chat":
            yield f"base.encoding: chat, by the base's template {template}"
        elif template:
            yield (
                "base.encoding: lines, and the base has a chat template: if it is an instruct model, "
                "base.encoding.name=chat asks it in the form that it knows"
            )


def trained_kinds(config: Config, stages: Set[str]) -> list[Kind]:
    """What is made of the base."""
    names = [*config.reward.verifiers, *(config.sweep.kinds if "sweep" in stages else ())] if "reward" in stages else []
    verifiers: list[Kind] = ["orm" if name.startswith("orm") else "prm" for name in names]
    language: list[Kind] = ["lm"] if stages & CRITICS or ("reward" in stages and config.reward.lm_weight) else []
    return [*dict.fromkeys([*language, *verifiers])]


def base_is_known(config: Config) -> bool:
    """Whether the base model is neither on a hub nor still to be made."""
    return not is_hub_id(config.base.model) and not config.base.model.startswith("run:")


def trains_on_gpus(config: Config, stages: Set[str]) -> bool:
    """Whether GPUs will train a model whose sizes are known here and now."""
    return config.resources.train.gpu and bool(stages & STAGES) and base_is_known(config)


def gpu_problems(config: Config, run: Run, stages: Set[str], gpu_gb: float | None = None) -> list[str]:
    """The training that GPUs cannot hold: those that the config or this machine has, or the cluster's of `gpu_gb`.

    The latter are looked at only if they have less than `resources.train.gpu_memory_gb` says.
    """
    workers = config.resources.train
    if not trains_on_gpus(config, stages) or (gpu_gb or 0.0) >= (workers.gpu_memory_gb or math.inf):
        return []
    from minos_ray.training import trainer

    if gpu_gb is not None:
        smaller = workers.model_copy(update={"gpu_memory_gb": gpu_gb})
        config = config.model_copy(update={"resources": config.resources.model_copy(update={"train": smaller})})
    return errors_of(trainer.check_memory, config, run, stages)


def estimates(config: Config, run: Run, stages: Set[str]) -> Iterator[str]:
    """What each training takes of a GPU, or of the memory of a machine."""
    if trains_on_gpus(config, stages):
        from minos_ray.training import trainer

        yield from trainer.summary(config, run, stages)
    yield from memory_estimates(config, run, stages)


def bytes_of_models(config: Config, run: Run, stages: Set[str]) -> tuple[float, float]:
    """Bytes of one saved model, and of all checkpoints that may lie there at once; 0 where the base is not known."""
    size, workers = parameters(config.base, run) or 0, config.resources.train
    sections = [section for _, section in config.trainings(stages)]
    model = max((2 if section.precision == "bf16" else 4 for section in sections), default=0)
    checkpoints = (checkpoints_kept(section, workers) * checkpoint_bytes(section, size) for section in sections)
    return size * model, max(checkpoints, default=0)


def node_bytes(config: Config, run: Run, stages: Set[str]) -> Callable[[Mapping[str, float]], float]:
    """Bytes for temporary files of a node that has this much: workers write their shards of a checkpoint aside first.

    As many workers as could be there are counted.
    """
    workers, size = bundles(config.resources.train), parameters(config.base, run) or 0
    saved = [section for _, section in config.trainings(stages) if checkpoints_kept(section, config.resources.train)]
    checkpoint = max((checkpoint_bytes(section, size) for section in saved), default=0)
    return lambda node: TEMPORARY_BYTES + checkpoint * room(workers, [node]) / workers.count


def workers_placed(config: Config, nodes: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """A line that says how many workers would start now, where the config leaves it to the cluster."""
    workers = config.resources.train
    if workers.least < workers.most:
        need = bundles(workers)._replace(count=workers.most)
        fitting = room(need, nodes.values())
        yield f"resources.train.workers: {workers.workers} are allowed, {fitting} fit on {', '.join(nodes)}"


def checkpoint_bytes(section: Train, size: int) -> float:
    """Bytes of one checkpoint of a training of `size` parameters; one of LoRA is small."""
    if section.lora is not None:
        return 0
    return size * (STATE_BYTES + (2 if section.precision == "bf16" else 0))


def checkpoints_kept(section: Train, workers: Workers) -> int:
    """Checkpoints that may lie there at once: those kept, the best and the one on its way, if there are so many steps.

    None is written before the first step or after the last one.
    """
    most = workers.keep + 2
    rows = getattr(section, "rows", None)
    if rows is None:
        return most
    between = total_steps(rows, section.epochs, section.batch_rows) - 1
    judged = between // section.eval_every if section.pick == "best" else 0
    return min(most, between // workers.save_every + judged)


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
    from minos_ray.training import trainer

    for name, section, kind in trainer.trainings(config, stages):
        gb = trainer.estimate(shape, section, config.resources.train, kind)
        held = gb.parameters + gb.gradients + gb.optimizer + gb.host + PROCESS_GB
        yield Need(name, held + gb.update, held + max(gb.update, gb.activations))


def shape_of_base(config: Config, run: Run) -> "Shape | None":
    """The sizes of the base model, None where its files do not tell them."""
    size = parameters(config.base, run)
    if not size:
        return None
    from minos_ray.training.trainer import Shape

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


def memory_estimates(config: Config, run: Run, stages: Set[str]) -> Iterator[str]:
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
