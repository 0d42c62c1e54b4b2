"""`minos serve` as users start it: a process of its own, and what is asked of it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import psutil

WAIT_S = 300
KEY = "a key of the tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
LINE = re.compile(r"loading; (http://127\.0\.0\.1:(\d+))")


def wait_for(what: Callable[[], Any]) -> Any:
    """The first true value of `what`."""
    until = time.monotonic() + WAIT_S
    while not (value := what()):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)
    return value


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != "zombie"
    return False


class Server:
    """A running server; `early` are the replies while its model was loading."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "log"
        environment = {**os.environ, "SERVE_KEY": KEY, "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_BACKEND_LOG_LEVEL")  # Ray prints that it found it
        command = [sys.executable, "-m", "minos_ray", "serve", *arguments, "--port", "0", "--api-key-env", "SERVE_KEY"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        self.client = httpx.Client(trust_env=False, timeout=WAIT_S, headers=HEADERS, limits=httpx.Limits())
        self.address, port = wait_for(lambda: self.line(LINE)).groups()
        self.port = int(port)
        self.early = [self.client.get(f"{self.address}/health"), self.post("/score", {})]
        wait_for(lambda: self.client.get(f"{self.address}/health").status_code == 200)

    def line(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """A line of the log; AssertionError with all of it when the process has ended."""
        text = self.log.read_text()
        assert self.process.poll() is None, text
        return pattern.search(text)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """The reply to a request."""
        return self.client.post(f"{self.address}{path}", json=body, **options)

    def half_sent(self, path: str, body: Any) -> tuple[HTTPConnection, bytes]:
        """A request that is in flight until the rest of its body, which comes back, is sent."""
        content = json.dumps(body).encode()
        connection = HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)
        connection.putrequest("POST", path)
        for name, value in {**HEADERS, "Content-Length": str(len(content))}.items():
            connection.putheader(name, value)
        connection.endheaders(content[:-10])
        return connection, content[-10:]

    def score(self, question: str, solutions: list[Any]) -> dict[str, Any]:
        """What `/score` answers."""
        reply = self.post("/score", {"question": question, "solutions": solutions})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def metric(self, name: str, **labels: str) -> float:
        """The value of a metric; 0 before it is counted."""
        text = self.client.get(f"{self.address}/metrics").text
        inner = ",".join(f'{key}="{value}"' for key, value in labels.items())
        line = f"minos_serve_{name}{{{inner}}}" if inner else f"minos_serve_{name}"
        values = [part.rpartition(" ")[2] for part in text.splitlines() if part.rpartition(" ")[0] == line]
        return float(values[0]) if values else 0.0

    def processes(self) -> list[psutil.Process]:
        """The server and all that it has started."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def replicas(self) -> list[psutil.Process]:
        """The processes of its replicas."""
        replicas = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                replicas += [process] if "ServeReplica" in " ".join(process.cmdline()) else []
        return replicas

    def end(self) -> int:
        """Ends it as its user or a cluster does; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)
