"""The stage `sweep`: how much a verifier gains from 0, 5k, ... 30k critiques, as a grid of trials on Ray Tune."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.cluster import connect, quiet_data, require
from minos_ray.config import Config
from minos_ray.errors import WorkStopped
from minos_ray.observe.cause import cause
from minos_ray.observe.failure import without_secrets
from minos_ray.progress import Progress
from minos_ray.stages import begin
from minos_ray.store import Manifest, Run
from minos_ray.sweep.inputs import Inputs
from minos_ray.sweep.room import trials_at_once
from minos_ray.sweep.space import Trial, trials
from minos_ray.sweep.study import NAME, study
from minos_ray.sweep.trial import is_done, result_rows, run_trial

RESULTS = "sweep/results.parquet"
TUNE = "sweep/tune"
# Drivers of trials take no CPU: else they could fill the cluster while no group of workers fits. They sit on the head,
# or beside the driver of the sweep where no head is declared: each node declares its address.
HEAD, SLIVER = "node:__internal_head__", 0.001


def sweep(config: Config, run: Run) -> Manifest:
    """Runs every trial that is missing or stale, then writes one row per trial and kind, and the trend.

    WorkStopped when trials failed; the finished ones are kept and skipped by the next call, in any process.
    """
    target = begin(config, run, RESULTS)
    if isinstance(target, Manifest):
        return target
    start = time.monotonic()
    planned = trials(config)
    give_inputs(config, run, planned)
    todo = [trial for trial in planned if not is_done(config, run, trial)]
    if todo:
        run_trials(config, run, todo, len(planned))
    run.delete(TUNE)  # also where a sweep was killed when all its trials were through
    rows = [row for trial in sorted(planned) for row in result_rows(config, run, trial)]
    run.write_bytes(NAME, json.dumps(study(config, run, rows), indent=1, allow_nan=False).encode())
    write(run, rows)
    details = {"seconds": round(time.monotonic() - start, 1), "trials_run_now": len(todo)}
    return target.complete({"trials": len(planned), "rows": len(rows)}, {}, details)


def give_inputs(config: Config, run: Run, planned: Sequence[Trial]) -> None:
    """Every trial's inputs, written by the driver alone; UserError when critiques are too few, before any training."""
    inputs = Inputs(config, run)
    for trial in planned:
        inputs.give(trial)


def run_trials(config: Config, run: Run, todo: Sequence[Trial], total: int) -> None:
    """The grid on Ray Tune; as many trials at once as the cluster has room for whole ones."""
    import ray

    connect(config)
    for pool in ("train", "score"):
        require(pool, getattr(config.resources, pool), config.resources.wait_s)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = trials_at_once(config.resources, nodes, len(todo))
    print(f"sweep: {len(todo)} trials, {at_once} at once", flush=True)
    with Progress("sweep", total, "trials", total - len(todo), run) as progress:
        grid = tuner(config, run, todo, at_once, progress).fit()
        if failed := [result for result in grid if result.error]:
            progress.give_up()
    if failed:
        lines = [f"{Trial(**result.config['trial']).name}: {without_secrets(cause(result.error))}" for result in failed]
        print("\n".join(f"sweep: {line}" for line in lines), flush=True)
        kept = "finished ones are kept, the same command does the rest"
        told = f"sweep: {len(failed)} of {len(todo)} trials failed ({lines[0]}); {kept}"
        raise WorkStopped(told) from failed[0].error


def tuner(config: Config, run: Run, todo: Sequence[Trial], at_once: int, progress: Progress) -> "Tuner":  # noqa: F821
    """Ray Tune over the trials; its own state is not needed again, since trials know what they have done."""
    os.environ.update({"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"})
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one draws boxes
    import ray
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is said once, at the end

    class Lines(TrialProgressCallback):
        """Takes the place of Ray Tune's own lines."""

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            return None

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            say(trial, "begins")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            progress.advance(1)
            say(trial, f"is done ({progress.done} of {progress.total})")

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            progress.note({"trial": progress.failures.get("trial", 0) + 1})
            say(trial, "failed")

    def driver(values: dict[str, Any]) -> None:
        quiet_data()
        run_trial(config, Run(run.path), Trial(**values["trial"]))

    root, _, name = f"{run.root}/{TUNE}".rpartition("/")
    return tune.Tuner(
        tune.with_resources(driver, tune.PlacementGroupFactory([place(ray.cluster_resources())])),
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        param_space={"trial": tune.grid_search([trial._asdict() for trial in todo])},
        run_config=tune.RunConfig(
            name=name, storage_path=root, storage_filesystem=run.fs, verbose=0, callbacks=[Lines()]
        ),
    )


def say(trial: Any, what: str) -> None:
    """A line about one trial of Ray Tune."""
    print(f"sweep: {Trial(**trial.config['trial']).name} {what}", flush=True)


def place(cluster: Mapping[str, float]) -> dict[str, float]:
    """What the driver of a trial holds."""
    import ray

    return {HEAD if HEAD in cluster else f"node:{ray.util.get_node_ip_address()}": SLIVER}


def write(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """The table of results."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    run.write_bytes(RESULTS, sink.getvalue().to_pybytes())
