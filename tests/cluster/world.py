"""A cluster of raylets that differ, and configs that go wrong on it, each in one way.

`127.0.0.2` is as it should be, with three GPUs by name. `127.0.0.3` has five, and a mount namespace of its own: some
paths are empty, read-only or full there, where `unshare` is allowed. Elsewhere it has the same mounts as all.
"""

import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from tests.raylets import STORE, Raylets, started_raylets
from tests.tiny import tiny_model

BIN = Path(sys.executable).parent
GOOD, ODD, OTHER = "127.0.0.2", "127.0.0.3", "127.0.0.4"
KEY = "MINOS_TEST_KEY"
NAMESPACE = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]
# A GPU of 4 GiB, as nvidia-smi tells it.
NVIDIA_SMI = "#!/bin/sh\necho 4096\n"
QUESTION = '{"question": "%s: Ann has 2 pens and buys 3. How many?", "answer": "2+3=<<2+3=5>>5\\n#### 5"}\n'


def namespaces() -> bool:
    """Whether processes here can have mounts of their own."""
    try:
        return subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "x", "/mnt"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


SEPARATE = namespaces()


def prepare(folder: Path) -> None:
    """What the configs name: a model, one that only some see, problems, runs, and a script that acts as nvidia-smi."""
    tiny_model(folder / "model")
    shutil.copytree(folder / "model", folder / "partly" / "model")
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(QUESTION % split)
    for name in ("alone", "frozen", "tiny", "bin", "modules/here", "modules/partly"):
        (folder / name).mkdir(parents=True)
    (folder / "modules" / "here" / "everywhere.py").write_text(
        "def plain(question: str, tokenizer: object) -> list[int]:\n    return [1]\n"
    )
    (folder / "modules" / "partly" / "somewhere.py").write_text(
        "def plain(question: str, tokenizer: object) -> list[int]:\n    return [1]\n"
    )
    (folder / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "bin" / "nvidia-smi").chmod(0o755)


def mounts(folder: Path) -> str:
    """What is otherwise on the odd node: another directory, a read-only one, nothing where a model or a module is."""
    empty = [f"mount -t tmpfs none {folder}/{name}" for name in ("alone", "partly", "modules/partly")]
    frozen = [f"mount --bind {folder}/frozen {folder}/frozen", f"mount -o remount,ro,bind {folder}/frozen"]
    return " && ".join([*empty, *frozen])


