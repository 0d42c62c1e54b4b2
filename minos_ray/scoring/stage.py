"""The stage `score`: every test candidate scored by every verifier, then judged by the critic."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from minos_ray import cluster
from minos_ray.config import Config, resolve
from minos_ray.errors import UserError
from minos_ray.models import locate
from minos_ray.resources import Scoring
from minos_ray.sections import Model
from minos_ray.stages import begin, fresh
from minos_ray.store import Artefact, Manifest, Run
from minos_ray.units import run_units, stored_ids

WORKER = "minos_ray.scoring.scorer:Scorers"
# One verifier on one problem.
UNITS = pa.schema(
    [
        ("unit_id", pa.string()),
        ("artefact", pa.string()),
        ("problem_id", pa.string()),
        ("question", pa.string()),
        ("candidate_ids", pa.list_(pa.string())),
        ("steps", pa.list_(pa.list_(pa.string()))),
    ]
)
Problem = dict[str, Any]


def score(config: Config, run: Run) -> Manifest:
    """`scores/<verifier>` for each verifier of the config, and `scores/critic`; returns the last manifest."""
    manifests = score_verifiers(config, run)
    if config.score.judge is not None:
        return resolve("minos_ray.scoring.judge:judge")(config, run)
    return manifests[-1]


def score_verifiers(config: Config, run: Run) -> list[Manifest]:
    """Scores of all verifiers; only what is missing is scored."""
    names = {f"scores/{name}": f"run:models/{name}" for name in config.reward.verifiers}
    done = {name: fresh(config, run, name) for name in names}
    trust = config.base.trust_remote_code
    models = {name: Model(model=names[name], trust_remote_code=trust) for name in names if done[name] is None}
    for model in models.values():
        locate(model, run)
    if models:
        problems = read_problems(run, "test")
        begun = [artefact for name in models if isinstance(artefact := begin(config, run, name), Artefact)]
        done.update(score_artefacts(config, run, begun, models, problems))
    return [manifest for manifest in done.values() if manifest]


def read_problems(run: Run, split: str | None) -> list[Problem]:
    """Problems of a split (all when None) that have candidates: `question`, `candidate_ids` and their `steps`."""
    rows = run.artefact("problems").read(["problem_id", "split", "question"]).to_pylist()
    asked = {row["problem_id"]: row["question"] for row in rows if split is None or row["split"] == split}
    found: dict[str, Problem] = {}
    labels = run.artefact("labels").read(["candidate_id", "problem_id", "steps"]).sort_by("candidate_id")
    for row in labels.to_pylist():
        name = row["problem_id"]
        if name in asked:
            empty = {"problem_id": name, "question": asked[name], "candidate_ids": [], "steps": []}
            problem = found.setdefault(name, empty)
            problem["candidate_ids"].append(row["candidate_id"])
            problem["steps"].append(row["steps"])
    if not found:
        raise UserError(f"score: no labelled candidate belongs to a problem of split '{split or 'any'}'")
    return [found[name] for name in sorted(found)]


def score_artefacts(
    config: Config,
    run: Run,
    begun: Iterable[Artefact],
    models: Mapping[str, Model],
    problems: list[Problem],
    worker: str = WORKER,
) -> dict[str, Manifest]:
    """Fills artefacts of scores, each with the model of its name, in one pool of actors; manifests by name.

    `worker` is made with run, models and aggregation, as `Scorers` is.
    """
    start = time.monotonic()
    stored = {artefact.name: stored_ids(artefact, "candidate_id") for artefact in begun}
    score_missing(config, run, models, problems, stored, worker)
    seconds = round((time.monotonic() - start) / max(1, len(stored)), 2)
    used = of_worker(config.resources.score, worker)
    facts = {"aggregation": config.score.aggregation, "engine": used.engine, "max_model_len": used.max_model_len}
    facts |= {"seconds": seconds}
    return {name: finish(run.artefact(name), problems, facts) for name in stored}


def score_missing(
    config: Config,
    run: Run,
    models: Mapping[str, Model],
    problems: list[Problem],
    stored: Mapping[str, set[str]],
    worker: str,
) -> None:
    """Has every problem scored of which an artefact lacks a candidate."""
    units = [
        {"unit_id": f"{name} {problem['problem_id']}", "artefact": name, **problem}
        for name, there in stored.items()
        for problem in problems
        if not there.issuperset(problem["candidate_ids"])
    ]
    if not units:
        return
    resources = of_worker(config.resources.score, worker)
    cluster.connect(config)
    run_units(
        run,
        "scores",
        pa.Table.from_pylist(units, schema=UNITS),
        resolve(worker),
        {
            "run": run.path,
            "models": dict(models),
            "aggregation": config.score.aggregation,
            "resources": resources,
        },
        resources,
        batch_units=resources.units_per_task,
        label="score",
        rows=size(problems) * len(stored),
        rows_before=sum(len(there) for there in stored.values()),
        unit="scores",
        wait_s=config.resources.wait_s,
    )


def of_worker(resources: Scoring, worker: str) -> Scoring:
    """Only our own verifiers are scored by vLLM, and on several GPUs."""
    if worker == WORKER:
        return resources
    return resources.model_copy(update={"engine": "transformers", "gpus": min(1, resources.gpus)})


def size(problems: list[Problem]) -> int:
    """Candidates of all problems."""
    return sum(len(problem["candidate_ids"]) for problem in problems)


def finish(artefact: Artefact, problems: list[Problem], facts: dict[str, Any]) -> Manifest:
    """Makes sure that every candidate has its score once, then writes the manifest."""
    rows = len(stored_ids(artefact, "candidate_id"))
    if rows != size(problems):
        raise RuntimeError(f"{artefact.name} holds {rows} of {size(problems)} candidates; run again")
    stats = artefact.stats()
    refused = {key.removeprefix("refused_"): int(rows) for key, rows in stats.items() if key.startswith("refused_")}
    details = {
        **facts,
        "refused": "kept with score 0",
        "model_seconds": round(stats.get("seconds", 0.0), 2),
        "tokens": int(stats.get("tokens", 0)),
        "tokens_of_solutions": int(stats.get("tokens_of_solutions", 0)),
    }
    return artefact.complete({"candidates": rows, "problems": len(problems)}, refused, details)
