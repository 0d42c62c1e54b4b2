"""`minos check`: everything that can be known to be wrong before any work starts, said at once."""

import asyncio
import os
from collections.abc import Callable, Iterator, Set
from contextlib import suppress

from minos_ray.cluster.bundles import Bundles, amounts, bundles, lack
from minos_ray.cluster.connect import joins
from minos_ray.config.load import Config, resolve
from minos_ray.errors import StorageFailed, UserError, WorkStopped
from minos_ray.graph.specs import APART, FUNCTIONS
from minos_ray.graph.state import State, status
from minos_ray.pipeline import host_memory
from minos_ray.pipeline.functions import named
from minos_ray.pipeline.gpu_memory import base_is_here, engines_too_large, memory_matters
from minos_ray.pipeline.model_checks import judged_tests, model_tests, models, unseen
from minos_ray.pipeline.settings import label_tests, length_tests
from minos_ray.store.run import Run

# Stage -> which pools of `resources` it uses.
POOLS = {
    "pretrain": ("train",),
    "sample": ("sample",),
    "label": ("grade",),
    "critique": ("client",),
    "sft": ("train",),
    "reward": ("train",),
    "score": ("score",),
    "sweep": ("train", "score"),
    "study": ("sample", "grade", "client", "train", "score"),
}
INSIDE = {"sweep": ("sft", "reward"), "study": tuple(FUNCTIONS)}
CRITIC_S = 10.0


def check(config: Config, log: Callable[[str], None] = print) -> None:
    """Prints what is planned; UserError with every problem found, one per line."""
    run = Run(config.run)
    states = known(config, run)
    log(f"run directory: {run.path}")
    for state in states:
        log(f"  {state.artefact:18} {state.state}{f' ({state.why})' if state.why else ''}")
    needs = pools(config, [state for state in states if state.stage not in APART])
    for name, need in sorted(needs.items()):
        log(f"resources.{name}: {amounts(need.total)}")
    with suppress(UserError, StorageFailed):  # said below, with everything else that is wrong
        for line in estimates(config, run, states):
            log(line)
    refuse(config, run)
    for line in unseen(config, unfinished(states)):
        log(line)
    log("config, files, models, credentials: fine")
    if joins(config.resources) and needs:
        from minos_ray.pipeline.joined import stated

        for line in stated(needs):
            log(line)


def known(config: Config, run: Run) -> list[State]:
    """The state of every artefact; UserError where the storage does not tell."""
    try:
        return status(config, run)
    except StorageFailed as error:
        raise UserError(f"run: {error}") from error


def estimates(config: Config, run: Run, states: list[State]) -> Iterator[str]:
    """What the work will cost: money, completions, memory of GPUs or of this machine."""
    if any(state.artefact == "critiques" and state.state != "done" for state in states):
        from minos_ray.critiques.estimate import expected_cost

        yield expected_cost(config, run)
    if memory_matters(config, unfinished(states)):
        from minos_ray.training.memory import stated

        yield from stated(config, run, unfinished(states))
    yield from host_memory.stated(config, run, unfinished(states))
    if rollouts_wanted(config, states):
        from minos_ray.labels.rollouts import cost

        yield cost(config, run)
    from minos_ray.pipeline.disk import stated as disk_stated

    yield from disk_stated(config, run, states)


def unfinished(states: list[State]) -> set[str]:
    """The stages that have something to do; a sweep's trials are trainings too, and a study has all of them."""
    found = {s.stage for s in states if s.state != "done"}
    return found | {stage for apart, its in INSIDE.items() if apart in found for stage in its}


def refuse(config: Config, run: Run, stages: Set[str] | None = None) -> None:
    """UserError naming everything that would stop the stages still to be done, or those of `stages` among them.

    WorkStopped when all that is wrong is what may pass: nodes that say nothing while a stage starts.
    """
    found: list[str] = []
    try:
        for line in findings(config, run, stages):
            found.append(line)  # what was found before an exception is kept
    except WorkStopped as passing:
        if not found:
            raise
        found.append(str(passing))
    if found:
        several = [f"{len(found)} things would stop this run:"] if len(found) > 1 else []
        raise UserError("\n  ".join([*several, *found]))


def findings(config: Config, run: Run, stages: Set[str] | None = None) -> Iterator[str]:
    """One line for each thing wrong, here and on the nodes of a cluster that is joined.

    `stages`: what only these need. Each of them waits for room itself, and `critique` asks the critic.
    """
    try:
        states = known(config, run)
    except UserError as error:  # nothing else can be told then
        yield str(error)
        return
    states = [s for s in states if (s.stage not in APART if stages is None else s.stage in stages)]
    todo, needs = unfinished(states), pools(config, states)
    tests = [*local_tests(config, run, states)]
    if stages is None:  # `minos meta` asks itself
        tests += judged_tests(config, run)
    if stages is None and config.study.seeds:  # `minos study` asks itself
        tests.append(lambda: resolve("minos_ray.study.stage:refuse")(config, run))
    if stages is None and "critique" in todo and asks_critic(config):
        from minos_ray.critiques.prices import priced

        tests += [lambda: check_critic(config), lambda: priced(config.critique)]
    for test in tests:
        try:
            test()
        except (UserError, StorageFailed) as error:
            yield str(error)
    if not joins(config.resources):
        yield from machine_findings(config, run, needs)
    elif needs:
        from minos_ray.pipeline import joined

        of_config = (models(config, todo), {function.name for function in named(config, todo)})
        yield from joined.findings(config, run, todo, needs, *of_config, waits=stages is not None)


