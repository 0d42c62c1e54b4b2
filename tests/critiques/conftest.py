"""A run with labelled candidates of the miniature, its config, and scripted servers."""

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from minos_ray.config.load import Config
from minos_ray.miniature import attempt, load, read, solution_text
from minos_ray.miniature.step_labels import labels_of
from minos_ray.store.columns import table
from minos_ray.store.run import Run
from tests.critiques.asking import Ask
from tests.critiques.batch_server import AskBatch, BatchServer, Fate, ServeBatch
from tests.critiques.batch_server import Script as BatchScript
from tests.critiques.scripted import KEY, MakeConfig, Reply, Script, ScriptedServer, Serve


def labelled(problem: dict[str, str], index: int, rng: random.Random) -> dict[str, Any]:
    """A labels row for one attempt at a problem."""
    calculations = attempt(read(problem["question"]), rng)
    answer = calculations[-1].result
    steps = solution_text(calculations, answer).split("\n")
    labels, errors = labels_of(problem["question"], steps)
    return {
        "candidate_id": f"{problem['problem_id']}/{index}",
        "problem_id": problem["problem_id"],
        "answer": str(answer),
        "correct": bool(labels[-1]),
        "status": "correct" if labels[-1] else "wrong",
        "steps": steps,
        "step_labels": labels,
        "step_scores": None,
        "step_source": "gold",
        "error_types": errors,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_run(problems, per_problem)`: a run directory with problems, candidates and labels."""

    def make(problems: int = 20, per_problem: int = 6, name: str = "run") -> Run:
        run, rng = Run(str(tmp_path / name)), random.Random(0)
        questions = [*load("train", problems, 0), *load("test", 3, 0)]
        labels = [labelled(problem, index, rng) for problem in questions for index in range(per_problem)]
        for artefact, rows in {"problems": questions, "candidates": [], "labels": labels}.items():
            target = run.artefact(artefact)
            target.begin({"import": "test"})
            target.write_part("0", table(artefact, rows))
            target.complete({"rows": len(rows)})
        return run

    return make


def config_for(run: Run, base_url: str, client: dict[str, Any] | None = None, **critique: Any) -> Config:
    """A config whose critic is at `base_url`."""
    return Config(
        run=run.path,
        base={"model": "unused"},
        critique={"base_url": base_url, "api_key_env": "TEST_CRITIC_KEY", "count": 40, **critique},
        resources={"client": {"concurrency": 8, "timeout_s": 60, **(client or {})}},
    )


@pytest.fixture
def make_config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """`make_config(run, base_url, client, **critique)`, with the key in the environment."""
    monkeypatch.setenv("TEST_CRITIC_KEY", KEY)
    return config_for


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    """`serve(script)` starts a scripted server; all are ended after the test."""
    servers: list[ScriptedServer] = []

    def start(script: Script) -> ScriptedServer:
        server = ScriptedServer(script)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask(tmp_path: Path, serve: Serve, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """A client and a server; the first wait of a retry, when the endpoint asks for none, is short."""
    monkeypatch.setattr("minos_ray.critiques.endpoint.FIRST_WAIT_S", 0.05)
    return Ask(tmp_path, serve, make_config)


@pytest.fixture
def serve_batch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServeBatch]:
    """`serve_batch(script, fate)` starts a server; retries of a call come at once."""
    monkeypatch.setattr("minos_ray.critiques.endpoint.FIRST_WAIT_S", 0.01)
    servers: list[BatchServer] = []

    def start(script: BatchScript = lambda *_: Reply(), fate: Callable[[int], Fate] = lambda _: Fate()) -> BatchServer:
        server = BatchServer(script, fate)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.gate.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def ask_batch(tmp_path: Path, make_config: MakeConfig) -> AskBatch:
    """Orders on a fresh run directory."""
    return AskBatch(tmp_path / "run", make_config)
