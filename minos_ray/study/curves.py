"""What the trials say together: sweep/trend.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray.config.load import Config
from minos_ray.evaluation import outcomes, trend
from minos_ray.store.run import Run
from minos_ray.study.space import Trial, trial_run, trials, verifiers
from minos_ray.study.sweep_trial import METHODS

SELECTION = ("best_of_n", "weighted_vote")
WHOLE = ("f1", "auc")
Row = Mapping[str, Any]
Tables = Mapping[Trial, pa.Table]


def curves(config: Config, run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """The content of trend.json: per kind and measure a curve over the amounts and its trend; `rows` of all trials."""
    tables = {trial: outcomes.read(trial_run(run, trial)) for trial in trials(config)}
    amounts, seeds = (sorted({trial[place] for trial in tables}) for place in (0, 1))
    kinds = dict.fromkeys(config.sweep.kinds)
    found = [
        *(selected(config, tables, kind, measure) for kind in kinds for measure in SELECTION),
        *(whole([row for row in rows if row["kind"] == kind], kind, measure) for kind in kinds for measure in WHOLE),
    ]
    return {
        "amounts": amounts,
        "seeds": seeds,
        "n": max(row["n"] for row in rows),
        "bootstrap": config.evaluate.bootstrap,
        "curves": [named | curve(values, amounts, config) for named, values in found],
    }


def curve(values: np.ndarray, amounts: Sequence[int], config: Config) -> dict[str, Any]:
    """Points and trend of the seeds and problems that every trial has a value for; the others are counted."""
    problems = ~np.isnan(values).any(axis=(0, 1)) if values.shape[2] > 1 else np.ones(1, dtype=bool)
    entering = values[:, :, problems]
    seeds = ~np.isnan(entering).any(axis=(1, 2))
    entering = entering[seeds]
    numbers = {"seeds": int(seeds.sum()), "problems": int(problems.sum()) if values.shape[2] > 1 else None}
    left_out = {"seeds_left_out": int((~seeds).sum()), "problems_left_out": int((~problems).sum())}
    made = trend.curve(entering, amounts, config.evaluate.bootstrap, config.evaluate.seed) if entering.size else {}
    return numbers | left_out | {"points": [], "trend": None} | made


def selected(config: Config, tables: Tables, kind: str, measure: str) -> tuple[dict[str, str], np.ndarray]:
    """Outcomes [seeds, amounts, problems] of a method of selection; the problems are those of every trial."""
    found = {
        trial: outcomes.values(table, METHODS[measure], name_of(config, trial, kind)) for trial, table in tables.items()
    }
    return {"kind": kind, "measure": measure}, stacked(found)


def whole(rows: Sequence[Row], kind: str, measure: str) -> tuple[dict[str, str], np.ndarray]:
    """[seeds, amounts, 1] of a measure of the whole trial, NaN where it has none."""
    found = {Trial(row["critiques"], row["seed"]): np.array([row[measure]], dtype=np.float64) for row in rows}
    return {"kind": kind, "measure": measure}, stacked(found)


def stacked(found: Mapping[Trial, np.ndarray]) -> np.ndarray:
    """[seeds, amounts, ...], both ascending."""
    amounts, seeds = (sorted({trial[place] for trial in found}) for place in (0, 1))
    return np.stack([[found[Trial(amount, seed)] for amount in amounts] for seed in seeds])


def name_of(config: Config, trial: Trial, kind: str) -> str:
    """The trial's verifier of this kind."""
    return next(name for name in verifiers(config, trial) if name.startswith(f"{kind}-"))
