"""The server against its own scorer and against vLLM's `/classify` server: the same weights, the same groups.

python benchmarks/serving.py [--seconds 300] [--rounds 3] [--clients 64] [--replicas 2] [--without vllm scorer]
    [--shape small] [--out FILE]

Each client sends one group after another, `--group` solutions of one question in a request, and compares every answer
with the scorer's. The scorer scores the same groups in this process, with all threads. vLLM gets token ids, so its
server tokenises nothing; it has its cache of prefixes. The contenders take turns of `--seconds` / `--rounds`; what a
server costs in the turns of others is printed too. Rates are medians of the turns; memory is that of all processes of a
server, at the start, after every minute and at the end. The clients, coroutines of this process, take their CPU from
the same cores as the server; on a busy machine compare the CPU seconds, not the rates.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from scoring import SHAPES, save_model

from minos_ray.config.schema import Model
from minos_ray.miniature import attempt, draw, solution_text
from minos_ray.serving.scorer import SolutionScorer, Task, verifier_of
from minos_ray.steps.encoding import NAME, VERSION, encode_solutions
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

WAIT_S = 300
CLOSE = 1e-4  # scores of two servers that differ by more are not of one model
Group = tuple[str, list[str]]


@dataclass
class Turn:
    """One contender's turn: seconds of each request, the largest difference to the scorer's scores, requests without
    an answer, solutions that the server scored beyond those that clients got; CPU seconds and MiB by part of the
    server, and of the clients."""

    seconds: list[float] = field(default_factory=list)
    difference: float = 0.0
    wall: float = 0.0
    lost: int = 0
    doubled: int = 0
    cpu: dict[str, float] = field(default_factory=dict)
    memory: list[dict[str, float]] = field(default_factory=list)

    def add(self, seconds: float, scores: list[float], expected: list[float]) -> None:
        """One answer; AssertionError when it is not whole."""
        assert len(scores) == len(expected)
        self.seconds.append(seconds)
        self.difference = max(self.difference, float(np.abs(np.subtract(scores, expected)).max()))


class Server:
    """A server process with all that it starts."""

    def __init__(self, command: list[str], log: str, environment: dict[str, str]) -> None:
        with open(log, "w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **environment})
        self.client = httpx.Client(trust_env=False, timeout=WAIT_S)
        self.log, self.metrics = log, ""

    def ready(self, address: str) -> None:
        """Waits until the server at this address is healthy."""
        self.metrics = f"{address}/metrics"
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, Path(self.log).read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                if self.client.get(f"{address}/health").status_code == 200:
                    return
            time.sleep(0.5)
        raise TimeoutError(self.log)

    def parts(self, measure: Callable[[psutil.Process], float]) -> dict[str, float]:
        """A measure of all processes, by part: the command, its replicas, and the others that it started."""
        own, measures = psutil.Process(self.process.pid), defaultdict[str, float](float)
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                part = "replicas" if "ServeReplica" in " ".join(process.cmdline()) else "others"
                measures["command" if process == own else part] += measure(process)
        return measures

    def memory_mb(self) -> dict[str, float]:
        """Shared pages counted once."""
        return self.parts(lambda process: process.memory_full_info().pss / 2**20)

    def cpu_seconds(self) -> dict[str, float]:
        """Since they began."""
        return self.parts(lambda process: sum(process.cpu_times()[:2]))

    def scored(self) -> int | None:
        """Solutions that the server says it scored; None of vLLM's, which has no such count."""
        line = re.search(r'minos_serve_solutions_total{outcome="scored"} (\S+)', self.client.get(self.metrics).text)
        return int(float(line[1])) if line else None

    def end(self) -> None:
        """Ends it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT_S)


def groups_of(count: int, size: int) -> list[Group]:
    """Questions of the miniature, each with `size` solutions as its authors write them."""
    rng, groups = random.Random(0), []
    for problem in (draw(rng) for _ in range(count)):
        tries = [attempt(problem, rng) for _ in range(size)]
        groups.append((problem.question, [solution_text(steps, steps[-1].result) for steps in tries]))
    return groups


def in_process(scorer: SolutionScorer, groups: list[Group], expected: list[list[float]], seconds: float) -> Turn:
    """The scorer itself, group after group."""
    turn, start, cpu = Turn(), time.monotonic(), time.process_time()
    while (elapsed := time.monotonic() - start) < seconds:
        place = len(turn.seconds) % len(groups)
        question, solutions = groups[place]
        scores, _ = scorer([question] * len(solutions), solutions)
        turn.add(time.monotonic() - start - elapsed, [score or 0.0 for score in scores], expected[place])
    turn.wall, turn.cpu["scorer"] = time.monotonic() - start, time.process_time() - cpu
    return turn


@dataclass
class Contender:
    """A server with a request for each group, and what reads the scores in its reply."""

    server: Server
    address: str
    path: str
    bodies: list[bytes]
    read: Callable[[Any], list[float]]

    def turn(self, expected: list[list[float]], seconds: float, clients: int) -> Turn:
        """Clients that each ask for one group after another, measured."""
        turn = Turn(memory=[self.server.memory_mb()])
        scored, before, own = self.server.scored(), self.server.cpu_seconds(), time.process_time()
        with every_minute(lambda: turn.memory.append(self.server.memory_mb())):
            asyncio.run(self.over_http(turn, expected, seconds, clients))
        turn.cpu = {part: seconds - before.get(part, 0) for part, seconds in self.server.cpu_seconds().items()}
        turn.cpu["clients"] = time.process_time() - own
        turn.memory.append(self.server.memory_mb())
        if scored is not None:
            turn.doubled = (self.server.scored() or 0) - scored - len(expected[0]) * len(turn.seconds)
        return turn

    async def over_http(self, turn: Turn, expected: list[list[float]], seconds: float, clients: int) -> None:
        """The clients, one connection each."""
        host, port = self.address.removeprefix("http://").split(":")
        start = time.monotonic()

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection(host, int(port))
            place = number
            while (begin := time.monotonic()) - start < seconds:
                group = place % len(self.bodies)
                try:
                    reply = await asyncio.wait_for(self.exchange(reader, writer, self.bodies[group]), WAIT_S)
                    turn.add(time.monotonic() - begin, self.read(reply), expected[group])
                except (OSError, EOFError, TimeoutError):
                    turn.lost += 1
                    writer.close()
                    reader, writer = await asyncio.open_connection(host, int(port))
                place += clients
            writer.close()

        await asyncio.gather(*map(client, range(clients)))
        turn.wall = time.monotonic() - start

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> Any:
        """The reply to a request, which must be a success."""
        head = f"POST {self.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, _, headers = (await reader.readuntil(b"\r\n\r\n")).lower().partition(b"\r\n")
        length = re.search(rb"content-length: (\d+)", headers)
        content = await reader.readexactly(int(length[1]) if length else 0)
        assert b" 200 " in status and length, (status, headers, content[:500])
        return json.loads(content)


@contextlib.contextmanager
def every_minute(sample: Callable[[], None]) -> Generator[None]:
    """Calls `sample` in a thread, once a minute."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(60):
            sample()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def minos_server(path: str, folder: str, arguments: argparse.Namespace) -> tuple[Server, str]:
    """`minos serve` on a free port, and its address."""
    command = [sys.executable, "-m", "minos_ray", "serve", path, "--port", "0", "--replicas", str(arguments.replicas)]
    server = Server(command, f"{folder}/minos.log", {})
    until = time.monotonic() + WAIT_S
    while not (line := re.search(r"loading; (http://\S+)", Path(server.log).read_text())):
        assert server.process.poll() is None and time.monotonic() < until, Path(server.log).read_text()
        time.sleep(0.2)
    server.ready(line[1])
    return server, line[1]


