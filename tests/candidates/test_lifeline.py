"""An engine in a process of its own and the process that uses it: whichever is killed, the other does not stay."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

# One batch, which the engine has as a whole: from then on the client only waits, for minutes.
CLIENT = """
import sys
from minos_ray.candidates.engine import Generator, Request
from minos_ray.config.resources import Engine
from minos_ray.config.schema import Model

resources = Engine(kv_cache_gb=0.5, max_model_len=512, dtype="float32", max_num_seqs=256)
made = Generator(sys.argv[1], Model(model=sys.argv[1]), resources)
requests = [Request([5, 6, 7], 2560)]
sampling = {"temperature": 1.0, "max_tokens": 500, "min_tokens": 500}

def started(places):
    print("started", flush=True)
    return True

print(len(list(made.stream(requests, sampling, "seed", started))), "texts", flush=True)
"""


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes with an engine at work, one for each test; they start side by side."""
    command = [sys.executable, "-c", CLIENT, tiny_model(tmp_path_factory.mktemp("model"))]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    cwd = Path(__file__).parents[2]
    processes = [subprocess.Popen(command, env=environment, cwd=cwd, **pipes) for _ in range(2)]
    for process in processes:
        while "started" not in (line := process.stdout.readline()):
            assert line or process.poll() is None, process.stderr.read()
    time.sleep(1)
    yield list(processes)
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def client(clients: list["subprocess.Popen[str]"]) -> "subprocess.Popen[str]":
    """One that no other test has."""
    return clients.pop()


def engine_of(client: "subprocess.Popen[str]") -> psutil.Process:
    """Its engine."""
    found = []
    for process in psutil.Process(client.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # another one may end meanwhile
            found += [process] if "EngineCore" in " ".join(process.cmdline()) else []
    (engine,) = found
    return engine


def test_who_waits_for_a_killed_engine_is_told(client: "subprocess.Popen[str]") -> None:
    engine_of(client).kill()
    said, errors = client.communicate(timeout=300)
    assert client.returncode == 1 and "texts" not in said
    assert [line for line in errors.splitlines() if line.startswith("vllm.") and "EngineDeadError" in line]


def test_an_engine_ends_with_its_killed_client(client: "subprocess.Popen[str]") -> None:
    engine = engine_of(client)
    os.kill(client.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs([engine], timeout=120)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert not alive
