"""Weak scaling over raylets on this machine: the same work for each, an engine of fixed speed that only sleeps.

python benchmarks/weak_scaling.py [--raylets 1 2 4] [--actors 2] [--seconds 60] [--rounds 3] [--only sample score]
                                  [--out FILE]
The stages `sample` and `score` are the real ones, with Ray Data, the parts and the manifest; only the engine in the
actors is replaced by `Asleep` and `AsleepScorer`. Their speeds are those of a 7B model on an H100: 100 candidates/s
(12,500 tokens/s), 300 scores/s. Every raylet has `--actors` actors, each with work for about `--seconds`.

Printed: the whole stage from its call to its manifest, with the start of the actors; then, without it, from the mean
actor's first unit to the end of all work: how much of that time the engines worked, and what an actor was awake for
(storing, waiting for a task, for others at the end), in all and for each of its tasks. A round has every number of
raylets, each in a process and a Ray of its own; medians. Efficiency: the time of the whole stage, and the share of
engines at work, against those of the first number of raylets.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import planned
import pyarrow as pa

from minos_ray.candidates import stage
from minos_ray.candidates.engine import Text, candidates, numbers
from minos_ray.cluster.connect import quiet_data
from minos_ray.config.load import Config
from minos_ray.config.resources import Engine, Scoring
from minos_ray.config.schema import Model
from minos_ray.scoring.stage import read_pieces, score_artefacts
from minos_ray.store import columns
from minos_ray.store.run import Run
from minos_ray.units.actor import Finished

SAMPLED, SCORED = 100.0, 300.0  # candidates a second of one actor
TEXT = Text("Step 1: 3 + 4 = 7. " * 20, "stop", 125)
STORE = {"object_store_memory": 150 << 20}


class Clock:
    """Sleeps for rows, and writes down when the first were begun, when the last were done, and the sleep in all."""

    def __init__(self, run: str, speed: float) -> None:
        self.run, self.speed, self.name = Run(run), speed, f"times/{os.getpid()}-{time.time_ns()}.json"
        self.first, self.slept = 0.0, 0.0

    def work(self, rows: int) -> None:
        """The time that so many rows take."""
        now = time.time()
        self.first = self.first or now
        time.sleep(rows / self.speed)
        self.slept += time.time() - now
        times = {"first": self.first, "last": time.time(), "slept": self.slept}
        self.run.write_bytes(self.name, json.dumps(times).encode())


class Asleep:
    """A `Sampler` without an engine."""

    def __init__(self, run: str, model: Model, **kwargs: Any) -> None:
        self.clock, self.model = Clock(run, SAMPLED), model.model

    def stream(self, units: pa.Table, starting: Callable[[list[str]], bool]) -> Iterator[Finished]:
        """Units one after the other; 256 candidates are begun together, as an engine takes them."""
        rows = units.to_pylist()
        for place, unit in enumerate(rows):
            if place % 8 == 0 and not starting([each["unit_id"] for each in rows[place : place + 8]]):
                return
            self.clock.work(unit["count"])
            texts = [TEXT] * unit["count"]
            yield Finished([unit["unit_id"]], candidates(unit, texts, self.model), numbers(texts, 0.0))


class AsleepScorer:
    """A worker of `score_artefacts` without a model."""

    def __init__(self, run: str, **kwargs: Any) -> None:
        self.clock = Clock(run, SCORED)

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """A score for every candidate."""
        rows = [
            {"candidate_id": name, "problem_id": unit["problem_id"], "score": 0.5, "step_scores": [0.5]}
            for unit in units.to_pylist()
            for name in unit["candidate_ids"]
        ]
        self.clock.work(len(rows))
        return columns.table("scores", rows), {}


def configured(folder: str, address: str, actors: int) -> Config:
    """The config of benchmarks/planned.py with so many actors in all."""
    config = planned.configured(Path(folder))
    pools = {"sample": Engine(actors=actors, cpus=1), "score": Scoring(actors=actors, cpus=1), "address": address}
    return config.model_copy(update={"resources": config.resources.model_copy(update=pools)})


def sample(config: Config, run: Run) -> None:
    """The stage with the sleeping sampler."""
    stage.Sampler = Asleep
    stage.sample(config, run)


def score(config: Config, run: Run) -> None:
    """One verifier by the stage's own functions."""
    scores = run.artefact("scores/asleep")
    scores.begin({"benchmark": "weak scaling"})
    score_artefacts(config, run, [scores], {}, run, read_pieces(run, "test"), "weak_scaling:AsleepScorer")


