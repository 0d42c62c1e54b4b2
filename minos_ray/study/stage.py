"""The stages `sweep` and `study`: the trials of a grid on Ray Tune, then what they say together."""

import json
import time
from itertools import product
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minos_ray.config.load import Config, leaves
from minos_ray.errors import UserError
from minos_ray.evaluation.trend import NAME as TREND
from minos_ray.graph.specs import NEUTRAL, NOT_STUDIED, begin, fresh
from minos_ray.labels.stage import require_for_prms
from minos_ray.pipeline.run import functions
from minos_ray.pipeline.run import require as require_all
from minos_ray.store.run import Manifest, Run
from minos_ray.study.comparison import compared, trends
from minos_ray.study.grid import Grid, SharedData, Trial, give_data, make_data, study_grid, sweep_grid
from minos_ray.study.statement import PICTURES, statement, write_figures
from minos_ray.study.trials import result_rows, run_unfinished

SWEEP_RESULTS = "sweep/results.parquet"
RESULTS, ANSWER, TABLES = "study/results.parquet", "study/study.json", "study/study.md"
NAMED = "study/named.json"
# Keys of what was named before that decide nothing: each trial sets them itself, or they are in no fingerprint.
UNDECISIVE = {
    *("seed", "sft.seed", "reward.seed", "score.judge"),
    *(f"{section}.{key}" for section in NEUTRAL for key in NEUTRAL[section]),
}


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
    check_data(grid)  # before older results go
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


def check_data(grid: Grid) -> None:
    """UserError when data of the first seed could not be made, a critic does not answer, or no training would fit."""
    arms = (grid.amounts[-1], *grid.ablations)
    by_place = {grid.data_run(trial).root: trial for trial in (Trial(arm, grid.seeds[0]) for arm in arms)}
    for trial in by_place.values():
        config = grid.data_config(trial)
        reward = config.reward.model_copy(update={"verifiers": tuple(grid.verifiers(trial.arm))})
        require_all(config.model_copy(update={"reward": reward}), grid.data_run(trial))


def check_labels(grid: Grid) -> None:
    """UserError where a seed's data have fewer labels than the largest amount; trials would train on what there is."""
    from minos_ray.training.reward import reward_rows
    from minos_ray.training.rows import usable_rows
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
    first = json.loads(run.read_bytes(NAMED))
    then, today = (dict(leaves({key: content[key] for key in now})) for content in (first, now))
    changed = []
    for key in sorted(then.keys() | today.keys()):
        name = key.removeprefix("setting.")
        # What says nothing of what the trials do.
        idle = any(name == prefix or name.startswith(f"{prefix}.") for prefix in UNDECISIVE)
        if then.get(key) != today.get(key) and not idle:
            changed.append(key)
    return {key: first[key] for key in ("primary", "seeds", "time")} | {"changed": changed}
