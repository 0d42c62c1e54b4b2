"""The stage `score`: every test candidate scored by every verifier, then judged by the critic."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.checks import length_problems, weight_problems
from minos_ray.cluster.bundles import Bundles
from minos_ray.config.load import Config, resolve
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Model
from minos_ray.graph import lengths
from minos_ray.graph.specs import begin, fresh
from minos_ray.graph.state import Todo
from minos_ray.scoring.solutions import Reader, missing, read_pieces
from minos_ray.store.model_files import locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.work.run_units import Work, run_units

WORKER = "minos_ray.scoring.scorer:Scorers"


def problems_of(config: Config, run: Run, todo: Todo) -> list[str]:
    """One line when the critic would have no room for a prompt beside what it writes."""
    judge, engine = config.score.judge, config.resources.judge
    if "scores/critic" not in todo.artefacts or judge is None:
        return []
    return length_problems("score.judge.max_tokens", judge.max_tokens, "judge", engine, config.base, run)


def gpu_problems(config: Config, run: Run, pools: Mapping[str, Bundles], gpu_gb: float) -> Iterator[str]:
    """Models that GPUs of `gpu_gb` cannot hold; what is still to be trained has the size of the base."""
    for pool, engine in (("score", config.resources.score), ("judge", config.resources.judge)):
        if pool in pools:
            yield from weight_problems(pool, engine, config.base, run, gpu_gb)


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
    paths = {name: locate(model, run) for name, model in models.items()}
    if models:
        pieces = read_pieces(run, "test")
        begun = [begin(config, run, name) for name in models]
        for artefact in begun:
            lengths.make_again(artefact, lengths.length_of(config, artefact.name, paths[artefact.name]))
        done.update(score_artefacts(config, run, begun, models, run, pieces))
    return [manifest for manifest in done.values() if manifest]


def score_artefacts(
    config: Config,
    run: Run,
    begun: Sequence[Artefact],
    models: Mapping[str, Model],
    labelled: Run,
    pieces: pa.Table,
    worker: str = WORKER,
) -> dict[str, Manifest]:
    """Fills artefacts of scores, each with the model of its name, in one pool of actors; manifests by name.

    `pieces` of the run `labelled` are scored (`read_pieces`). `worker` is made with run, models and aggregation, as
    `Scorers` is.
    """
    if not begun:
        return {}
    start = time.monotonic()
    score_missing(config, run, begun, models, labelled, pieces, worker)
    seconds = round((time.monotonic() - start) / len(begun), 2)
    used = of_worker(config.resources.score, worker)
    facts = {"aggregation": config.score.aggregation, "engine": used.engine, "max_model_len": used.max_model_len}
    facts |= {"seconds": seconds}
    return {artefact.name: finish(artefact, pieces, facts) for artefact in begun}


def score_missing(
    config: Config,
    run: Run,
    begun: Sequence[Artefact],
    models: Mapping[str, Model],
    labelled: Run,
    pieces: pa.Table,
    worker: str,
) -> None:
    """Scores the units that are not stored."""
    units = [missing(begun, pieces)]  # in a list, out of which the table goes to Ray's store
    rows, resources = size(pieces) * len(begun), of_worker(config.resources.score, worker)
    work = Work(
        label="score",
        pool="score",
        worker=Reader,
        kwargs={
            "worker": worker,
            "labelled": labelled.path,
            "run": run.path,
            "models": dict(models),
            "aggregation": config.score.aggregation,
            "resources": resources,
        },
        batch_units=resources.units_per_task,
        rows=rows,
        rows_before=rows - size(units[0]),
        row_name="scores",
    )
    run_units(run, "scores", units.pop(), work, config.resources.model_copy(update={"score": resources}))


def of_worker(resources: Scoring, worker: str) -> Scoring:
    """Only our own verifiers are scored by vLLM, and on several GPUs."""
    if worker == WORKER:
        return resources
    return resources.model_copy(update={"engine": "transformers", "gpus": min(1, resources.gpus)})


def size(pieces: pa.Table) -> int:
    """Candidates of pieces."""
    return pc.sum(pieces["rows"]).as_py() or 0


def finish(artefact: Artefact, pieces: pa.Table, facts: dict[str, Any]) -> Manifest:
    """Makes sure that every candidate has its score once, then writes the manifest."""
    if lacks := missing([artefact], pieces).num_rows:
        raise RuntimeError(f"{artefact.name} lacks the candidates of {lacks} units; run again")
    stats = artefact.stats()
    left_out = {key.removeprefix("refused_"): int(rows) for key, rows in stats.items() if key.startswith("refused_")}
    details = {
        **facts,
        **lengths.details(artefact, stats),
        "refused": "kept with score 0",
        "model_seconds": round(stats.get("seconds", 0.0), 2),
        "tokens": int(stats.get("tokens", 0)),
        "tokens_of_solutions": int(stats.get("tokens_of_solutions", 0)),
    }
    counts = {"candidates": size(pieces), "problems": len(pieces["problem_id"].unique())}
    return artefact.complete(counts, left_out, details)
