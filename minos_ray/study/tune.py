"""Trials on Ray Tune: as many at once as the cluster has room for whole ones; each knows itself what it has done."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minos_ray.cluster.connect import connect, quiet_data, require
from minos_ray.config.load import Config
from minos_ray.errors import WorkStopped
from minos_ray.observe.cause import cause
from minos_ray.observe.failure import without_secrets
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Run
from minos_ray.study.room import trials_at_once

# Drivers of trials take no CPU: else they could fill the cluster while no group of workers fits. They sit on the head,
# or beside the driver of the sweep where no head is declared: each node declares its address.
HEAD, SLIVER = "node:__internal_head__", 0.001


def run_trials(
    config: Config, run: Run, label: str, todo: Sequence[str], total: int, do: Callable[[str], None]
) -> None:
    """Calls `do(name)` for every trial of `todo`, each in a process of its own.

    Ray Tune's own state lies in LABEL/tune and is not needed again. WorkStopped when trials failed; the others are
    done then.
    """
    import ray

    connect(config)
    for pool in ("train", "score"):
        require(pool, getattr(config.resources, pool), config.resources.wait_s)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    at_once = trials_at_once(config.resources, nodes, len(todo))
    print(f"{label}: {len(todo)} trials, {at_once} at once", flush=True)
    with Progress(label, total, "trials", total - len(todo), run) as progress:
        grid = tuner(run, label, todo, at_once, progress, do).fit()
        if failed := [result for result in grid if result.error]:
            progress.give_up()
    if failed:
        lines = [f"{result.config['trial']}: {without_secrets(cause(result.error))}" for result in failed]
        print("\n".join(f"{label}: {line}" for line in lines), flush=True)
        kept = "finished ones are kept, the same command does the rest"
        told = f"{label}: {len(failed)} of {len(todo)} trials failed ({lines[0]}); {kept}"
        raise WorkStopped(told) from failed[0].error


def folder(label: str) -> str:
    """Where Ray Tune keeps its state, inside the run directory; it goes when all is done."""
    return f"{label}/tune"


def tuner(
    run: Run, label: str, todo: Sequence[str], at_once: int, progress: Progress, do: Callable[[str], None]
) -> "Tuner":  # noqa: F821
    """Ray Tune over the trials."""
    os.environ.update({"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"})
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one draws boxes
    import ray
    from ray import tune
    from ray.tune.progress_reporter import TrialProgressCallback

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what failed is said once, at the end

    def say(trial: Any, what: str) -> None:
        print(f"{label}: {trial.config['trial']} {what}", flush=True)

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

    def driver(values: dict[str, str]) -> None:
        quiet_data()
        do(values["trial"])

    root, _, name = f"{run.root}/{folder(label)}".rpartition("/")
    return tune.Tuner(
        tune.with_resources(driver, tune.PlacementGroupFactory([place(ray.cluster_resources())])),
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        param_space={"trial": tune.grid_search(list(todo))},
        run_config=tune.RunConfig(
            name=name, storage_path=root, storage_filesystem=run.fs, verbose=0, callbacks=[Lines()]
        ),
    )


def place(cluster: Mapping[str, float]) -> dict[str, float]:
    """What the driver of a trial holds."""
    import ray

    return {HEAD if HEAD in cluster else f"node:{ray.util.get_node_ip_address()}": SLIVER}
