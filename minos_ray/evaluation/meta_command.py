"""`minos meta`: the run's verifiers judged on step-labelled sets, without a generator. Writes meta.json."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from minos_ray.config import Config
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import grouped, read_candidates, read_scores
from minos_ray.evaluation.metrics import THRESHOLD
from minos_ray.evaluation.stage import judged
from minos_ray.scoring.stage import read_problems, score_artefacts
from minos_ray.sections import Model
from minos_ray.stages import VERSIONS, fingerprint_of
from minos_ray.store import Run, fingerprint

NAME = "meta.json"
COLUMNS = ("accuracy", "f1", "auc", "first_error_f1")


def meta(config: Config, run: Run) -> dict[str, Any]:
    """Scores every set of `meta.sets` (run directories of `minos import`) with the verifiers; prints and writes.

    Every verdict uses the threshold 0.5; first errors are counted as in ProcessBench.
    """
    rows = [row for path in config.meta.sets or (run.path,) for row in judge_set(config, run, path)]
    content = {"threshold": THRESHOLD, "rows": rows, "mean_first_error_f1": means(rows)}
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    print("\n".join([*lines(rows), f"threshold {THRESHOLD}; written to {run.path}/{NAME}"]))
    return content


def judge_set(config: Config, run: Run, path: str) -> list[dict[str, Any]]:
    """One row per data set of the run directory `path`, verifier and level."""
    labelled = Run(path)
    missing = [name for name in ("problems", "labels") if labelled.artefact(name).manifest() is None]
    if missing:
        raise UserError(f"meta.sets: '{path}' has no complete {missing[0]}; make one with `minos import`")
    artefacts = score_set(config, run, labelled)
    candidates = read_candidates(labelled)
    problems = labelled.artefact("problems").read(["problem_id", "dataset"]).to_pylist()
    datasets = {row["problem_id"]: row["dataset"] for row in problems}
    of_row = np.array([datasets[name] for name in candidates.rows["problem_id"].to_pylist()])
    rows = []
    for dataset in np.unique(of_row).tolist():
        part = grouped(candidates.rows.filter(pa.array(of_row == dataset)))
        found = {name: read_scores(run, artefact, part) for name, artefact in artefacts.items()}
        rows += [{"set": dataset, **row} for row in judged(part, {n: s for n, s in found.items() if s})]
    return rows


def score_set(config: Config, run: Run, labelled: Run) -> dict[str, str]:
    """The artefact with the scores of each verifier that this run has; what is missing is scored."""
    trained = [name for name in config.reward.verifiers if fingerprint_of(run, f"models/{name}")]
    if not trained:
        raise UserError(f"meta: {run.path} has none of the verifiers {', '.join(config.reward.verifiers)}")
    names = {name: f"meta/{set_key(labelled)}/{name}" for name in trained}
    begun, models = [], {}
    for name, path in names.items():
        artefact = run.artefact(path)
        inputs = {
            "model": fingerprint_of(run, f"models/{name}"),
            "aggregation": config.score.aggregation,
            "step_encoding": VERSIONS["step_encoding"],
        }
        manifest = artefact.manifest()
        if manifest is None or manifest.fingerprint != fingerprint(inputs):
            artefact.begin(inputs)
            begun.append(artefact)
            models[path] = Model(model=f"run:models/{name}", trust_remote_code=config.base.trust_remote_code)
    if begun:
        score_artefacts(config, run, begun, models, read_problems(labelled, "test"))
    return names


def set_key(labelled: Run) -> str:
    """A folder name that is the same for the same problems and labels."""
    return fingerprint({name: fingerprint_of(labelled, name) for name in ("problems", "labels")})


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """First-error F1 of each verifier, averaged over the sets where it is defined."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("first_error_f1") is not None:
            found.setdefault(row["verifier"], []).append(row["first_error_f1"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The results as a table in text."""
    head = f"{'set':24} {'verifier':10} {'level':8} {'examples':>8} " + " ".join(f"{name:>14}" for name in COLUMNS)
    return [head, *map(line, rows)]


def line(row: dict[str, Any]) -> str:
    """One row; a dash where a metric is not defined."""
    values = [row.get(name) for name in COLUMNS]
    shown = " ".join(f"{'-' if value is None else format(value, '.3f'):>14}" for value in values)
    return f"{row['set']:24} {row['verifier']:10} {row['level']:8} {row['examples']:8} {shown}"