@contextmanager
def raylet(address: str, ip: str, script: str, gpus: int = 0, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A node in a mount namespace of its own, in which the shell script was run first; ended by its own process.

    Where there are no namespaces the script is left out.
    """
    start = [str(BIN / "ray"), "start", f"--address={address}", f"--node-ip-address={ip}", "--num-cpus=2", "--block"]
    start += [f"--num-gpus={gpus}", f"--object-store-memory={STORE['object_store_memory']}", "--disable-usage-stats"]
    start += [f"--{port}-port=0" for port in ("min-worker", "max-worker", "metrics-export", "dashboard-agent-listen")]
    command = [*NAMESPACE, "sh", "-c", f'{script} && exec "$@"', "node", *start] if SEPARATE else start
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **env}, start_new_session=True, stdout=log, stderr=log)
        try:
            wait_for(lambda: any(n["NodeManagerAddress"] == ip and n["Alive"] for n in nodes(address)), process, log)
            yield process
        finally:
            process.terminate()
            process.wait(timeout=120)


@contextmanager
def other_node(folder: Path, address: str) -> Iterator[None]:
    """One more node, with another transformers by its metadata and a temporary directory of 1 MB."""
    old = folder / "old" / "transformers-4.1.0.dist-info"
    old.mkdir(parents=True, exist_ok=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 4.1.0\n")
    path = ":".join([str(old.parent), *(f"{folder}/modules/{name}" for name in ("here", "partly")), *sys.path])
    tiny = f"mount -t tmpfs -o size=1m none {folder}/tiny"
    with raylet(address, OTHER, tiny, PYTHONPATH=path, TMPDIR=f"{folder}/tiny"):
        yield


def is_raylet_of(process: psutil.Process, ip: str) -> bool:
    """Whether a process is the raylet of a node; one that ends meanwhile is none."""
    with suppress(psutil.NoSuchProcess):
        return process.name() == "raylet" and f"--node_ip_address={ip}" in process.cmdline()
    return False


@contextmanager
def frozen(ip: str) -> Iterator[None]:
    """The raylet of a node does nothing for a while."""
    [process] = [p for p in psutil.Process().children(recursive=True) if is_raylet_of(p, ip)]
    process.suspend()
    try:
        yield
    finally:
        process.resume()


def nodes(address: str) -> list[dict[str, Any]]:
    """The nodes of the cluster, asked through a connection that is kept."""
    import ray

    if not ray.is_initialized():
        ray.init(address=address, log_to_driver=False)
    return ray.nodes()


def wait_for(true: Callable[[], bool], process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Returns as soon as it is true; fails with the log when the process ended or two minutes passed."""
    deadline = time.monotonic() + 120
    while not true():
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise AssertionError(log.read().decode())
        time.sleep(0.1)


@contextmanager
def critic() -> Iterator[str]:
    """Base URL of an endpoint that knows the key `good` and lists no models."""

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers["Authorization"] == "Bearer good"
            body = b'{"object": "list", "data": []}' if good else b'{"error": {"message": "Incorrect API key"}}'
            self.send_response(200 if good else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keeps the output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def cluster(folder: Path) -> Iterator[Raylets]:
    """The head (no CPUs) and the two nodes, in a world that was prepared. A frozen node is not taken for dead."""
    gpus = {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    modules = {"PYTHONPATH": f"{folder}/modules/here:{folder}/modules/partly:{os.environ.get('PYTHONPATH', '')}"}
    with started_raylets(misses=400, env_vars=modules) as made:
        made.add(node_ip_address=GOOD, num_cpus=2, num_gpus=3, env_vars=gpus | modules)
        with raylet(made.address, ODD, mounts(folder), gpus=5, **gpus, **modules):
            yield made


def right(folder: Path, address: str, critic_url: str) -> dict[str, Any]:
    """The values of a config that nothing is wrong with."""
    return {
        "run": f"{folder}/run",
        "problems": {split: {"path": f"{folder}/{split}.jsonl"} for split in ("train", "test")},
        "generator": {"model": f"{folder}/model"},
        "base": {"model": f"{folder}/model"},
        "label": {"steps": "minos_ray.miniature.step_labels:label_steps"},
        "critique": {"base_url": critic_url, "api_key_env": KEY, "model": "m"},
        "resources": {"address": address},
    }


@dataclass(frozen=True)
class Seeded:
    """A mistake: overrides (`{folder}` stands for the world's), environment, words that one line must hold."""

    overrides: tuple[str, ...]
    words: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    @property
    def mounted(self) -> bool:
        """Whether it is one of the odd node's mounts."""
        return self.words[0] == ODD


GPUS = ("resources.sample.gpus=4", "resources.sample.actors=2")
TRAIN = ("resources.train.gpu=true", "sft.max_length=1024", "resources.train.micro_tokens=4000000")
SEEDED = {
    "missing data file": Seeded(("problems.test.path={folder}/no.jsonl",), ("problems.test.path", "no.jsonl")),
    "model missing on one node": Seeded(
        ("generator.model={folder}/partly/model",), (ODD, "generator.model", "No such file or directory")
    ),
    "run directory not shared": Seeded(("run={folder}/alone/run",), (ODD, "run = ", "another directory")),
    "run directory read-only": Seeded(("run={folder}/frozen/run",), (ODD, "run = ", "Read-only file system")),
    "function's module missing on one node": Seeded(("sample.prompt=somewhere:plain",), (ODD, "'somewhere'")),
    "more CPUs than there are": Seeded(
        ("resources.grade.actors=9",), ("resources.grade wants 9 x (1 CPU)", "4 of 9 fit")
    ),
    "an actor that fits no node": Seeded(
        GPUS, ("resources.sample wants 2 x (1 CPU, 4 GPU)", "1 of 2 fit", f"{ODD}: 2 CPU, 5 GPU")
    ),
    "training too large for the GPUs": Seeded(TRAIN, ("resources.train", "GB on each GPU, which has 4")),
    "critic down": Seeded(("critique.base_url=http://127.0.0.1:9/v1",), ("critique.base_url", "cannot be reached")),
    "wrong key": Seeded((), ("critic refused the key", "401", KEY), {KEY: "wrong"}),
    "no key": Seeded((), (KEY, "is not set"), {KEY: ""}),
    "no cluster at the address": Seeded(
        ("resources.address=127.0.0.1:9",), ("resources.address = '127.0.0.1:9'", "does not answer")
    ),
    "run larger than the disk": Seeded(
        ("sample.n_test=100000000", "problems.test.limit=100000"), ("GB free", "candidates")
    ),
}
