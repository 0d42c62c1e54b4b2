"""The stage `study`: data of every seed, then every arm of every seed on Ray Tune, then what they say together."""

import json
import time

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.graph.specs import begin, fresh
from minos_ray.labels.checks import require_for_prms
from minos_ray.pipeline.check import functions
from minos_ray.pipeline.check import require as require_all
from minos_ray.store.run import Manifest, Run
from minos_ray.study.arms import (
    FOLDER,
    Trial,
    ablations,
    amounts,
    arms,
    data_config,
    data_run,
    trial_config,
    trials,
    verifiers,
)
from minos_ray.study.comparison import compared
from minos_ray.study.data import make_data
from minos_ray.study.figures import PICTURES, write_figures
from minos_ray.study.named import named
from minos_ray.study.statement import statement
from minos_ray.study.sweep import write
from minos_ray.study.trial import is_done, result_rows, run_trial
from minos_ray.study.tune import folder, run_trials

RESULTS = f"{FOLDER}/results.parquet"
ANSWER = f"{FOLDER}/study.json"
TABLES = f"{FOLDER}/study.md"


def study(config: Config, run: Run) -> Manifest:
    """Runs every trial that is missing or stale, then writes one row per trial and kind, and the comparison.

    UserError without seeds. WorkStopped when trials failed; the finished ones are skipped by the next call.
    """
    refuse(config, run)
    if done := fresh(config, run, RESULTS):
        return done
    start, planned = time.monotonic(), trials(config)
    ask_for_all(config, run)  # before older results go
    target = begin(config, run, RESULTS)
    for name in (ANSWER, TABLES, *PICTURES):
        run.delete(name)
    before = named(config, run)
    make_all_data(config, run)
    by_name = {trial.name: trial for trial in planned if not is_done(config, run, trial)}

    def do(name: str) -> None:
        run_trial(config, Run(run.path), by_name[name])

    if by_name:
        run_trials(config, run, FOLDER, list(by_name), len(planned), do)
    run.delete(folder(FOLDER))
    rows = [row for trial in planned for row in result_rows(config, run, trial)]
    write(run, RESULTS, rows)
    answer = {"named": before, **compared(config, run, rows)}
    run.write_bytes(ANSWER, json.dumps(answer, indent=1, allow_nan=False).encode())
    run.write_bytes(TABLES, statement(answer).encode())
    write_figures(config, run, rows, answer)
    print(statement(answer), flush=True)
    details = {"seconds": round(time.monotonic() - start, 1), "trials_run_now": len(by_name)}
    return target.complete({"trials": len(planned), "rows": len(rows)}, {}, details)


def refuse(config: Config, run: Run) -> None:
    """UserError for what no trial could do, or nobody could compare; before any work."""
    if not config.study.seeds:
        raise UserError("study.seeds is empty: give some, such as [1, 2, 3, 4, 5]")
    if len(amounts(config)) < len(config.study.shares):
        raise UserError(
            f"study.shares = {list(config.study.shares)} of critique.count = {config.critique.count} are not as many "
            "different amounts; raise critique.count or lower the number of shares"
        )
    if config.sft.rows is not None or config.sft.source != "critiques":
        raise UserError("study: sft.rows must be empty and sft.source 'critiques', for amounts to be what they say")
    owns = [trial_config(config, run, Trial(arm, config.study.seeds[0])) for arm in arms(config)]
    for own in owns:
        for function in functions(own, {"sample", "label", "critique"}):
            function.check()
    for own in owns:
        require_for_prms(own, Run(own.run), "study.kinds", config.study.kinds)


def ask_for_all(config: Config, run: Run) -> None:
    """UserError when data of the first seed could not be made, a critic does not answer, or no training would fit."""
    first = [Trial(arm, config.study.seeds[0]) for arm in (amounts(config)[-1], *ablations(config))]
    for trial in {data_run(run, trial).root: trial for trial in first}.values():
        own = data_config(config, run, trial)
        wanted = own.reward.model_copy(update={"verifiers": tuple(verifiers(config, trial.arm))})
        require_all(own.model_copy(update={"reward": wanted}), data_run(run, trial))


def make_all_data(config: Config, run: Run) -> None:
    """The data of every seed, and where ablations need others these, too."""
    for seed in config.study.seeds:
        plain = Trial(amounts(config)[-1], seed)
        for arm in (plain.arm, *ablations(config)):
            make_data(config, run, Trial(arm, seed), plain)
