"""Asking every node of a cluster at once, with a time limit for all of them."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from minos_ray.cluster import gpus, probe
from minos_ray.errors import StorageFailed, UserError
from minos_ray.store.run import Run

# The second where a stage starts: its nodes may have just come, or be busy with the stage before.
WITHIN_S, PATIENT_S = 15.0, 60.0


@dataclass(frozen=True)
class Node:
    """A node that is alive and what it has."""

    id: str
    address: str
    has: dict[str, float]


@dataclass(frozen=True)
class Answer:
    """What `probe.look` said on a node, or why it said nothing."""

    node: Node
    said: dict[str, Any] | None
    error: str = ""


def alive() -> list[Node]:
    """The nodes of the cluster that was joined, in order of their addresses."""
    import ray

    found = [Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]
    return sorted(found, key=lambda node: (node.address, node.id))


def named(nodes: Sequence[Node]) -> dict[str, dict[str, float]]:
    """What nodes have by their address; several of one address are told apart by their ids."""
    addresses = [node.address for node in nodes]
    return {n.address if addresses.count(n.address) == 1 else f"{n.address} ({n.id[:6]})": n.has for n in nodes}


@contextmanager
def token(run: Run) -> Iterator[str]:
    """A folder in the run directory that holds a secret word of the driver; UserError where it cannot be written."""
    word = secrets.token_hex(8)
    folder = f"preflight-{word}"
    try:
        new = not run.exists("")
        run.write_bytes(f"{folder}/driver", word.encode())
    except StorageFailed as error:
        with suppress(StorageFailed):  # what is left of it, where anything is
            run.delete(folder)
        raise UserError(f"run: {error}") from error
    try:
        yield folder
    finally:
        run.delete(folder)
        if new and run.local and not run.files("") and not run.folders(""):
            run.delete("")


def ask(run: Run, folder: str, models: list[str], modules: list[str], nodes: Sequence[Node]) -> dict[Any, Node]:
    """Starts one task on each node that takes no CPU."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    for module in (probe, gpus):
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(probe.look)
        return {
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                run.path, folder, node.id, models, modules, node.has.get("GPU", 0) > 0
            ): node
            for node in nodes
        }
    finally:
        for module in (probe, gpus):
            ray.cloudpickle.unregister_pickle_by_value(module)


def answers(asked: dict[Any, Node], within_s: float) -> list[Answer]:
    """What the nodes say within a time; those that say nothing are given up."""
    import ray

    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=within_s)
    for reference in late:
        ray.cancel(reference, force=True)
    silent = [Answer(asked[reference], None, f"does not answer within {within_s:.0f} s") for reference in late]
    return [answer(asked[reference], reference) for reference in ready] + silent


def answer(node: Node, reference: Any) -> Answer:
    """What a node said; a probe that failed is told in one line."""
    import ray

    try:
        return Answer(node, ray.get(reference))
    except ray.exceptions.RayError as error:
        return Answer(node, None, f"cannot be asked: {str(error).strip().splitlines()[-1]}")


def settled(
    said: Sequence[Answer], again: Callable[[list[Node]], list[Answer]], there: Callable[[], list[Node]]
) -> list[Answer]:
    """The answers after silent nodes were asked once more; one that has gone by now has nothing to say."""

    def left(answers: Sequence[Answer]) -> list[Answer]:
        ids = {node.id for node in there()}
        return [a for a in answers if a.said or a.node.id in ids]

    said = left(said)
    silent = [answer.node for answer in said if not answer.said]
    return left([*(answer for answer in said if answer.said), *again(silent)]) if silent else said
