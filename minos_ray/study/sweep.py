"""The stage `sweep`: how much a verifier gains from 0, 5k, ... 30k critiques, as a grid of trials on Ray Tune."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.config.load import Config
from minos_ray.evaluation.trend import NAME
from minos_ray.graph.specs import begin, fresh
from minos_ray.store.run import Manifest, Run
from minos_ray.study.curves import curves
from minos_ray.study.space import Trial, trials
from minos_ray.study.sweep_inputs import Inputs
from minos_ray.study.sweep_trial import is_done, result_rows, run_trial
from minos_ray.study.tune import folder, run_trials

LABEL = "sweep"
RESULTS = "sweep/results.parquet"


def sweep(config: Config, run: Run) -> Manifest:
    """Runs every trial that is missing or stale, then writes one row per trial and kind, and the trend.

    WorkStopped when trials failed; the finished ones are kept and skipped by the next call, in any process.
    """
    if done := fresh(config, run, RESULTS):
        return done
    target = begin(config, run, RESULTS)
    start = time.monotonic()
    planned = trials(config)
    give_inputs(config, run, planned)
    todo = [trial for trial in planned if not is_done(config, run, trial)]
    if todo:
        by_name = {trial.name: trial for trial in todo}

        def do(name: str) -> None:
            run_trial(config, Run(run.path), by_name[name])

        run_trials(config, run, LABEL, list(by_name), len(planned), do)
    run.delete(folder(LABEL))  # also where a sweep was killed when all its trials were through
    rows = [row for trial in sorted(planned) for row in result_rows(config, run, trial)]
    run.write_bytes(NAME, json.dumps(curves(config, run, rows), indent=1, allow_nan=False).encode())
    write(run, RESULTS, rows)
    details = {"seconds": round(time.monotonic() - start, 1), "trials_run_now": len(todo)}
    return target.complete({"trials": len(planned), "rows": len(rows)}, {}, details)


def give_inputs(config: Config, run: Run, planned: Sequence[Trial]) -> None:
    """Every trial's inputs, written by the driver alone; UserError when critiques are too few, before any training."""
    inputs = Inputs(config, run)
    for trial in planned:
        inputs.give(trial)


def write(run: Run, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of results as Parquet."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    run.write_bytes(name, sink.getvalue().to_pybytes())