def local_tests(config: Config, run: Run, states: list[State]) -> Iterator[Callable[[], object]]:
    """Functions, models and files that the config names, trainings, the run directory."""
    todo = unfinished(states)
    yield from (function.check for function in named(config, todo))
    if "sample" in todo or rollouts_wanted(config, states):
        from minos_ray.candidates.prompts import prompt_of

        yield lambda: prompt_of(config.sample)
    yield from model_tests(config, run, todo)
    if "problems" in todo:
        yield lambda: check_sources(config)
    left = [s for s in states if s.state != "done"]
    yield from label_tests(config, run, {s.stage for s in left})
    yield from length_tests(config, run, {s.artefact for s in left})
    yield from training_tests(config, run, states)
    yield from storage_tests(config, run, states)


def machine_findings(config: Config, run: Run, needs: dict[str, Bundles]) -> Iterator[str]:
    """Pools that this machine has no room for, and engines that its GPUs cannot hold."""
    from minos_ray.cluster import gpus

    machine = {"CPU": float(config.resources.num_cpus or os.cpu_count() or 1), "GPU": float(gpus.count())}
    lines = [lack(f"resources.{name}", need, {"this machine": machine}) for name, need in needs.items()]
    yield from (line for line in lines if line)
    if machine["GPU"] and any("GPU" in need.each for need in needs.values()) and (size := gpus.memory_gb()):
        yield from engines_too_large(config, run, needs, size)


def training_tests(config: Config, run: Run, states: list[State]) -> Iterator[Callable[[], object]]:
    """What rollouts, memory of GPUs or of this machine, adapters and consensus need."""
    todo = unfinished(states)
    if rollouts_wanted(config, states):
        from minos_ray.labels.rollouts import completer, settings

        yield lambda: settings(config)
        yield lambda: completer(config)
    if memory_matters(config, todo):
        from minos_ray.training.memory import refuse as refuse_memory

        yield lambda: refuse_memory(config, run, todo)
    yield lambda: host_memory.refuse(config, run, todo)
    yield from lora_tests(config, run, todo)
    if config.reward.consensus and "reward" in todo and not imported(run, "critiques"):
        from minos_ray.training.consensus import refuse_told

        yield lambda: refuse_told(config.critique.prompt)


def imported(run: Run, artefact: str) -> bool:
    """Whether an artefact was not made by the run itself."""
    manifest = run.artefact(artefact).manifest()
    return manifest is not None and "import" in manifest.inputs


def storage_tests(config: Config, run: Run, states: list[State]) -> Iterator[Callable[[], object]]:
    """The run directory can be written, and has room."""
    if not unfinished(states):
        return
    from minos_ray.cluster.nodes import token
    from minos_ray.pipeline import disk

    def writable() -> None:
        with token(run):
            pass

    yield writable
    yield lambda: disk.refuse(config, run, states)


def asks_critic(config: Config) -> bool:
    """Whether requests are to be made of an endpoint that is not the miniature's own."""
    return config.critique.base_url != "offline" and bool(config.critique.count or config.error_analysis.count)


def check_critic(config: Config) -> None:
    """UserError when the key is missing or refused, or nobody answers; one request that costs nothing."""
    from minos_ray.critiques.ask import endpoint
    from minos_ray.critiques.client import Endpoint, headers, preflight

    with endpoint(config.critique, config.seed) as (base_url, key):
        asked = Endpoint(config.critique, config.resources.client, base_url, key, headers(config.critique))
        asyncio.run(preflight(asked, CRITIC_S))


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


def check_sources(config: Config) -> None:
    """Problem files must exist; a run without the section must have been filled by `minos import`."""
    if config.problems is None:
        raise UserError("section 'problems' is missing and nothing was imported; see `minos import`")
    for split in ("train", "test"):
        path = getattr(config.problems, split).path
        if path and "://" not in path and not os.path.exists(path):
            raise UserError(f"problems.{split}.path = '{path}' does not exist")


def pools(config: Config, states: list[State]) -> dict[str, Bundles]:
    """What each pool of the stages to be done wants."""
    todo = {s.stage for s in states if s.state != "done"}
    names = {name for stage in todo for name in POOLS.get(stage, ())}
    names |= {"sample"} if rollouts_wanted(config, states) else set()
    names |= {"judge"} if any(s.artefact == "scores/critic" and s.state != "done" for s in states) else set()
    if config.critique.mode == "batch" or on_loopback(config.critique.base_url):
        names -= {"client"}  # asked by the driver, or from its node without CPUs
    return {name: bundles(getattr(config.resources, name)) for name in names}


def on_loopback(url: str) -> bool:
    """Whether the critic is on the driver's machine."""
    return url == "offline" or "//127.0.0.1" in url or "//localhost" in url
