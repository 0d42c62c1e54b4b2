"""What would stop the work on a cluster that is joined: its room, and what each of its nodes says."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress

from minos_ray.cluster import nodes, probe
from minos_ray.cluster.bundles import Bundles, amounts, lack, room, summed
from minos_ray.cluster.connect import connect
from minos_ray.cluster.growth import Growth, growth
from minos_ray.cluster.nodes import Answer, Node, alive, named, settled, token
from minos_ray.config.schema import Config, Model
from minos_ray.errors import UserError, WorkStopped
from minos_ray.pipeline import compare, estimate
from minos_ray.pipeline.gpu_memory import engines_too_large, trainings_too_large
from minos_ray.store.model_files import absolute
from minos_ray.store.run import Run

Pools = Mapping[str, Bundles]


def findings(
    config: Config,
    run: Run,
    todo: Set[str],
    pools: Pools,
    models: Iterable[tuple[str, Model]],
    functions: Iterable[str],
    waits: bool,
) -> Iterator[str]:
    """One line for each thing wrong; every node is asked at once. `waits`: the work waits for room by itself.

    WorkStopped at the end where the work is about to start and nodes are silent: that may pass.
    """
    try:
        connect(config)
    except UserError as error:
        yield str(error)
        return
    there, keys = alive(), model_keys(models)
    if not waits:
        yield from no_room(pools, named(there), growth())
    foreign = sorted({name.partition(":")[0] for name in functions if not name.startswith("minos_ray.")})
    with suppress(UserError), token(run) as folder:  # one that cannot be written is named without the cluster

        def asked(of: Sequence[Node]) -> list[Answer]:
            found = nodes.ask(run, folder, list(keys), foreign, of)
            return nodes.answers(found, nodes.PATIENT_S if waits else nodes.WITHIN_S)

        said = settled(asked(there), asked, alive) if waits else asked(there)
        silent = list(compare.grouped(compare.silence(said)))
        yield from [] if waits else silent
        yield from told_by_nodes(config, run, todo, pools, said, keys, folder)
        if waits and silent:
            raise WorkStopped("\n  ".join(silent))


def told_by_nodes(
    config: Config,
    run: Run,
    todo: Set[str],
    pools: Pools,
    said: list[Answer],
    keys: Mapping[str, str],
    folder: str,
) -> Iterator[str]:
    """What their answers, compared with the driver's own, show to be wrong."""
    yield from compare.grouped(compare.versions(said, probe.versions()))
    yield from compare.grouped(compare.storage(said, run, folder))
    yield from compare.grouped(compare.models(said, keys))
    yield from compare.grouped(compare.modules(said))
    yield from compare.grouped(compare.disks(said, estimate.node_bytes(config, run, todo)))
    if gpu_gb := compare.gpu_gb(said):
        yield from trainings_too_large(config, run, todo, gpu_gb)
        yield from engines_too_large(config, run, pools, gpu_gb)


def model_keys(models: Iterable[tuple[str, Model]]) -> dict[str, str]:
    """Path -> config key of the models that lie in directories here, outside the run and the package."""
    paths = {absolute(model).model: key for key, model in models}
    return {path: key for path, key in paths.items() if os.path.isfile(f"{path}/config.json")}


def no_room(pools: Pools, nodes: Mapping[str, Mapping[str, float]], may: Growth) -> Iterator[str]:
    """Pools that do not fit on the nodes, nor on any that could come."""
    for name, need in sorted(pools.items()):
        line = lack(f"resources.{name}", need, nodes)
        if line and not may.possible:
            yield f"{line}; lower it or add nodes"
        elif line and may.types is not None and not room(need, may.types):
            yield f"{line}; the autoscaler has no type of node that holds one ({', '.join(map(amounts, may.types))})"


def stated(pools: Pools) -> Iterator[str]:
    """What the cluster is, and what of the wanted has yet to come."""
    there = named(alive())
    yield f"cluster: {len(there)} nodes with {amounts(summed(list(there.values())))}: same versions, storage shared"
    for name, need in sorted(pools.items()):
        if line := lack(f"resources.{name}", need, there):
            yield f"{line}; an autoscaler runs, the stage asks it for nodes and waits up to resources.wait_s"
