"""A small pipeline on real raylets of this machine: its config, its cluster, its critic, and what each stage needs."""

import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from minos_ray.config.load import Config, build
from minos_ray.grading.graders import Grader, extract_number, gold_number
from minos_ray.miniature.critic_server import Handler, Teacher
from minos_ray.miniature.critic_server import Server as Critic
from minos_ray.observe.trackers import TrackedRun
from minos_ray.store.run import Run
from minos_ray.training.results import Log, Record
from tests.raylets import Raylets, drain, enter, raylet_of, started_raylets

KEY = "key-of-the-counting-critic"
ANSWER_S, STEP_S = 0.8, 0.6
# Not the loopback address that others on this machine use.
CRITIC_HOST = "127.0.0.2"
# A variable of the environment: the folder of the gate that comparisons wait at; there is none without it.
GATE = "MINOS_TESTS_GATE"
ENVIRONMENT = {
    "OPENAI_API_KEY": KEY,
    "NO_PROXY": CRITIC_HOST,
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_failure_threshold": "3",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}


class Stage(NamedTuple):
    """What a stage reads and makes (folders and files of the run), and which of its processes may be killed."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    victims: tuple[str, ...]
    overrides: tuple[str, ...] = ()


# A node that is killed, and one that is drained first.
NODES = ("raylet", "drain")
ROWS = ("problems", "candidates", "labels")
VERIFIERS = ("models/orm-base", "models/prm-minos")
SCORES = ("scores/orm-base", "scores/prm-minos")
STAGES = {
    "sample": Stage(("problems",), ("candidates",), ("driver", "actor", "engine", *NODES)),
    "label": Stage(("problems", "candidates"), ("labels",), ("driver", "actor", "child", *NODES)),
    "critique": Stage(ROWS, ("critiques",), ("driver", *NODES)),
    "sft": Stage((*ROWS, "critiques"), ("models/critic",), ("driver", "worker", "controller", *NODES)),
    "reward": Stage((*ROWS, "models/critic"), VERIFIERS, ("driver", "worker", "controller", *NODES)),
    "score": Stage((*ROWS, "critiques", "models/critic", *VERIFIERS), SCORES, ("driver", "actor", "tally", *NODES)),
    "sweep": Stage(
        (*ROWS, "critiques"),
        ("sweep/results.parquet",),
        ("driver", "trial", "worker", "actor", *NODES),
        ("resources.train.workers=1", "resources.score.actors=1", "reward.batch_rows=8", "sft.batch_rows=8"),
    ),
}


class Gate:
    """Lets so many comparisons of all processes through and holds the next, until more are let through."""

    def __init__(self, folder: Path) -> None:
        self.limit, self.asked = folder / "limit", folder / "asked"

    def let(self, more: int) -> None:
        """So many more than have come so far."""
        came = self.asked.stat().st_size if self.asked.exists() else 0
        self.limit.with_suffix(".next").write_text(str(came + more))
        self.limit.with_suffix(".next").replace(self.limit)

    def wait(self) -> None:
        """Takes the next number, and waits until it is let through."""
        with self.asked.open("ab", buffering=0) as asked:
            asked.write(b".")
            number = asked.tell()
        while number > int(self.limit.read_text()):
            time.sleep(0.05)


def same_slowly(gold: str, answer: str) -> bool:
    """A comparison that keeps its process busy for a moment, or for as long as a gate holds it."""
    if folder := os.environ.get(GATE):
        Gate(Path(folder)).wait()
    time.sleep(0.1)
    return gold == answer


class Slowly:
    """A tracker in the process of rank 0, whose every step then takes a moment longer, as those of larger models do."""

    def __init__(self, run: TrackedRun) -> None:
        if not getattr(Log, "slow", False):
            add, Log.slow = Log.add, True

            def add_slowly(log: Log, record: Record) -> None:
                add(log, record)
                time.sleep(STEP_S)

            Log.add = add_slowly

    def log(self, numbers: dict[str, float], /, *, step: int) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing to do."""


grader = Grader(extract_number, str.__eq__, f"{__name__}:same_slowly", gold_number)


def values(run: str, critic: str) -> dict[str, Any]:
    """The config as YAML has it: the shipped miniature model, few problems, slow enough to be hit in the middle."""
    model, loader = {"model": "package:miniature/model"}, "minos_ray.miniature:load"
    train = {"lr": 1e-3, "batch_rows": 2, "max_length": 400, "precision": "fp32", "eval_every": 10}
    engine = {"actors": 2, "max_model_len": 512, "dtype": "float32", "kv_cache_gb": 0.1, "max_num_seqs": 8}
    return {
        "run": run,
        "problems": {"train": {"loader": loader, "limit": 12}, "test": {"loader": loader, "limit": 20}},
        "generator": model,
        "base": model,
        "sample": {"n_train": 12, "n_test": 8, "unit": 4, "temperature": 0.7, "max_tokens": 120},
        "label": {
            "steps": "minos_ray.miniature.step_labels:label_steps",
            "grader": f"{__name__}:grader",
            "timeout_s": 60,
        },
        "critique": {"base_url": critic, "model": "counting", "count": 80},
        "sft": {**train, "epochs": 2},
        "reward": {**train, "epochs": 1, "verifiers": ["orm-base", "prm-minos"], "eval_rows": 24},
        "score": {"judge": None},
        "evaluate": {"bootstrap": 200, "trials": 10},
        "sweep": {"critiques": [0, 40], "kinds": ["prm"], "problems": 12},
        "observe": {"tracker": f"{__name__}:Slowly"},
        "resources": {
            "sample": {**engine, "units_per_task": 1},
            "grade": {"actors": 2},
            "client": {"actors": 2, "concurrency": 4},
            "train": {"workers": 2, "micro_tokens": 1024, "save_every": 4},
            "score": {"actors": 2, "units_per_task": 1},
        },
    }


@dataclass
class Asking:
    """What the critic was asked, and when (seconds since the epoch); its answer went out when it `ended`."""

    content: str
    began: float
    ended: float = math.inf


class SlowTeacher(Teacher):
    """Takes its time for an answer, and notes what it was asked when."""

    def __init__(self, answer_s: float) -> None:
        super().__init__(0)
        self.answer_s = answer_s
        self.asked: list[Asking] = []

    def critique(self, content: str) -> str:
        """The same content always gets the same answer."""
        asking = Asking(content, time.time())
        self.asked.append(asking)
        time.sleep(self.answer_s * random.Random(content).uniform(0.5, 1.5))
        answer = super().critique(content)
        asking.ended = time.time()
        return answer


class CountingCritic(Critic):
    """The miniature's critic in this process, on an address of its own."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        super(Critic, self).__init__((CRITIC_HOST, 0), Handler)
        self.teacher, self.key = SlowTeacher(answer_s), KEY
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What the config calls critique.base_url."""
        return f"http://{CRITIC_HOST}:{self.server_port}/v1"


class World:
    """The folder of all runs, the cluster, and the reference: a run that nobody disturbed."""

    def __init__(self, folder: Path, raylets: Raylets, critic: CountingCritic) -> None:
        self.folder, self.cluster, self.critic = folder, raylets, critic
        self.nodes: dict[int, Any] = {}
        self.addresses = 3
        self.head = raylet_of(raylets.cluster.head_node)
        self.path = folder / "config.yaml"
        self.path.write_text(yaml.safe_dump(values(str(folder / "reference"), critic.url)))
        self.reference = Run(str(folder / "reference"))

    def config(self, run: Run) -> Config:
        """The config of a run."""
        return build(values(run.path, self.critic.url))

    def add_node(self) -> None:
        """One raylet more, with one CPU and an address of its own: Ray Train tells nodes apart by it."""
        node = self.cluster.add(self.addresses)
        self.addresses += 1
        self.nodes[raylet_of(node)] = node

    def replace_node(self, pid: int) -> None:
        """Clears away what is left of the node of a dead raylet and adds another."""
        self.end_node(pid)
        self.add_node()

    def drain_node(self, pid: int, seconds: float) -> None:
        """Announces that a node is to go, as clouds do for spot nodes; another comes at once."""
        drain(self.nodes[pid], seconds)
        self.add_node()

    def end_node(self, pid: int) -> None:
        """Takes a node away, if it has not ended by itself."""
        self.cluster.remove(self.nodes.pop(pid), lost=True)

    def raylets(self) -> list[int]:
        """Process ids of all raylets, the head's too."""
        return [self.head, *self.nodes]

    def start(self, stage: str, run: Run) -> "subprocess.Popen[bytes]":
        """The command of a stage; what it says goes into RUN/driver.log."""
        overrides = STAGES[stage].overrides if stage in STAGES else ()
        command = [sys.executable, "-m", "minos_ray", stage, str(self.path), f"run={run.path}", *overrides]
        with open(f"{run.root}/driver.log", "ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)

    def finish(self, stage: str, run: Run) -> None:
        """A stage that nobody disturbs."""
        driver = self.start(stage, run)
        try:
            driver.wait(600)
        finally:
            self.ended(driver, stage, run)

    def ended(self, driver: "subprocess.Popen[bytes]", stage: str, run: Run) -> None:
        """RuntimeError unless a driver that should have ended did so with 0."""
        if (code := driver.poll()) is None:
            driver.kill()
        if code != 0:
            raise RuntimeError(f"{stage} ended with {code}: {Path(run.root, 'driver.log').read_text()[-2000:]}")


@contextmanager
def world(folder: Path, nodes: int = 3) -> Iterator[World]:
    """A head without CPUs and some raylets; `ENVIRONMENT` is in force already. This process joins the cluster."""
    with started_raylets() as raylets:
        made = World(folder, raylets, CountingCritic())
        os.environ["RAY_ADDRESS"] = raylets.address
        try:
            Path(made.reference.root).mkdir(parents=True)
            for _ in range(nodes):
                made.add_node()
            enter(raylets)
            yield made
        finally:
            os.environ.pop("RAY_ADDRESS")
            made.critic.shutdown()
