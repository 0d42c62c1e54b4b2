"""What Ray Train and DeepSpeed cost: `trainer.fit` with one worker against a bare PyTorch loop of the same arithmetic.

python benchmarks/overhead.py [--rows 512] [--rounds 3] [--skip 2] [--cpus 2] [--out FILE]
Both train a PRM on real solutions (MINOS_SHARED) with `--cpus` threads. Speeds are those of the steps after the first
`--skip`, of fit as its log has them; starting and saving is all else between the call of fit and its return.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import trainers

from minos_ray.cluster import connect
from minos_ray.config.load import build
from minos_ray.config.schema import Config
from minos_ray.store.run import Run
from minos_ray.training import data
from minos_ray.training.data import Data, make_job, write_table
from minos_ray.training.results import read_log
from minos_ray.training.trainer import fit

MODEL = "models/prm-base"
Steps = list[dict[str, Any]]


def configured(folder: Path, cpus: int) -> Config:
    """One epoch of a PRM on one worker."""
    section = {"epochs": 1, "lr": trainers.LR, "precision": "fp32", "batch_rows": trainers.BATCH_ROWS, "dropout": 0}
    worker = {"cpus": cpus, "micro_tokens": trainers.MICRO_TOKENS}
    return build(
        {
            "run": str(folder / "run"),
            "base": {"model": str(folder / "base")},
            "reward": {**section, "verifiers": ["prm-base"]},
            "resources": {"num_cpus": cpus, "train": worker},
        }
    )


def fitted(rows: int, cpus: int) -> tuple[Steps, float]:
    """The steps of a training by `trainer.fit` in a new run, and the seconds of the whole call."""
    with tempfile.TemporaryDirectory() as folder:
        config = configured(Path(folder), cpus)
        tokenizer, made = trainers.verifier_rows(rows, "prm")
        trainers.model("lm", "fp32").save_pretrained(folder + "/base")
        tokenizer.save_pretrained(folder + "/base")
        run = Run(config.run)
        run.artefact(MODEL).begin({"benchmark": "overhead"})
        table = write_table(run, "prm", Data(made, [], Counter()))
        job = make_job(run, MODEL, "prm", config.base, table, config.reward, config.resources)
        start = time.perf_counter()
        fit(config, run, "reward", [job])
        seconds = time.perf_counter() - start
        return [record for record in read_log(run, job.name) if record["event"] == "train"], seconds


def bare(rows: int) -> Steps:
    """The same steps in this process, without Ray and DeepSpeed."""
    ours, steps = trainers.Ours(trainers.verifier_rows(rows, "prm")[1], "prm", "fp32", deepspeed=False), []
    for step in range(data.total_steps(rows, 1, trainers.BATCH_ROWS)):
        chosen = data.step_rows(rows, 1, trainers.BATCH_ROWS, 0, step)
        start = time.perf_counter()
        ours.step(chosen)
        steps.append({"tokens": int(ours.rows.lengths[chosen].sum()), "seconds": time.perf_counter() - start})
    return steps


def bare_elsewhere(rows: int, cpus: int) -> Steps:
    """`bare` in a process of its own with as many threads as the worker has."""
    command = [sys.executable, __file__, "--rows", str(rows), "--bare"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cpus)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def rate(steps: Steps) -> float:
    """Tokens per second."""
    return sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)


def main() -> None:
    """Prints both rates, the overhead, and what starting takes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.rows)))
        return
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Alternating rounds; Ray runs all the time, as it does between the stages of a run."""
    start = time.perf_counter()
    connect.join(configured(Path("/"), arguments.cpus).resources)
    found: dict[str, list[float]] = {"ray_seconds": [time.perf_counter() - start], "fit": [], "bare": [], "around": []}
    for _ in range(arguments.rounds):
        steps, seconds = fitted(arguments.rows, arguments.cpus)
        found["fit"].append(rate(steps[arguments.skip :]))
        found["around"].append(seconds - sum(step["seconds"] for step in steps))
        found["bare"].append(rate(bare_elsewhere(arguments.rows, arguments.cpus)[arguments.skip :]))
    connect.disconnect()
    ray, ours, theirs, around = (median(found[key]) for key in ("ray_seconds", "fit", "bare", "around"))
    print(f"overhead of Ray Train and DeepSpeed: PRM, {arguments.cpus} threads, medians of {arguments.rounds} rounds")
    print(f"  fit with one worker {ours:,.0f} tokens/s, bare loop {theirs:,.0f}: overhead {theirs / ours - 1:.1%}")
    print(f"  Ray starts in {ray:.1f} s; starting and saving of a fit {around:.1f} s")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