def vllm_server(path: str, folder: str) -> tuple[Server, str]:
    """vLLM's own server with its pooling runner, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--runner", "pooling", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "verifier"]
    options += ["--dtype", "float32", "--max-num-batched-tokens", "8192", "--block-size", "32", "--disable-log-stats"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path, *options]
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    server = Server(command, f"{folder}/vllm.log", environment)
    server.ready(f"http://127.0.0.1:{port}")
    return server, f"http://127.0.0.1:{port}"


def show(name: str, turns: list[Turn], size: int, first: float | None) -> dict[str, Any]:
    """Prints one contender; returns its figures."""
    rate = statistics.median(len(turn.seconds) * size / turn.wall for turn in turns)
    seconds = [value for turn in turns for value in turn.seconds]
    p50, p99 = np.percentile(seconds, (50, 99))
    cpu = {part: sum(turn.cpu.get(part, 0) for turn in turns) for part in turns[0].cpu}
    figures = {
        "solutions_per_second": rate,
        "answers": len(seconds),
        "p50_s": float(p50),
        "p99_s": float(p99),
        "difference": max(turn.difference for turn in turns),
        "lost": sum(turn.lost for turn in turns),
        "doubled": sum(turn.doubled for turn in turns),
        "cpu_seconds_per_1000": {part: 1000 * value / (len(seconds) * size) for part, value in cpu.items()},
        "memory_mb": [memory for turn in turns for memory in turn.memory],
    }
    ratio = f"first is {first / rate:5.2f} x" if first else ""
    print(
        f"  {name:14} {rate:10,.0f} solutions/s  p50 {p50:6.3f} s  p99 {p99:6.3f} s  {len(seconds):7,} answers, "
        f"{figures['lost']} lost, {figures['doubled']} doubled, differ by {figures['difference']:.1e}  {ratio}"
    )
    by_part = ", ".join(f"{part} {value:.3f}" for part, value in figures["cpu_seconds_per_1000"].items())
    total = sum(value for part, value in figures["cpu_seconds_per_1000"].items() if part != "clients")
    print(f"  {'':14} CPU seconds for 1,000 solutions: {total:.3f} ({by_part})")
    for turn in turns:
        if turn.memory:
            values = ", ".join(f"{sum(memory.values()):,.0f} ({memory['replicas']:,.0f})" for memory in turn.memory)
            print(f"  {'':14} MiB at the start, each minute, the end (replicas): {values}")
    return figures


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="of each contender, all turns together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--group", type=int, default=64, help="solutions of one question in a request")
    parser.add_argument("--questions", type=int, default=64, help="at least as many as clients, or these share work")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--without", nargs="+", choices=["vllm", "scorer"], default=[])
    parser.add_argument("--out", help="a JSON file")
    arguments = parser.parse_args()
    if arguments.questions < arguments.clients:
        parser.error("--questions below --clients: the server would compute what several ask for at a time once")
    groups = groups_of(arguments.questions, arguments.group)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        tokenizer = load_tokenizer(locate(Model(model="package:miniature/model"), Run(folder)))
        path = save_model(folder, "orm", arguments.shape, tokenizer)
        # As training saves it: it says in which encoding it reads.
        config = Path(path) / "config.json"
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"step_encoding": {"name": NAME, "version": VERSION}})
        )
        scorer = SolutionScorer(Task(verifier_of(path), "", "", ""))
        expected = [[score or 0.0 for score in scorer([q] * len(texts), texts)[0]] for q, texts in groups]
        ours, address = minos_server(path, folder, arguments)
        ends.callback(ours.end)
        bodies = [json.dumps({"question": question, "solutions": texts}).encode() for question, texts in groups]
        contenders = {"minos serve": Contender(ours, address, "/score", bodies, lambda reply: reply["scores"])}
        if "vllm" not in arguments.without:
            theirs, url = vllm_server(path, folder)
            ends.callback(theirs.end)
            encoded = [encode_solutions(tokenizer, [(q, scorer.steps(text)) for text in texts]) for q, texts in groups]
            inputs = [json.dumps({"input": [e.ids for e in solutions]}).encode() for solutions in encoded]
            contenders["vLLM /classify"] = Contender(
                theirs, url, "/classify", inputs, lambda reply: [item["probs"][0] for item in reply["data"]]
            )
        run(arguments, groups, expected, scorer, contenders)


def run(
    arguments: argparse.Namespace,
    groups: list[Group],
    expected: list[list[float]],
    scorer: SolutionScorer,
    contenders: dict[str, Contender],
) -> None:
    """Alternating turns, then the table."""
    turns: dict[str, list[Turn]] = {name: [] for name in (*contenders, "scorer") if name not in arguments.without}
    idle: dict[str, float] = dict.fromkeys(contenders, 0.0)
    for contender in contenders.values():  # what is compiled or allocated with the first requests
        contender.turn(expected, 1, arguments.clients)
    seconds = arguments.seconds / arguments.rounds
    for _ in range(arguments.rounds):
        for name in reversed(turns):
            before = {other: sum(contender.server.cpu_seconds().values()) for other, contender in contenders.items()}
            if name == "scorer":
                turns[name].append(in_process(scorer, groups, expected, seconds))
            else:
                turns[name].append(contenders[name].turn(expected, seconds, arguments.clients))
            for other, contender in contenders.items():
                idle[other] += (sum(contender.server.cpu_seconds().values()) - before[other]) * (other != name)
    print(
        f"{arguments.clients} clients, groups of {arguments.group} solutions, {arguments.shape} ORM, "
        f"{arguments.rounds} turns of {seconds:g} s each, {os.cpu_count()} CPUs"
    )
    share = {name: used / (seconds * arguments.rounds * max(1, len(turns) - 1)) for name, used in idle.items()}
    print(f"  CPUs used by servers in the turns of others: {', '.join(f'{n} {v:.2f}' for n, v in share.items())}")
    figures, first = {}, None
    for name in turns:
        figures[name] = show(name, turns[name], arguments.group, first)
        first = first or figures[name]["solutions_per_second"]
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=1))
    if wrong := [name for name, values in figures.items() if not values["difference"] <= CLOSE]:
        sys.exit(f"scores differ by more than {CLOSE:g}: {', '.join(wrong)}")
    if wrong := [name for name, values in figures.items() if values["lost"] or values["doubled"]]:
        sys.exit(f"answers were lost or doubled: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
