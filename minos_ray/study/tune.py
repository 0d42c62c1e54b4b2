"""Trials on Ray Tune: as many at once as the cluster has room for, each with every worker that it needs."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minos_ray.cluster.bundles import Bundles, bundles, on_one
from minos_ray.cluster.connect import connect, quiet_data, require
from minos_ray.cluster.nodes import alive
from minos_ray.config.resources import Resources
from minos_ray.errors import WorkStopped
from minos_ray.observe.failure import cause, without_secrets
from minos_ray.observe.progress import Progress
from minos_ray.study.grid import Grid, Trial
from minos_ray.study.trial import is_done, run_trial

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

# Drivers of trials take no CPU: else they could fill the cluster while no group of workers fits. They sit on the head,
# or beside the driver of the command where no head is declared: each node declares its address.
HEAD, SLIVER = "node:__internal_head__", 0.001


def run_unfinished(grid: Grid) -> int:
    """Runs every trial that is not complete and fresh, each in a process of its own; how many there were.

    WorkStopped when trials failed; the others are done then. Ray Tune's own state is not needed again.
    """
    todo = {grid.name(trial): trial for trial in grid.trials if not is_done(grid, trial)}
    if todo:
        run_trials(grid, todo)
    grid.run.delete(f"{grid.command}/tune")  # also where the command was killed after the last trial
    return len(todo)


def run_trials(grid: Grid, todo: Mapping[str, Trial]) -> None:
    """The trials, by name; WorkStopped when some failed."""
    connect(grid.config)
    resources, command = grid.config.resources, grid.command
    judges = any(grid.trial_config(trial).refine.rounds for trial in todo.values())
    names = ("train", "score", "judge") if judges else ("train", "score")
    for name in names:
        require(name, getattr(resources, name), resources.wait_s)
    pools = [bundles(getattr(resources, name)) for name in names]
    nodes = [functools.reduce(lambda free, pool: pool.offer(free, n.labels), pools, n.resources) for n in alive()]
    at_once = trials_at_once(resources, nodes, len(todo), judges)
    print(f"{command}: {len(todo)} trials, {at_once} at once", flush=True)
    with Progress(command, len(grid.trials), "trials", len(grid.trials) - len(todo), grid.run) as progress:
        results = tuner(grid, todo, at_once, progress).fit()
        errors = {(result.config or {})["trial"]: result.error for result in results if result.error}
        if errors:
            progress.give_up()
    if errors:
        causes = [f"{name}: {without_secrets(cause(error))}" for name, error in errors.items()]
        print("\n".join(f"{command}: {line}" for line in causes), flush=True)
        raise WorkStopped(
            f"{command}: {len(errors)} of {len(todo)} trials failed ({causes[0]}); "
            "finished ones are kept, the same command does the rest"
        ) from next(iter(errors.values()))


def trials_at_once(resources: Resources, nodes: Sequence[Mapping[str, float]], most: int, judges: bool = False) -> int:
    """How many trials fit in whichever phase they are; at least one, which then waits for its room, and `most`.

    A trial holds its group of workers, then its scorers; a critic's rounds hold engines of the judge (`judges`).
    """
    pools = [resources.train, resources.score, *([resources.judge] if judges else [])]

    def fit(pool: Bundles) -> int:
        return sum(on_one(pool, node) for node in nodes) // pool.count if pool.bundle else most

    return max(1, min(most, *(fit(bundles(pool)) for pool in pools)))


def tuner(grid: Grid, todo: Mapping[str, Trial], at_once: int, progress: Progress) -> "Tuner":
    """Ray Tune over the trials."""
    os.environ.update({"TUNE_DISABLE_SIGINT_HANDLER": "1", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"})
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one draws boxes
    import ray
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are printed once, at the end

    def driver(values: dict[str, str]) -> None:
        quiet_data()
        run_trial(grid, todo[values["trial"]])

    cluster = ray.cluster_resources()
    node = HEAD if HEAD in cluster else f"node:{ray.util.get_node_ip_address()}"
    return tune.Tuner(
        tune.with_resources(driver, tune.PlacementGroupFactory([{node: SLIVER}])),
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
        param_space={"trial": tune.grid_search(list(todo))},
        run_config=tune.RunConfig(
            name="tune",
            storage_path=f"{grid.run.root}/{grid.command}",
            storage_filesystem=grid.run.fs,
            verbose=0,
            callbacks=[lines(grid.command, progress)],
        ),
    )


def lines(command: str, progress: Progress) -> "Callback":
    """One line where a trial begins and ends, in place of Ray Tune's own tables."""
    from ray.tune.progress_reporter import TrialProgressCallback

    def say(trial: Any, event: str) -> None:
        print(f"{command}: {trial.config['trial']} {event}", flush=True)

    # Ray Tune adds its own reporter unless one of the callbacks is a TrialProgressCallback.
    class Lines(TrialProgressCallback):
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

    return Lines()
