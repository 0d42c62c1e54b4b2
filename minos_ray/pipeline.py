"""All stages in order: what is missing or stale is made, and the log says why. And `minos check`: everything that can
be known to be wrong before any work starts, in one list.

What is about a stage is asked of its own `checks`; here is what is about the run as a whole.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress

from minos_ray.candidates import stage as candidates
from minos_ray.cluster.connect import join, joins
from minos_ray.cluster.nodes import (
    CONFIGS,
    Answer,
    Node,
    alive,
    ask,
    by_address,
    disk_findings,
    free,
    gpu_count,
    gpu_memory_gb,
    grouped,
    model_findings,
    module_findings,
    settled,
    storage_findings,
    token,
    version_findings,
    versions,
)
from minos_ray.cluster.room import ACCELERATOR, Bundles, Growth, amounts, bundles, growth, lack, room, summed
from minos_ray.config.load import Config, NamedFunction, build, leaves, resolve
from minos_ray.config.schema import Model, Search
from minos_ray.critiques import stage as critiques
from minos_ray.errors import StorageFailed, UserError, WorkStopped, errors_of
from minos_ray.graph.specs import APART, FUNCTIONS, specs
from minos_ray.graph.state import State, Todo, hub_config, model_problems, state_of, status, todo_of
from minos_ray.labels import stage as labels
from minos_ray.observe.failure import reported
from minos_ray.observe.progress import duration
from minos_ray.observe.trackers import FORM, require_library
from minos_ray.problems import loaders as problems
from minos_ray.scoring import stage as scoring
from minos_ray.store.filesystem import require_no_key
from minos_ray.store.model_files import absolute, is_hub_id
from minos_ray.store.run import Manifest, Run
from minos_ray.training import checks as training

# What brings a stage about that a config may lack.
SWITCHES = {
    "pretrain": "a section 'pretrain' and base.model: run:models/base",
    "refine": "refine.rounds, such as 1",
    "study": "study.seeds, such as [1, 2, 3, 4, 5]",
    "teach": "teach.rounds, such as 3",
}
ORDER = tuple(name for name in FUNCTIONS if name not in APART)
GB = 1e9
# Stages whose numbers go to the tracker.
TRACKED = {"pretrain", "sft", "refine", "reward", "teach", "evaluate"}
# Stage -> which pools of `resources` it uses.
POOLS = {
    "pretrain": ("train",),
    "sample": ("sample",),
    "label": ("grade",),
    "sft": ("train",),
    "refine": ("train", "judge"),
    "reward": ("train",),
    "score": ("score",),
    "sweep": ("train", "score"),
    "study": ("sample", "grade", "train", "score"),
    "teach": ("sample", "grade", "train", "score"),
}
# Folders that lie above this one: a study runs whole pipelines, and rounds of the critic are measured as `meta` does.
STUDY = "minos_ray.study.stage:check_study"
ROUNDS = "minos_ray.rounds.refine:check_rounds"
SEARCH = "minos_ray.search.command:check_search"


def open_run(config: Config) -> Run:
    """The run directory of a config, with the resolved config written into it."""
    import yaml

    require_lasting_folder(config)
    run = Run(config.run)
    values = config.model_dump(mode="json")
    for key, value in leaves(values, into_lists=True):
        require_no_key(key, str(value))
    try:
        run.write_bytes("config.yaml", yaml.safe_dump(values, sort_keys=False).encode())
    except StorageFailed as error:
        raise UserError(f"run: {error}") from error
    return run


def require_lasting_folder(config: Config) -> None:
    """A job's working directory is a copy that Ray deletes: no place for a run."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and "://" not in config.run and not os.path.isabs(config.run):
        raise UserError(f"run = '{config.run}' would be lost with the job's working directory; give an absolute path")


def run_stage(config: Config, run: Run, stage: str, function: Callable[..., Manifest] | None = None) -> Manifest:
    """Runs one stage, by its own function or another; UserError with all that would stop it, before it begins."""
    planned = [s for s in specs(config) if s.stage == stage]
    if not planned:
        remedy = f"; give {SWITCHES[stage]}" if stage in SWITCHES else ""
        raise UserError(f"this config has nothing for stage '{stage}' to make{remedy}")
    own = {spec.artefact for spec in planned}  # what this stage makes itself
    needed = {n for spec in planned if state_of(config, run, spec).state != "done" for n in spec.needs if n not in own}
    if missing := sorted(name for name in needed if run.artefact(name).manifest() is None):
        first = next(s.stage for s in specs(config) if s.artefact in missing)
        raise UserError(f"stage '{stage}' needs {', '.join(missing)}; run `minos {first}` first")
    require(config, run, {stage})
    with reported(run, stage):
        return (function or resolve(FUNCTIONS[stage]))(config, run)


