"""`minos check`: everything that can be known to be wrong before any work starts, said at once."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from minos_ray.cluster import joins, wanted
from minos_ray.config import Config, resolve, secret
from minos_ray.errors import UserError
from minos_ray.pipeline import State, status
from minos_ray.sections import Model
from minos_ray.store import Run

# Stage -> which pool of `resources` it uses.
POOLS = {
    "pretrain": "train",
    "sample": "sample",
    "label": "grade",
    "critique": "client",
    "sft": "train",
    "reward": "train",
    "score": "score",
}


def check(config: Config, log: Callable[[str], None] = print) -> None:
    """Prints what is planned; UserError with every problem found, one per line."""
    run = Run(config.run)
    states = status(config, run)
    log(f"run directory: {run.path}")
    for state in states:
        log(f"  {state.artefact:18} {state.state}{f' ({state.why})' if state.why else ''}")
    for name, want in sorted(pools(config, states).items()):
        amounts = ", ".join(f"{amount:g} {kind}" for kind, amount in want.items() if amount)
        log(f"resources.{name}: {amounts}")
    with suppress(UserError):  # said below, with everything else that is wrong
        for line in estimates(config, run, states):
            log(line)
    refuse(config, run)
    log("config, files, models, credentials: fine")


def estimates(config: Config, run: Run, states: list[State]) -> Iterator[str]:
    """What the work will cost: money, completions, memory of GPUs."""
    if any(state.artefact == "critiques" and state.state != "done" for state in states):
        from minos_ray.critiques.estimate import expected_cost

        yield expected_cost(config, run)
    if memory_matters(config, states):
        from minos_ray.training.memory import stated

        yield from stated(config, run, unfinished(states))
    if rollouts_wanted(config, states):
        from minos_ray.labels.rollouts import cost

        yield cost(config, run)


def memory_matters(config: Config, states: list[State]) -> bool:
    """Whether GPUs will train a model whose sizes are known here and now."""
    todo = unfinished(states)
    return config.resources.train.gpu and bool(todo & {"sft", "reward"}) and base_is_here(config)


def unfinished(states: list[State]) -> set[str]:
    """The stages that have something to do."""
    return {s.stage for s in states if s.state != "done"}


def base_is_here(config: Config) -> bool:
    """Whether the base model is neither on a hub nor still to be made."""
    from minos_ray.models import is_hub_id

    return not is_hub_id(config.base.model) and not config.base.model.startswith("run:")


def refuse(config: Config, run: Run) -> None:
    """UserError naming everything that would stop the stages still to be done."""
    found = list(findings(config, run))
    if found:
        several = [f"{len(found)} things would stop this run:"] if len(found) > 1 else []
        raise UserError("\n  ".join([*several, *found]))


def findings(config: Config, run: Run) -> Iterator[str]:
    """One line for each thing wrong."""
    states = status(config, run)
    todo = unfinished(states) - {"sweep"}
    tests: list[Callable[[], object]] = [lambda name=name: resolve(name) for name in functions(config, todo)]
    tests += [lambda key=key, model=model: check_model(key, model, run) for key, model in models(config, todo)]
    if "problems" in todo:
        tests.append(lambda: check_sources(config))
    if "critique" in todo and config.critique.base_url != "offline":
        from minos_ray.critiques.prices import priced

        tests += [lambda: secret(config.critique.api_key_env), lambda: priced(config.critique)]
    if rollouts_wanted(config, states):
        from minos_ray.labels.rollouts import completer, settings

        tests += [lambda: settings(config), lambda: completer(config)]
    if memory_matters(config, states):
        from minos_ray.training.memory import refuse as refuse_memory

        tests.append(lambda: refuse_memory(config, run, todo))
    tests += lora_tests(config, run, todo)
    imported = any(s.artefact == "critiques" and s.why == "imported" for s in states)
    if config.reward.consensus and "reward" in todo and not imported:
        from minos_ray.training.consensus import refuse_told

        tests.append(lambda: refuse_told(config.critique.prompt))
    tests += [
        lambda name=name, want=want: check_pool(config, name, want) for name, want in pools(config, states).items()
    ]
    for test in tests:
        try:
            test()
        except UserError as error:
            yield str(error)


def lora_tests(config: Config, run: Run, todo: set[str]) -> Iterator[Callable[[], object]]:
    """Stages that train an adapter need peft, and a base that has the layers named."""
    for name, section in (("sft", config.sft), ("reward", config.reward)):
        if name in todo and section.lora is not None:
            from minos_ray.training import lora, memory

            key, wanted = f"{name}.lora", section.lora
            yield lambda key=key: lora.refuse(key)
            if base_is_here(config):
                yield lambda key=key, wanted=wanted: lora.refuse_targets(
                    key, wanted, memory.shape_of(config.base, run).linears
                )


def rollouts_wanted(config: Config, states: list[State]) -> bool:
    """Whether the stage `label` has completions to make."""
    return config.label.rollouts is not None and any(s.artefact == "rollouts" and s.state != "done" for s in states)


def functions(config: Config, todo: set[str]) -> Iterator[str]:
    """Names of functions that the stages to be done will call."""
    if "problems" in todo and config.problems:
        yield from {config.problems.train.loader, config.problems.test.loader}
    if "sample" in todo:
        yield config.sample.prompt
    if "label" in todo:
        yield from (n for n in (config.label.grader, config.label.splitter, config.label.steps) if n)
        if config.label.rollouts:
            yield config.sample.prompt
    if "critique" in todo:
        yield from {config.critique.prompt, config.error_analysis.prompt}
    if "pretrain" in todo and config.pretrain:
        yield config.pretrain.corpus


def models(config: Config, todo: set[str]) -> Iterator[tuple[str, Model]]:
    """Models that must be there already."""
    rollouts = config.label.rollouts if "label" in todo else None
    if config.generator and ("sample" in todo or (rollouts and not rollouts.completer)):
        yield "generator.model", config.generator
    if rollouts and rollouts.completer:
        yield "label.rollouts.completer", rollouts.completer
    if todo & {"sft", "reward"}:
        yield "base.model", config.base


def check_model(key: str, model: Model, run: Run) -> None:
    """A directory must hold a whole model; hub ids are left to the first stage that loads them."""
    from minos_ray.models import is_hub_id, locate

    if model.model.startswith("run:") or is_hub_id(model.model):
        return
    try:
        locate(model, run)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def check_sources(config: Config) -> None:
    """Problem files must exist; a run without the section must have been filled by `minos import`."""
    if config.problems is None:
        raise UserError("section 'problems' is missing and nothing was imported; see `minos import`")
    for split in ("train", "test"):
        path = getattr(config.problems, split).path
        if path and "://" not in path and not os.path.exists(path):
            raise UserError(f"problems.{split}.path = '{path}' does not exist")


def pools(config: Config, states: list[State]) -> dict[str, dict[str, float]]:
    """CPUs and GPUs wanted by each pool of the stages to be done."""
    names = {POOLS[s.stage] for s in states if s.state != "done" and s.stage in POOLS}
    names |= {"sample"} if rollouts_wanted(config, states) else set()
    return {name: wanted(getattr(config.resources, name)) for name in names}


def check_pool(config: Config, name: str, want: dict[str, float]) -> None:
    """On this machine alone, what is wanted must be there; a joined cluster is asked by the stage itself."""
    if joins(config.resources):
        return
    cpus = config.resources.num_cpus or os.cpu_count() or 1
    if want["CPU"] > cpus:
        raise UserError(f"resources.{name} wants {want['CPU']:g} CPUs, this machine has {cpus}")
    if want["GPU"] and not os.path.exists("/dev/nvidia0"):
        raise UserError(f"resources.{name} wants {want['GPU']:g} GPUs, this machine has none")
