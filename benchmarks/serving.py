"""The server against its own scorer and against vLLM's `/classify` server: the same weights, the same groups.

python benchmarks/serving.py [--seconds 300] [--rounds 3] [--clients 64] [--shape small] [--without vllm] [--out FILE]

Each client sends one group after another, `--group` solutions of one question in a request, and compares every answer
with the scorer's. The scorer scores the same groups in this process, with all threads. vLLM gets token ids, so its
server tokenises nothing; it has its cache of prefixes. The contenders take turns of `--seconds` / `--rounds`; what a
server costs in the turns of others is printed too. Rates are medians of the turns; memory is that of all processes of a
server.
"""

import argparse
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from scoring import SHAPES, save_model

from minos_ray.config.schema import Model
from minos_ray.miniature.problems import attempt, draw, solution_text
from minos_ray.ranking.scorer import SolutionScorer, Task, verifier_of
from minos_ray.steps.encoding import NAME, VERSION, encode_solutions
from minos_ray.store.model_files import load_tokenizer, locate
from minos_ray.store.run import Run

WAIT_S = 300
CLOSE = 1e-4  # scores of two servers that differ by more are not of one model
Group = tuple[str, list[str]]


class Turn:
    """One contender's turn: groups scored, seconds of each request, the largest difference to the scorer's scores."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.difference, self.wall = 0.0, 0.0

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
        self.client = httpx.Client(trust_env=False, timeout=WAIT_S, limits=httpx.Limits(max_connections=None))
        self.log = log

    def ready(self, url: str) -> None:
        """Waits for `url`."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, Path(self.log).read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                if self.client.get(url).status_code == 200:
                    return
            time.sleep(0.5)
        raise TimeoutError(self.log)

    def processes(self) -> list[psutil.Process]:
        """All of them."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def memory_mb(self) -> float:
        """Of all processes, shared pages counted once."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 2**20

    def cpu_seconds(self) -> float:
        """Of all processes, since they began."""
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

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
    turn, start = Turn(), time.monotonic()
    while (elapsed := time.monotonic() - start) < seconds:
        place = len(turn.seconds) % len(groups)
        question, solutions = groups[place]
        scores, _ = scorer([question] * len(solutions), solutions)
        turn.add(time.monotonic() - start - elapsed, [score or 0.0 for score in scores], expected[place])
    turn.wall = time.monotonic() - start
    return turn


def over_http(
    ask: Callable[[int], list[float]], groups: list[Group], expected: list[list[float]], seconds: float, clients: int
) -> Turn:
    """Clients that each ask for one group after another; `ask` takes the place of a group."""
    turn, lock, start = Turn(), threading.Lock(), time.monotonic()

    def client(number: int) -> None:
        place = number
        while (begin := time.monotonic()) - start < seconds:
            scores = ask(place % len(groups))
            with lock:
                turn.add(time.monotonic() - begin, scores, expected[place % len(groups)])
            place += clients

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    turn.wall = time.monotonic() - start
    return turn


def minos_server(path: str, folder: str, arguments: argparse.Namespace) -> tuple[Server, str]:
    """`minos serve` on a free port, and its address."""
    command = [sys.executable, "-m", "minos_ray", "serve", path, "--port", "0", "--replicas", str(arguments.replicas)]
    server = Server(command, f"{folder}/minos.log", {})
    until = time.monotonic() + WAIT_S
    while not (line := re.search(r"loading; (http://\S+)", Path(server.log).read_text())):
        assert server.process.poll() is None and time.monotonic() < until, Path(server.log).read_text()
        time.sleep(0.2)
    server.ready(f"{line[1]}/health")
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
    server.ready(f"http://127.0.0.1:{port}/health")
    return server, f"http://127.0.0.1:{port}"


