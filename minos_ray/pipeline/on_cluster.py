"""What would stop the work on a cluster that is joined: its room, and what each of its nodes answers."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

from minos_ray.candidates import stage as candidates
from minos_ray.cluster import nodes, probe
from minos_ray.cluster.bundles import Bundles, amounts, bundles, lack, room, summed
from minos_ray.cluster.connect import join
from minos_ray.cluster.nodes import Answer, Node, alive, by_address, settled, token
from minos_ray.cluster.ray_tables import Growth, growth
from minos_ray.config.schema import Config, Model
from minos_ray.errors import UserError, WorkStopped
from minos_ray.scoring import stage as scoring
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run
from minos_ray.training import checks as training

GB = 1e9
SHOWN = 4
Pools = Mapping[str, Bundles]
# Pairs of a node's address and what is wrong there.
OnNodes = Iterator[tuple[str, str]]


def findings(
    config: Config,
    run: Run,
    stages: Set[str],
    pools: Pools,
    keys: Mapping[str, str],
    functions: Iterable[str],
    waits: bool,
) -> Iterator[str]:
    """One line for each thing wrong; every node is asked at once. `waits`: the work waits for room by itself.

    `keys` are those of the models in directories here (`model_keys`), `functions` the names of all in the config.
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
        for name, need in sorted(pools.items()):
            yield from no_room({name: need}, by_address(present, need), growing)
    modules = sorted({name.partition(":")[0] for name in functions if not name.startswith("minos_ray.")})
    with suppress(UserError), token(run) as folder:  # one that cannot be written is named without the cluster

        def ask(asked: Sequence[Node]) -> list[Answer]:
            tasks = nodes.ask(run, folder, list(keys), modules, asked)
            return nodes.answers(tasks, nodes.PATIENT_S if waits else nodes.WITHIN_S)

        answers = settled(ask(present), ask, alive) if waits else ask(present)
        silent = list(grouped((a.node.address, a.error) for a in answers if a.report is None))
        yield from [] if waits else silent
        yield from grouped(versions(answers, probe.versions()))
        yield from grouped(storage(answers, run, folder))
        yield from grouped(models(answers, keys))
        lacking = "named in the config, is not found there; install it on every node"
        modules_of = [(node, name, ok) for node, r in reports(answers) for name, ok in r["modules"].items()]
        yield from grouped((node, f"module '{name}', {lacking}") for node, name, ok in modules_of if not ok)
        yield from grouped(disks(answers, training.node_bytes(config, run, stages), bundles(config.resources.train)))
        sizes = [(a.node, a.report["gpu_gb"]) for a in answers if a.report and a.report["gpu_gb"]]
        for name, need in sorted(pools.items()):
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
    return {path: key for path, key in paths.items() if any(os.path.isfile(f"{path}/{name}") for name in probe.CONFIGS)}


def no_room(pools: Pools, present: Mapping[str, Mapping[str, float]], growing: Growth) -> Iterator[str]:
    """Pools that do not fit on the nodes, nor on any that could come."""
    for name, need in sorted(pools.items()):
        line = lack(f"resources.{name}", need, present)
        if line and not growing.possible:
            yield f"{line}; lower it or add nodes"
        elif line and growing.types is not None and not room(need.without_conditions(), growing.types):
            types = ", ".join(map(amounts, growing.types))
            yield f"{line}; the autoscaler has no type of node that holds one ({types})"


def summary(pools: Pools) -> Iterator[str]:
    """What the cluster is, and what of the pools has yet to come."""
    present = alive()
    amount = amounts(summed([node.resources for node in present]))
    yield f"cluster: {len(present)} nodes with {amount}: same versions, storage shared"
    for name, need in sorted(pools.items()):
        if line := lack(f"resources.{name}", need, by_address(present, need)):
            yield f"{line}; an autoscaler runs, the stage asks it for nodes and waits up to resources.wait_s"


def grouped(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One line for all nodes of which the same is true."""
    nodes_of = defaultdict(list)
    for node, line in lines:
        nodes_of[line].append(node)
    for line, addresses in nodes_of.items():
        others = f" and {len(addresses) - SHOWN} more" if len(addresses) > SHOWN else ""
        yield f"node{'s' if len(addresses) > 1 else ''} {', '.join(addresses[:SHOWN])}{others}: {line}"


def versions(answers: Sequence[Answer], driver: Mapping[str, str]) -> OnNodes:
    """Packages whose version is not the driver's; what the driver lacks only has to be equal on the nodes."""
    expected = dict(driver)
    for node, report in reports(answers):
        for package, version in report["versions"].items():
            expected.setdefault(package, version)
        for package, version in expected.items():
            installed = report["versions"].get(package)
            if installed != version and (installed or package in driver):
                whose = "the driver has" if package in driver else "another node has"
                yield node, f"{package} {installed or 'is missing'}, {whose} {version}; install the same on every node"


def storage(answers: Sequence[Answer], run: Run, folder: str) -> OnNodes:
    """Nodes that cannot read or write the run directory, or for which it is another one."""
    for answer in answers:
        if answer.report is None:
            continue
        if problem := answer.report["storage"]:
            yield answer.node.address, f"run = '{run.path}' {problem}"
        elif not run.exists(f"{folder}/{answer.node.id}"):
            line = "the driver does not see what is written there; share that path"
            yield answer.node.address, f"run = '{run.path}': {line}"


def models(answers: Sequence[Answer], keys: Mapping[str, str]) -> OnNodes:
    """Model directories (path -> config key) that a node does not have as the driver has them."""
    digests = {path: probe.model(path) for path in keys}
    for node, report in reports(answers):
        for path, digest in report["models"].items():
            if digest.startswith("!"):
                yield node, f"{keys[path]} = '{path}' cannot be read there: {digest[1:]}; copy it or share that path"
            elif digest != digests[path]:
                yield node, f"{keys[path]} = '{path}' is another model there: its config or the sizes of its files"


def disks(
    answers: Sequence[Answer], needs: Callable[[Mapping[str, float]], float], train: Bundles | None = None
) -> OnNodes:
    """Nodes whose temporary directory has fewer bytes than a node needs that offers so much to the training."""
    for answer in answers:
        offered = train.offer(answer.node.resources, answer.node.labels) if train else answer.node.resources
        if answer.report and (free := answer.report["free"]) < (need := needs(offered)):
            space = f"{answer.report['temporary']} has {free / GB:.2f} GB free"
            why = f"logs, spilled blocks and checkpoints on their way take about {need / GB:.2f}"
            yield answer.node.address, f"{space}, {why}; free some or set TMPDIR on that node"


def reports(answers: Sequence[Answer]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Addresses and reports of the nodes that answered."""
    return ((answer.node.address, answer.report) for answer in answers if answer.report)
