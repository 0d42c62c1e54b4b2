"""The stage `study`: data of every seed, then every arm of every seed on Ray Tune, then what they say together."""

import json
import time

from minos_ray.config import Config
from minos_ray.errors import UserError
from minos_ray.stages import begin
from minos_ray.store import Manifest, Run
from minos_ray.study.arms import FOLDER, trial_config, trials
from minos_ray.study.comparison import compared
from minos_ray.study.data import make_data
from minos_ray.study.figures import write_figures
from minos_ray.study.statement import statement
from minos_ray.study.trial import result_rows, run_trial, unfinished
from minos_ray.sweep.stage import write
from minos_ray.sweep.tune import folder, run_trials

RESULTS = f"{FOLDER}/results.parquet"
ANSWER = f"{FOLDER}/study.json"
TABLES = f"{FOLDER}/study.md"


def study(config: Config, run: Run) -> Manifest:
    """Runs every trial that is missing or stale, then writes one row per trial and kind, and the comparison.

    UserError without seeds. WorkStopped when trials failed; the finished ones are skipped by the next call.
    """
    if not config.study.seeds:
        raise UserError("study.seeds is empty: give some, such as [1, 2, 3, 4, 5]")
    target = begin(config, run, RESULTS)
    if isinstance(target, Manifest):
        return target
    start = time.monotonic()
    planned = trials(config)
    for trial in planned:
        trial_config(config, run, trial)  # an ablation that no config can have is refused before any work
    for seed in config.study.seeds:
        make_data(config, run, seed)
    by_name = {trial.name: trial for trial in planned if unfinished(config, run, trial)}

    def do(name: str) -> None:
        run_trial(config, Run(run.path), by_name[name])

    if by_name:
        run_trials(config, run, FOLDER, list(by_name), len(planned), do)
    run.delete(folder(FOLDER))
    rows = [row for trial in planned for row in result_rows(config, run, trial)]
    answer = compared(config, run, rows)
    write_figures(config, run, rows, answer)
    run.write_bytes(ANSWER, json.dumps(answer, indent=1, allow_nan=False).encode())
    write(run, RESULTS, rows)
    run.write_bytes(TABLES, statement(answer).encode())
    print(statement(answer), flush=True)
    details = {"seconds": round(time.monotonic() - start, 1), "trials_run_now": len(by_name)}
    return target.complete({"trials": len(planned), "rows": len(rows)}, {}, details)
