"""Asking every node of a cluster at once, with a time limit for all of them."""

import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from minos_ray.cluster import probe
from minos_ray.cluster.bundles import Bundles
from minos_ray.errors import StorageFailed, UserError
from minos_ray.store.run import Run

# The second where a stage starts: its nodes may have just come, or be busy with the stage before.
WITHIN_S, PATIENT_S = 15.0, 60.0


@dataclass(frozen=True)
class Node:
    """A node that is alive, its CPUs, GPUs and other resources, and its labels."""

    id: str
    address: str
    resources: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What `probe.look` reports of a node, or why there is no report."""

    node: Node
    report: dict[str, Any] | None
    error: str = ""


def alive() -> list[Node]:
    """The nodes of the cluster that was joined, without those that are to go, in order of their addresses."""
    import ray

    from minos_ray.cluster.ray_tables import draining

    leaving = draining()
    present = [n for n in ray.nodes() if n["Alive"] and n["NodeID"] not in leaving]
    keys = ("NodeID", "NodeManagerAddress", "Resources", "Labels")
    nodes = [Node(*(node[key] for key in keys)) for node in present]
    return sorted(nodes, key=lambda node: (node.address, node.id))


def by_address(nodes: Sequence[Node], need: Bundles) -> dict[str, dict[str, float]]:
    """What nodes offer to a pool, by their address; several of one address get their ids beside it."""
    addresses = [node.address for node in nodes]
    names = [n.address if addresses.count(n.address) == 1 else f"{n.address} ({n.id[:6]})" for n in nodes]
    return {name: need.offer(node.resources, node.labels) for name, node in zip(names, nodes, strict=True)}


@contextmanager
def token(run: Run) -> Generator[str]:
    """A folder in the run directory that holds a secret word of the driver; UserError where it cannot be written."""
    word = secrets.token_hex(8)
    folder = f"preflight-{word}"
    try:
        created = not run.exists("")
        run.write_bytes(f"{folder}/driver", word.encode())
    except StorageFailed as error:
        with suppress(StorageFailed):  # what is left of it, where anything is
            run.delete(folder)
        raise UserError(f"run: {error}") from error
    try:
        yield folder
    finally:
        run.delete(folder)
        if created and run.local and not run.files("") and not run.folders(""):
            run.delete("")


def ask(run: Run, folder: str, models: list[str], modules: list[str], nodes: Sequence[Node]) -> dict[Any, Node]:
    """Starts one task on each node that takes no CPU."""
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(probe)  # the node may have another minos_ray, or none
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(probe.look)
        return {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                run.path, folder, node.id, models, modules, node.resources.get("GPU", 0) > 0
            ): node
            for node in nodes
        }
    finally:
        cloudpickle.unregister_pickle_by_value(probe)


def answers(tasks: dict[Any, Node], within_s: float) -> list[Answer]:
    """What the nodes report within a time; those that do not answer are given up."""
    import ray

    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=within_s)
    for reference in late:
        ray.cancel(reference, force=True)
    silent = [Answer(tasks[reference], None, f"does not answer within {within_s:.0f} s") for reference in late]
    return [answer(tasks[reference], reference) for reference in ready] + silent


def answer(node: Node, reference: Any) -> Answer:
    """What a node reports, or in one line why its probe failed."""
    import ray
    from ray.exceptions import RayError

    try:
        return Answer(node, ray.get(reference))
    except RayError as error:
        return Answer(node, None, f"cannot be asked: {str(error).strip().splitlines()[-1]}")


def settled(
    answers: Sequence[Answer], ask_again: Callable[[list[Node]], list[Answer]], present: Callable[[], list[Node]]
) -> list[Answer]:
    """The answers after silent nodes were asked once more; the silence of one that has gone by then does not count."""

    def without_gone(answers: Sequence[Answer]) -> list[Answer]:
        ids = {node.id for node in present()}
        return [a for a in answers if a.report or a.node.id in ids]

    answers = without_gone(answers)
    silent = [answer.node for answer in answers if not answer.report]
    return without_gone([*(a for a in answers if a.report), *ask_again(silent)]) if silent else answers
