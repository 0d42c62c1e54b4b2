"""What the nodes said, against the driver and against each other: one line for each thing that is wrong."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from minos_ray.cluster import probe
from minos_ray.cluster.nodes import Answer
from minos_ray.store.run import Run

GB = 1e9


def grouped(found: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One line for all nodes of which the same is true; `found` has pairs of node and line."""
    nodes = defaultdict(list)
    for node, line in found:
        nodes[line].append(node)
    for line, those in nodes.items():
        more = f" and {len(those) - 4} more" if len(those) > 4 else ""
        yield f"node{'s' if len(those) > 1 else ''} {', '.join(those[:4])}{more}: {line}"


def silence(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """Nodes that said nothing."""
    for answer in answers:
        if answer.said is None:
            yield answer.node.address, answer.error


def versions(answers: Sequence[Answer], here: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Packages whose version is not the driver's; what the driver lacks only has to be equal on the nodes."""
    known = dict(here)
    for node, said in spoken(answers):
        for package, version in said["versions"].items():
            known.setdefault(package, version)
        for package, version in known.items():
            there = said["versions"].get(package)
            if there != version and (there or package in here):
                whose = "the driver has" if package in here else "another node has"
                yield node, f"{package} {there or 'is missing'}, {whose} {version}; install the same on every node"


def storage(answers: Sequence[Answer], run: Run, folder: str) -> Iterator[tuple[str, str]]:
    """Nodes that cannot read or write the run directory, or for which it is another one."""
    for node, answer in ((a.node.address, a) for a in answers if a.said):
        if problem := answer.said["storage"]:
            yield node, f"run = '{run.path}' {problem}"
        elif not run.exists(f"{folder}/{answer.node.id}"):
            yield node, f"run = '{run.path}': the driver does not see what is written there; share that path"


def models(answers: Sequence[Answer], keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Model directories (path -> config key) that a node does not have as the driver has them."""
    here = {path: probe.model(path) for path in keys}
    for node, said in spoken(answers):
        for path, digest in said["models"].items():
            if digest.startswith("!"):
                yield node, f"{keys[path]} = '{path}' cannot be read there: {digest[1:]}; copy it or share that path"
            elif digest != here[path]:
                yield node, f"{keys[path]} = '{path}' is another model there: its config or the sizes of its files"


def modules(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """Modules of the user's functions that a node does not find."""
    for node, said in spoken(answers):
        for name, found in said["modules"].items():
            if not found:
                yield node, f"module '{name}', named in the config, is not found there; install it on every node"


def disks(answers: Sequence[Answer], needs: Callable[[Mapping[str, float]], float]) -> Iterator[tuple[str, str]]:
    """Nodes whose temporary directory has fewer bytes than a node that has so much needs."""
    for answer in answers:
        if answer.said and (free := answer.said["free"]) < (wanted := needs(answer.node.has)):
            has = f"{answer.said['temporary']} has {free / GB:.2f} GB free"
            why = f"logs, spilled blocks and checkpoints on their way take about {wanted / GB:.2f}"
            yield answer.node.address, f"{has}, {why}; free some or set TMPDIR on that node"


def gpu_gb(answers: Sequence[Answer]) -> float | None:
    """GB of the smallest GPU that any node told of."""
    return min((said["gpu_gb"] for _, said in spoken(answers) if said["gpu_gb"]), default=None)


def spoken(answers: Sequence[Answer]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Address and words of the nodes that said something."""
    return ((answer.node.address, answer.said) for answer in answers if answer.said)