STAGES = {"sample": (sample, SAMPLED), "score": (score, SCORED)}


def once(name: str, raylets: int, actors: int, seconds: float) -> dict[str, float]:
    """One stage on a new cluster of raylets; a head without work comes on top."""
    import ray
    from ray.cluster_utils import Cluster

    function, speed = STAGES[name]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    for _ in range(raylets):
        cluster.add_node(num_cpus=actors, **STORE)
    with tempfile.TemporaryDirectory() as folder:
        config, run = configured(folder, cluster.address, raylets * actors), Run(folder)
        planned.make_problems(run, round(raylets * actors * seconds * speed / planned.N))
        if name == "score":
            planned.make_labels(run, config, files=4 * raylets * actors)
        ray.init(address=cluster.address, log_to_driver=False)
        quiet_data()
        start = time.time()
        function(config, run)
        whole = time.time() - start
        times = [json.loads(run.read_bytes(f"times/{file}")) for file in run.files("times")]
        tasks = len(run.artefact("scores/asleep" if name == "score" else "candidates").part_names())
    ray.shutdown()
    cluster.shutdown()
    assert len(times) == raylets * actors, "an actor had no work"
    end, slept = max(t["last"] for t in times), statistics.mean(t["slept"] for t in times)
    there = statistics.mean(end - t["first"] for t in times)
    return {"whole": whole, "there": there, "busy": slept / there, "awake": there - slept, "tasks": tasks}


def elsewhere(name: str, raylets: int, options: argparse.Namespace) -> dict[str, float]:
    """`once` in a process of its own."""
    settings = ["--actors", str(options.actors), "--seconds", str(options.seconds)]
    command = [sys.executable, __file__, "--only", name, "--raylets", str(raylets), *settings, "--once"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {name}, {raylets} raylets: {found}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    return found


def table(name: str, actors: int, found: dict[int, list[dict[str, float]]]) -> None:
    """Medians by number of raylets, and efficiencies against the first."""
    middle = {n: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]} for n, rounds in found.items()}
    base = next(iter(middle.values()))
    print(f"{name}: medians of {len(next(iter(found.values())))} rounds, {actors} actors on a raylet")
    print("| raylets | whole stage | efficiency | without start | engines at work | efficiency | awake | a task |")
    print("|---" * 8 + "|")
    for n, m in middle.items():
        shares = f"{m['there']:.1f} s | {m['busy']:.3f} | {m['busy'] / base['busy']:.3f}"
        awake = f"{m['awake']:.2f} s | {1000 * m['awake'] * n * actors / m['tasks']:.0f} ms"
        print(f"| {n} | {m['whole']:.1f} s | {base['whole'] / m['whole']:.3f} | {shares} | {awake} |")


def main() -> None:
    """Prints a table for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raylets", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        print(json.dumps(once(options.only[0], options.raylets[0], options.actors, options.seconds)))
        return
    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    for name in options.only:
        found[name] = {raylets: [] for raylets in options.raylets}
        for _ in range(options.rounds):
            for raylets in options.raylets:
                found[name][raylets].append(elsewhere(name, raylets, options))
        table(name, options.actors, found[name])
    if options.out:
        options.out.write_text(
            json.dumps({"actors": options.actors, "seconds": options.seconds, "rounds": found}, indent=1)
        )


if __name__ == "__main__":
    main()
