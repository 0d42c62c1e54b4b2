"""The stages `sweep` and `study`: the trials of a grid on Ray Tune, then what they say together.

As many trials run at once as the cluster has room for, each with every worker that it needs. A trial is the stages of a
run in a directory of its own, which skip what is complete and fresh.
"""

import functools
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.cluster.connect import join, quiet_data, require
from minos_ray.cluster.nodes import alive
from minos_ray.cluster.room import Bundles, bundles, on_one
from minos_ray.config.load import Config, leaves, resolve, with_names_of_today
from minos_ray.config.resources import Actors, Resources, Workers
from minos_ray.errors import UserError, WorkStopped
from minos_ray.graph.specs import FUNCTIONS, NEUTRAL, NOT_STUDIED, begin, fresh
from minos_ray.labels.stage import require_for_prms
from minos_ray.observe.failure import cause, reported, without_secrets
from minos_ray.observe.progress import Progress
from minos_ray.pipeline import functions
from minos_ray.pipeline import require as require_all
from minos_ray.store.run import Manifest, Run
from minos_ray.study.comparison import compared, result_rows, trends
from minos_ray.study.grid import (
    TRIAL_STAGES,
    Grid,
    SharedData,
    Trial,
    are_done,
    artefacts_of,
    copy_fitting,
    give_data,
    make_data,
    study_grid,
    sweep_grid,
)
from minos_ray.study.statement import PICTURES, statement, write_figures

if TYPE_CHECKING:
    from ray.tune import Callback, Tuner

SWEEP_RESULTS, TREND = "sweep/results.parquet", "sweep/trend.json"
RESULTS, ANSWER, TABLES = "study/results.parquet", "study/study.json", "study/study.md"
NAMED = "study/named.json"
# Keys of what was named before that decide nothing: each trial sets them itself, or they are in no fingerprint.
UNDECISIVE = {
    *("seed", "sft.seed", "reward.seed", "score.judge"),
    *(f"{section}.{key}" for section in NEUTRAL for key in NEUTRAL[section]),
}
# Drivers of trials take no CPU: else they could fill the cluster while no group of workers fits. They sit on the head,
# or beside the driver of the command where no head is declared: each node declares its address.
HEAD, SLIVER = "node:__internal_head__", 0.001


def sweep(config: Config, run: Run) -> Manifest:
    """How much a verifier gains from 0, 5k, ... 30k critiques: runs every trial that is missing or stale, then writes
    one row per trial and kind, and the trend.

    UserError when critiques are too few, before any training. WorkStopped when trials failed; the finished ones are
    kept and skipped by the next call, in any process.
    """
    if manifest := fresh(config, run, SWEEP_RESULTS):
        return manifest
    target = begin(config, run, SWEEP_RESULTS)
    start, grid = time.monotonic(), sweep_grid(config, run)
    data = SharedData(grid)
    for trial in grid.trials:
        data.give(trial)
    trials_run = run_unfinished(grid)
    rows = write_results(grid, SWEEP_RESULTS)
    run.write_bytes(TREND, json.dumps(trends(grid, rows), indent=1, allow_nan=False).encode())
    details = {"seconds": round(time.monotonic() - start, 1), "trials_run_now": trials_run}
    return target.complete({"trials": len(grid.trials), "rows": len(rows)}, {}, details)


def study(config: Config, run: Run) -> Manifest:
    """The paper's claim as an experiment: data of every seed, then every trial that is missing or stale, then one row
    per trial and kind, the comparison, its tables and pictures.

    UserError without seeds. WorkStopped when trials failed; the finished ones are skipped by the next call.
    """
    check_study(config, run)
    if manifest := fresh(config, run, RESULTS):
        return manifest
    start, grid = time.monotonic(), study_grid(config, run)
    # Before older results go: whether data of the first seed can be made, a critic answers, and trainings fit.
    firsts = [Trial(arm, grid.seeds[0]) for arm in (grid.amounts[-1], *grid.ablations)]
    for trial in {grid.data_run(trial).root: trial for trial in firsts}.values():
        data = grid.data_config(trial)
        reward = data.reward.model_copy(update={"verifiers": tuple(grid.verifiers(trial.arm))})
        require_all(data.model_copy(update={"reward": reward}), grid.data_run(trial))
    target = begin(config, run, RESULTS)
    for name in (ANSWER, TABLES, *PICTURES):
        run.delete(name)
    before = named_before(config, run)
    make_data(grid)
    for trial in grid.trials:
        give_data(grid, trial)
    check_labels(grid)
    trials_run = run_unfinished(grid)
    rows = write_results(grid, RESULTS)
    answer = {"named": before, **compared(grid, rows)}
    run.write_bytes(ANSWER, json.dumps(answer, indent=1, allow_nan=False).encode())
    run.write_bytes(TABLES, statement(answer).encode())
    write_figures(grid, rows, answer)
    print(statement(answer), flush=True)
    details = {"seconds": round(time.monotonic() - start, 1), "trials_run_now": trials_run}
    return target.complete({"trials": len(grid.trials), "rows": len(rows)}, {}, details)


def write_results(grid: Grid, name: str) -> list[dict[str, Any]]:
    """Writes the table of results, by arm and seed; its rows."""
    rows = [row for arm in grid.arms for seed in grid.seeds for row in result_rows(grid, Trial(arm, seed))]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    grid.run.write_bytes(name, sink.getvalue().to_pybytes())
    return rows