def run_all(
    config: Config,
    run: Run,
    log: Callable[[str], None] = print,
    stages: Sequence[str] = ORDER,
    functions: Mapping[str, Callable[..., Manifest]] = {},
) -> dict[str, float]:
    """Every stage (of `stages`) that is missing or stale, in order; returns seconds by stage.

    `functions` do stages in place of the stages' own.
    """
    seconds = {}
    for stage in stages:
        states = [state_of(config, run, s) for s in specs(config) if s.stage == stage]
        todo = [s for s in states if s.state != "done"]
        if not todo:
            if states:
                log(f"[{stage}] up to date")
            continue
        log(f"[{stage}] " + "; ".join(f"{s.artefact}: {s.state}{f' ({s.why})' if s.why else ''}" for s in todo))
        start = time.monotonic()
        run_stage(config, run, stage, functions.get(stage))
        seconds[stage] = time.monotonic() - start
        log(f"[{stage}] done in {duration(seconds[stage])}")
    return seconds


def saved_config(run: Run) -> Config:
    """The resolved config that lies in a run directory."""
    import yaml

    if not run.exists("config.yaml"):
        raise UserError(f"'{run.path}' is no run directory: it has no config.yaml")
    return build(yaml.safe_load(run.read_bytes("config.yaml")))


def check(config: Config, log: Callable[[str], None] = print) -> None:
    """Prints what is planned; UserError with every problem found, one per line."""
    run = Run(config.run)
    states = states_of(config, run)
    log(f"run directory: {run.path}")
    for state in states:
        log(f"  {state.artefact:18} {state.state}{f' ({state.why})' if state.why else ''}")
    needs = pools(config, todo_of(state for state in states if state.stage not in APART))
    for name, need in needs.items():
        log(f"resources.{name}: {amounts(need.total)}")
    todo = todo_of(states)
    with suppress(UserError, StorageFailed):  # `require` names it, with everything else that is wrong
        for line in estimates(config, run, todo):
            log(line)
    require(config, run)
    # One that the hub does not have is among what `require` raises.
    for key, model in models(config, todo.stages):
        if is_hub_id(model.model) and hub_config(model.model, model.revision) is None:
            log(f"{key}: '{model.model}' could not be looked up: the model hub does not answer; its stage asks again")
    for line in training.encoding_note(config, run, todo.stages):
        log(line)
    log("config, files, models, credentials: fine")
    if joins(config.resources) and needs:
        for line in summary(needs):
            log(line)
    if "train" in needs:
        need = needs["train"]
        nodes = by_address(alive(), need) if joins(config.resources) else {"this machine": machine(config, need)}
        for line in training.workers_placed(config, nodes):
            log(line)


def require(config: Config, run: Run, stages: Set[str] | None = None) -> None:
    """UserError naming everything that would stop the stages still to be done, or those of `stages` among them.

    WorkStopped when all that is wrong is what may pass: nodes that do not answer while a stage starts.
    """
    lines: list[str] = []
    try:
        for line in findings(config, run, stages):
            lines.append(line)  # what was found before an exception is kept
    except WorkStopped as passing:
        if not lines:
            raise
        lines.append(str(passing))
    if lines:
        several = [f"{len(lines)} things would stop this run:"] if len(lines) > 1 else []
        raise UserError("\n  ".join([*several, *lines]))


def findings(config: Config, run: Run, stages: Set[str] | None = None) -> Iterator[str]:
    """One line for each thing wrong, here and on the nodes of a cluster that is joined.

    `stages`: what only these need. Each of them waits for room itself, and `critique` asks the critic.
    """
    try:
        states = states_of(config, run)
    except UserError as error:  # nothing else can be known then
        yield str(error)
        return
    todo = todo_of(s for s in states if (s.stage not in APART if stages is None else s.stage in stages))
    needs = pools(config, todo)
    yield from local_findings(config, run, todo)
    if stages is None:
        for name, model in config.meta.models.items():
            yield from model_problems(f"meta.models.{name}.model", model, config, run, ready=None)
        if config.study.seeds:
            yield from errors_of(resolve(STUDY), config, run)
        if config.search != Search():  # who never searches may have verifiers that guide none
            yield from errors_of(resolve(SEARCH), config, run)
        if "critique" in todo.stages:
            yield from critiques.critic_problems(config)
    if not joins(config.resources):
        yield from machine_findings(config, run, needs)
    elif needs:
        yield from cluster_findings(config, run, todo.stages, needs, waits=stages is not None)