def post(server: Server, url: str, body: bytes) -> Any:
    """The reply to a request, which must be a success."""
    reply = server.client.post(url, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200, reply.text
    return reply.json()


def show(name: str, turns: list[Turn], size: int, first: float | None, memory: list[float]) -> dict[str, Any]:
    """Prints one contender; returns its figures."""
    rate = statistics.median(len(turn.seconds) * size / turn.wall for turn in turns)
    seconds = [value for turn in turns for value in turn.seconds]
    p50, p99 = np.percentile(seconds, (50, 99))
    figures = {
        "solutions_per_second": rate,
        "answers": len(seconds),
        "p50_s": float(p50),
        "p99_s": float(p99),
        "difference": max(turn.difference for turn in turns),
        "memory_mb": memory,
    }
    ratio = f"first is {first / rate:5.2f} x" if first else ""
    print(
        f"  {name:14} {rate:10,.0f} solutions/s  p50 {p50:6.3f} s  p99 {p99:6.3f} s  {len(seconds):7,} answers, "
        f"differ by {figures['difference']:.1e}  {ratio}"
    )
    if memory:
        print(f"  {'':14} memory after each turn: {', '.join(f'{value:,.0f}' for value in memory)} MiB")
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
    parser.add_argument("--without", nargs="+", choices=["vllm"], default=[])
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
        asks: dict[str, tuple[Server, Callable[[int], list[float]]]] = {
            "minos serve": (ours, lambda place: post(ours, f"{address}/score", bodies[place])["scores"])
        }
        if "vllm" not in arguments.without:
            theirs, url = vllm_server(path, folder)
            ends.callback(theirs.end)
            encoded = [encode_solutions(tokenizer, [(q, scorer.steps(text)) for text in texts]) for q, texts in groups]
            inputs = [json.dumps({"input": [e.ids for e in solutions]}).encode() for solutions in encoded]
            asks["vLLM /classify"] = (
                theirs,
                lambda place: [item["probs"][0] for item in post(theirs, f"{url}/classify", inputs[place])["data"]],
            )
        run(arguments, groups, expected, scorer, asks)


def run(
    arguments: argparse.Namespace,
    groups: list[Group],
    expected: list[list[float]],
    scorer: SolutionScorer,
    asks: dict[str, tuple[Server, Callable[[int], list[float]]]],
) -> None:
    """Alternating turns, then the table."""
    turns: dict[str, list[Turn]] = {name: [] for name in ("minos serve", "scorer", *asks)}
    memory: dict[str, list[float]] = {name: [] for name in turns}
    idle: dict[str, float] = dict.fromkeys(asks, 0.0)
    for name, (server, ask) in asks.items():  # what is compiled or allocated with the first requests
        over_http(ask, groups, expected, 1, arguments.clients)
        memory[name].append(server.memory_mb())
    seconds = arguments.seconds / arguments.rounds
    for _ in range(arguments.rounds):
        for name in ("scorer", *asks):
            before = {other: server.cpu_seconds() for other, (server, _) in asks.items()}
            if name == "scorer":
                turns[name].append(in_process(scorer, groups, expected, seconds))
            else:
                turns[name].append(over_http(asks[name][1], groups, expected, seconds, arguments.clients))
                memory[name].append(asks[name][0].memory_mb())
            for other, (server, _) in asks.items():
                idle[other] += (server.cpu_seconds() - before[other]) * (other != name)
    print(
        f"{arguments.clients} clients, groups of {arguments.group} solutions, {arguments.shape} ORM, "
        f"{arguments.rounds} turns of {seconds:g} s each, {os.cpu_count()} CPUs"
    )
    share = {name: used / (seconds * arguments.rounds * len(asks)) for name, used in idle.items()}
    print(f"  CPUs used by servers in the turns of others: {', '.join(f'{n} {v:.2f}' for n, v in share.items())}")
    figures, first = {}, None
    for name in turns:
        figures[name] = show(name, turns[name], arguments.group, first, memory[name])
        first = first or figures[name]["solutions_per_second"]
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(figures, indent=1))
    if wrong := [name for name, values in figures.items() if not values["difference"] <= CLOSE]:
        sys.exit(f"scores differ by more than {CLOSE:g}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