def check_study(config: Config, run: Run) -> None:
    """UserError for what no trial could do, or nothing could compare; before any work."""
    if not config.study.seeds:
        raise UserError("study.seeds is empty: give some, such as [1, 2, 3, 4, 5]")
    if config.study.labels and config.reward.rows is None:
        raise UserError("study.labels are times reward.rows, which is empty; give it, such as reward.rows=2500")
    grid = study_grid(config, run)
    if len(grid.amounts) < len(config.study.shares):
        raise UserError(
            f"study.shares = {list(config.study.shares)} of critique.count = {config.critique.count} are not as many "
            "different amounts; raise critique.count or lower the number of shares"
        )
    if config.sft.rows is not None or config.sft.source != "critiques":
        raise UserError("study: sft.rows must be empty and sft.source 'critiques', for amounts to be what they say")
    configs = [grid.trial_config(Trial(arm, grid.seeds[0])) for arm in grid.arms]
    for config_of_arm in configs:
        for function in functions(config_of_arm, {"sample", "label", "critique"}):
            function.check()
    for config_of_arm in configs:
        require_for_prms(config_of_arm, Run(config_of_arm.run), "study.kinds", config.study.kinds)


def check_labels(grid: Grid) -> None:
    """UserError where a seed's data have fewer labels than the largest amount; trials would train on what there is."""
    from minos_ray.training.data import usable_rows
    from minos_ray.training.reward import reward_rows
    from minos_ray.training.verifier_losses import compares_solutions, resolve_loss

    for (count, _, arm), seed, kind in product(grid.labels[-1:], grid.seeds, grid.kinds):
        section = grid.trial_config(Trial(arm, seed)).reward
        rows, *_ = reward_rows(grid.trial_run(Trial(arm, seed)), section, kind)
        wrong_share = None if compares_solutions(resolve_loss(section)) else section.wrong_share
        if (usable := usable_rows(rows, wrong_share)) < count:
            raise UserError(
                f"study.labels: the largest amount is {count:,} labels, and seed {seed} has {usable:,} for its {kind}; "
                "lower it, or raise sample.n_train or the number of train problems"
            )


def named_before(config: Config, run: Run) -> dict[str, Any]:
    """The comparison that counts, its seeds and setting as in study/named.json, which the first call writes.

    `changed` are the keys that have another value now, so that a reader sees when something else had been named.
    """
    values = config.model_dump(mode="json")
    setting = {name: section for name, section in values.items() if name not in (*NOT_STUDIED, "study")}
    now = {"primary": values["study"]["primary"], "seeds": values["study"]["seeds"], "setting": setting}
    if not run.exists(NAMED):
        first = {**now, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        run.write_bytes(NAMED, json.dumps(first, indent=1).encode())
    first = with_names_of_today(json.loads(run.read_bytes(NAMED)))
    then, today = (dict(leaves({key: content[key] for key in now})) for content in (first, now))
    changed = []
    for key in sorted(then.keys() | today.keys()):
        name = key.removeprefix("setting.")
        # What says nothing of what the trials do.
        idle = any(name == prefix or name.startswith(f"{prefix}.") for prefix in UNDECISIVE)
        if then.get(key) != today.get(key) and not idle:
            changed.append(key)
    return {key: first[key] for key in ("primary", "seeds", "time")} | {"changed": changed}


def is_done(grid: Grid, trial: Trial) -> bool:
    """Whether everything that the trial makes is complete and fresh."""
    return are_done(grid.trial_config(trial), grid.trial_run(trial), TRIAL_STAGES)


def run_trial(grid: Grid, trial: Trial) -> None:
    """Stage 1 (one critic for all kinds), its rounds, stage 2, scores, evaluation; the trial has its data already.

    A critic that is Minos' own is taken from there, where that trial has come as far; one that the trial has trained
    itself stays, or what was made from it would be made again.
    """
    config, run = grid.trial_config(trial), grid.trial_run(trial)
    if trial.arm.critiques and trial.arm != grid.amounts[-1] and not are_done(config, run, ("sft",)):
        copy_fitting(config, grid.trial_run(Trial(grid.amounts[-1], trial.seed)), run, ("sft",))
    for stage in dict.fromkeys(spec.stage for spec in artefacts_of(config, TRIAL_STAGES)):
        with reported(run, stage):
            resolve(FUNCTIONS[stage])(config, run)


def run_unfinished(grid: Grid) -> int:
    """Runs every trial that is not complete and fresh, each in a process of its own; how many there were.

    WorkStopped when trials failed; the others are done then. Ray Tune's own state is not needed again.
    """
    todo, command = {grid.name(trial): trial for trial in grid.trials if not is_done(grid, trial)}, grid.command
    errors: dict[str, BaseException] = {}
    if todo:
        resources = grid.config.resources
        join(resources)
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
    grid.run.delete(f"{command}/tune")  # also where the command was killed after the last trial
    return len(todo)


def trials_at_once(resources: Resources, nodes: Sequence[Mapping[str, float]], most: int, judges: bool = False) -> int:
    """How many trials fit in whichever phase they are; at least one, which then waits for its room, and `most`.

    A trial holds its group of workers, then its scorers; a critic's rounds hold engines of the judge (`judges`).
    """
    pools = [resources.train, resources.score, *([resources.judge] if judges else [])]

    def fit(pool: Bundles) -> int:
        return sum(on_one(pool, node) for node in nodes) // pool.count if pool.bundle else most

    def needed(pool: Actors | Workers) -> Bundles:
        """An elastic training may take all that it is allowed."""
        need = bundles(pool)
        return need._replace(count=pool.most) if isinstance(pool, Workers) else need

    return max(1, min(most, *(fit(needed(pool)) for pool in pools)))


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
