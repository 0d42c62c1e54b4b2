"""What it costs the driver to plan a million problems of 8 units, anew and after a half is done.

python benchmarks/planning.py [--problems 1000000] [--files 10000] [--only CASE ...] [--folder DIR] [--out FILE]
A case is the real stage in a process of its own on a Ray of this machine, from its call until the first actor is given
its first unit; that actor then ends the work. `sample` begins, `resume` finds half of the candidates in so many parts;
`label` begins; `rescore` finds the scores of two of four verifiers, `score` (after it) none. Candidates, labels and
scores have real ids but few short texts (benchmarks/planned.py). Memory is the peak of the driver's process (VmHWM,
with the pages of Ray's shared memory that it wrote). The runs are made in DIR (a temporary folder when empty) and kept.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import planned
import pyarrow as pa

from minos_ray.candidates import stage
from minos_ray.cluster import connect
from minos_ray.config.load import Config
from minos_ray.labels import stage as label_stage
from minos_ray.scoring import stage as scoring
from minos_ray.store.run import Run
from minos_ray.units import run_units

FIRST = "first.json"
KINDS = {"sample": "new", "resume": "half", "label": "sampled", "rescore": "scored", "score": "scored"}


class First:
    """A worker that says when it was given its first unit, and ends the work."""

    def __init__(self, run: str, **kwargs: Any) -> None:
        self.run = Run(run)

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        self.run.write_bytes(FIRST, json.dumps(time.time()).encode())
        raise RuntimeError("measured")


class Steps:
    """What took how long in the driver: seconds, seconds of CPU and the peak of memory after each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def follow(self, module: ModuleType, *names: str) -> None:
        """Has every call of these functions of a module noted."""
        for name in names:
            setattr(module, name, self.timed(getattr(module, name), name))

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, which says when it has returned."""

        def call(*args: Any, **kwargs: Any) -> Any:
            since, cpu = time.time(), time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = {"seconds": round(time.time() - since, 2), "cpu": round(time.process_time() - cpu, 2)}
                self.seen.append({"step": name, **took, "peak_mib": peak()})

        return call


def peak() -> int:
    """MiB of this process at their highest."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) >> 10


def run_case(case: str, folder: Path) -> dict[str, Any]:
    """The stage of a case until its first unit is handed out."""
    run, config = Run(str(folder)), planned.configured(folder)
    run.delete(FIRST)
    steps = Steps()
    steps.follow(connect, "join")
    steps.follow(run_units, "task_results")
    work = prepared(case, config, run, steps)
    start, cpu = time.time(), time.process_time()
    try:
        work()
    except Exception:
        if not run.exists(FIRST):
            raise
    took = {"seconds": json.loads(run.read_bytes(FIRST)) - start, "cpu": time.process_time() - cpu}
    connect.disconnect()
    return {"case": case, "peak_mib": peak(), **{k: round(v, 1) for k, v in took.items()}, "steps": steps.seen}


def prepared(case: str, config: Config, run: Run, steps: Steps) -> Callable[[], object]:
    """The call of the stage, whose worker is replaced and whose steps are followed."""
    if case in ("sample", "resume"):
        stage.Sampler = First
        steps.follow(stage, "read_targets", "check_prompt", "stored_candidates", "missing", "unit_table")
        return lambda: stage.sample(config, run)
    if case == "label":
        label_stage.Labeller = First
        steps.follow(label_stage, "plan", "stored_units")
        return lambda: label_stage.label_candidates(config, run)
    if case == "score":
        run.delete("scores")
    scoring.Reader = First
    steps.follow(scoring, "read_pieces", "missing")
    return lambda: scoring.score_verifiers(config, run)


def measured(case: str, place: Path) -> dict[str, Any]:
    """The case in a process of its own; its figures are printed."""
    command = [sys.executable, __file__, "--only", case, "--case", str(place)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    told = f"{found['seconds']} s until the first unit ({found['cpu']} s of CPU), {found['peak_mib']:,} MiB"
    print(f"{case}: {told}; load {os.getloadavg()[0]:.1f}", flush=True)
    for step in found["steps"]:
        print("  {step:14} {seconds:8.2f} s {cpu:8.2f} s of CPU, peak {peak_mib:6,} MiB".format(**step))
    return found


def main() -> None:
    """Prints a table of the cases and of their steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--only", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options.only[0], options.case)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, found = options.folder or Path(temporary), []
        for case in options.only:
            place = planned.made(
                KINDS[case], folder / f"{KINDS[case]}-{options.problems}", options.problems, options.files
            )
            found.append(measured(case, place))
    if options.out:
        options.out.write_text(json.dumps({"problems": options.problems, "cases": found}, indent=1))


if __name__ == "__main__":
    main()