def states_of(config: Config, run: Run) -> list[State]:
    """The state of every artefact; UserError where the storage cannot be read."""
    try:
        return status(config, run)
    except StorageFailed as error:
        raise UserError(f"run: {error}") from error


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The functions of the config that the stages to be done will call."""
    for checks in (problems, candidates, labels, critiques, training):
        yield from checks.functions(config, stages)
    tracking = config.tracking
    if stages & TRACKED and tracking.tracker:
        yield NamedFunction("observe.tracker", tracking.tracker, FORM, (None,), tracking.options)


def models(config: Config, stages: Set[str]) -> Iterator[tuple[str, Model]]:
    """The models that must be there already, each with its key."""
    for checks in (candidates, labels, training):
        yield from checks.models(config, stages)


def local_findings(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """What is wrong with functions, models and settings of the config, and with the run directory."""
    for function in functions(config, todo.stages):
        yield from errors_of(function.check)
    for key, model in models(config, todo.stages):
        yield from model_problems(key, model, config, run)
    if todo.stages & TRACKED:
        yield from errors_of(require_library, config.tracking)
    yield from problems.problems_of(config, todo)
    for checks in (candidates, labels, critiques, scoring, training):
        yield from checks.problems_of(config, run, todo)
    if "refine" in todo.stages and config.refine.rounds:  # a study names the stage even where nothing asks for rounds
        yield from errors_of(resolve(ROUNDS), config, run)
    if todo.artefacts:
        yield from errors_of(require_writable, run)
        yield from errors_of(require_room_on_disk, config, run, todo)


def estimates(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """What the work will cost: money, completions, memory of GPUs or of this machine, disk."""
    if "critiques" in todo.artefacts:
        yield critiques.expected_cost(config, run)
    yield from training.estimates(config, run, todo.stages)
    if "rollouts" in todo.artefacts:
        from minos_ray.labels.rollouts import cost

        yield cost(config, run)
    if sizes := bytes_to_write(config, run, todo):
        yield f"run directory: about {in_words(sizes)} to be written"


def pools(config: Config, todo: Todo) -> dict[str, Bundles]:
    """What each pool of the stages to be done wants; a sweep's and a study's stages use the pools of these two."""
    names = {name for stage in todo.stages for name in POOLS.get(stage, ())}
    names |= {"sample"} if "rollouts" in todo.artefacts else set()
    names |= {"judge"} if "scores/critic" in todo.artefacts else set()
    return {name: bundles(getattr(config.resources, name)) for name in sorted(names)}


def machine(config: Config, need: Bundles) -> dict[str, float]:
    """What a Ray of this machine would offer to a pool."""
    gpus = float(gpu_count())
    types = {c: gpus for c in need.conditions if c.startswith(ACCELERATOR)}  # Ray itself knows the type
    amounts_here = {"CPU": float(config.resources.num_cpus or os.cpu_count() or 1), "GPU": gpus}
    return need.offer(amounts_here | types, {})


def machine_findings(config: Config, run: Run, needs: dict[str, Bundles]) -> Iterator[str]:
    """Pools that this machine has no room for, and engines that its GPUs cannot hold."""
    for name, need in needs.items():
        if line := lack(f"resources.{name}", need, {"this machine": machine(config, need)}):
            yield line
    if any("GPU" in need.bundle for need in needs.values()) and gpu_count() and (size := gpu_memory_gb()):
        yield from candidates.gpu_problems(config, run, needs, size)
        yield from scoring.gpu_problems(config, run, needs, size)


def cluster_findings(
    config: Config, run: Run, stages: Set[str], needs: Mapping[str, Bundles], waits: bool
) -> Iterator[str]:
    """One line for each thing wrong; every node is asked at once. `waits`: the work waits for room by itself.

    WorkStopped at the end where the work is about to start and nodes do not answer: that may pass.
    """
    try:
        join(config.resources)
    except UserError as error:
        yield str(error)
        return
    present = alive()
    if not waits:
        growing = growth()
        lines = (no_room(f"resources.{name}", need, by_address(present, need), growing) for name, need in needs.items())
        yield from filter(None, lines)
    keys = model_keys(models(config, stages))
    names = [function.name for function in functions(config, stages)]
    modules = sorted({name.partition(":")[0] for name in names if not name.startswith("minos_ray.")})
    with suppress(UserError), token(run) as folder:  # one that cannot be written is named without the cluster

        def ask_nodes(nodes: Sequence[Node]) -> list[Answer]:
            return ask(run, folder, list(keys), modules, nodes, patient=waits)

        answers = settled(ask_nodes(present), ask_nodes, alive) if waits else ask_nodes(present)
        silent = list(grouped((a.node.address, a.error) for a in answers if a.report is None))
        yield from [] if waits else silent
        yield from grouped(version_findings(answers, versions()))
        yield from grouped(storage_findings(answers, run, folder))
        yield from grouped(model_findings(answers, keys))
        yield from grouped(module_findings(answers))
        bytes_on_node = training.node_bytes(config, run, stages)
        yield from grouped(disk_findings(answers, bytes_on_node, bundles(config.resources.train)))
        sizes = [(a.node, a.report["gpu_gb"]) for a in answers if a.report and a.report["gpu_gb"]]
        for name, need in needs.items():
            offers = [(need.offer(node.resources, node.labels), size) for node, size in sizes]
            gpu_gb = min((size for offer, size in offers if all(map(offer.get, need.conditions))), default=None)
            if gpu_gb is not None:
                yield from training.gpu_problems(config, run, stages, gpu_gb) if name == "train" else ()
                yield from candidates.gpu_problems(config, run, {name: need}, gpu_gb)
                yield from scoring.gpu_problems(config, run, {name: need}, gpu_gb)
        if waits and silent:
            raise WorkStopped("\n  ".join(silent))


def model_keys(models: Iterable[tuple[str, Model]]) -> dict[str, str]:
    """Path -> config key of models and adapters that lie in directories here, outside the run and the package."""
    paths = {}
    for key, model in models:
        paths[absolute(model).model] = key
        if model.adapter:
            paths[absolute(Model(model=model.adapter)).model] = f"{key.removesuffix('.model')}.adapter"
    return {path: key for path, key in paths.items() if any(os.path.isfile(f"{path}/{name}") for name in CONFIGS)}


def no_room(key: str, need: Bundles, present: Mapping[str, Mapping[str, float]], growing: Growth) -> str | None:
    """One line for a pool that does not fit on the nodes, nor on any that could come."""
    line = lack(key, need, present)
    if line and not growing.possible:
        return f"{line}; lower it or add nodes"
    if line and growing.types is not None and not room(need.without_conditions(), growing.types):
        return f"{line}; the autoscaler has no type of node that holds one ({', '.join(map(amounts, growing.types))})"
    return None


def summary(needs: Mapping[str, Bundles]) -> Iterator[str]:
    """What the cluster is, and what of the pools has yet to come."""
    present = alive()
    amount = amounts(summed([node.resources for node in present]))
    yield f"cluster: {len(present)} nodes with {amount}: same versions, storage shared"
    for name, need in needs.items():
        if line := lack(f"resources.{name}", need, by_address(present, need)):
            yield f"{line}; an autoscaler runs, the stage asks it for nodes and waits up to resources.wait_s"


def require_writable(run: Run) -> None:
    """UserError when the run directory cannot be written."""
    with token(run):
        pass


def require_room_on_disk(config: Config, run: Run, todo: Todo) -> None:
    """UserError when a local (or mounted) run directory has less room than is needed."""
    sizes = bytes_to_write(config, run, todo)
    if run.local and sizes and (available := free(run.root)) < sum(sizes.values()):
        raise UserError(
            f"run = '{run.path}' has {available / GB:.2f} GB free, about {in_words(sizes)} will be written there"
        )


def bytes_to_write(config: Config, run: Run, todo: Todo) -> dict[str, float]:
    """Bytes by what they are, less what of them lies there already: work goes on with it, or deletes it first."""
    names = [name for name in todo.artefacts if name.startswith("models/") and name != "models/base"]
    trainings = {"sft" if name.startswith("models/critic") else "reward" for name in names}
    model, checkpoints = training.bytes_of_models(config, run, trainings)
    candidates_left = ["candidates"] if "candidates" in todo.artefacts else []
    planned = {
        "candidates": (candidates.bytes_of_candidates(config, run) if candidates_left else 0, candidates_left),
        "models": (len(names) * model, names),
        "checkpoints": (checkpoints, ["checkpoints"]),
    }
    remaining = {
        what: size - sum(sum(run.sizes(name).values()) for name in folders)
        for what, (size, folders) in planned.items()
        if size
    }
    return {what: size for what, size in remaining.items() if size > 0}


def in_words(sizes: dict[str, float]) -> str:
    """`12.30 GB (models 100 MB, checkpoints 12.20 GB)`."""

    def amount(size: float) -> str:
        return f"{size / GB:.2f} GB" if size >= GB else f"{size / 1e6:.0f} MB"

    parts = ", ".join(f"{what} {amount(size)}" for what, size in sizes.items())
    return f"{amount(sum(sizes.values()))} ({parts})"
