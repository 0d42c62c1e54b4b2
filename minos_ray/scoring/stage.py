"""The stage `score`: every test candidate scored by every verifier, then judged by the critic.

A unit of work is one verifier on the candidates of one problem in one part of the labels. The driver plans units
without reading a solution: it reads only the problem of each label. An actor reads a part once, since units of the same
part follow one another.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.stage import length_problems, weight_problems
from minos_ray.cluster.room import Bundles
from minos_ray.config.load import Config, resolve
from minos_ray.config.resources import Scoring
from minos_ray.config.schema import Model
from minos_ray.errors import UserError
from minos_ray.graph import lengths
from minos_ray.graph.specs import begin, fresh
from minos_ray.graph.state import Todo
from minos_ray.problems.split import read_problems
from minos_ray.store.model_files import locate
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.units.run_units import Work, rows_of_units, run_units, stored_units

# Dotted, so that the driver imports neither torch nor vLLM.
WORKER = "minos_ray.scoring.verifier:Scorers"
# What a worker gets: a unit with its solutions.
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


def problems_of(config: Config, run: Run, todo: Todo) -> list[str]:
    """One line when the critic would have no room for a prompt beside what it writes."""
    judge, engine = config.score.judge, config.resources.judge
    if "scores/critic" not in todo.artefacts or judge is None:
        return []
    return length_problems("score.judge.max_tokens", judge.max_tokens, "judge", engine, config.base, run)


def gpu_problems(config: Config, run: Run, pools: Mapping[str, Bundles], gpu_gb: float) -> Iterator[str]:
    """Models that GPUs of `gpu_gb` cannot hold; a model that is not trained yet has the size of the base."""
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
        artefacts = [begin(config, run, name) for name in models]
        for artefact in artefacts:
            lengths.make_again(artefact, lengths.length_of(config, artefact.name, paths[artefact.name]))
        done.update(score_artefacts(config, run, artefacts, models, run, pieces))
    return [manifest for manifest in done.values() if manifest]


def score_artefacts(
    config: Config,
    run: Run,
    artefacts: Sequence[Artefact],
    models: Mapping[str, Model],
    labelled: Run,
    pieces: pa.Table,
    worker: str = WORKER,
) -> dict[str, Manifest]:
    """Fills artefacts of scores, each with the model of its name, in one pool of actors; manifests by name.

    `pieces` of the run `labelled` are scored (`read_pieces`). `worker` is constructed with run, models, aggregation and
    resources, like `Scorers`. RuntimeError when a candidate has no row in the end.
    """
    if not artefacts:
        return {}
    start = time.monotonic()
    resources = config.resources.score
    if worker != WORKER:  # only our own verifiers run in vLLM, and on several GPUs
        resources = resources.model_copy(update={"engine": "transformers", "gpus": min(1, resources.gpus)})
    score_missing(config, run, artefacts, models, labelled, pieces, worker, resources)
    details = {
        "aggregation": config.score.aggregation,
        "engine": resources.engine,
        "max_model_len": resources.max_model_len,
        "seconds": round((time.monotonic() - start) / len(artefacts), 2),
    }
    return {artefact.name: finish(artefact, pieces, details) for artefact in artefacts}


def score_missing(
    config: Config,
    run: Run,
    artefacts: Sequence[Artefact],
    models: Mapping[str, Model],
    labelled: Run,
    pieces: pa.Table,
    worker: str,
    resources: Scoring,
) -> None:
    """Scores the units that are not stored."""
    units = [missing(artefacts, pieces)]  # popped below, so that only Ray's object store holds the table
    rows = rows_of_units(pieces) * len(artefacts)
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
        rows_before=rows - rows_of_units(units[0]),
        row_name="scores",
    )
    run_units(run, "scores", units.pop(), work, config.resources.model_copy(update={"score": resources}))


def finish(artefact: Artefact, pieces: pa.Table, details: dict[str, Any]) -> Manifest:
    """Writes the manifest; RuntimeError unless every candidate has its score."""
    if lacking := missing([artefact], pieces).num_rows:
        raise RuntimeError(f"{artefact.name} lacks the candidates of {lacking} units; run again")
    stats = artefact.stats()
    dropped = {key.removeprefix("refused_"): int(rows) for key, rows in stats.items() if key.startswith("refused_")}
    details = {
        **details,
        **lengths.details(artefact, stats),
        "refused": "kept with score 0",
        "model_seconds": round(stats.get("seconds", 0.0), 2),
        "tokens": int(stats.get("tokens", 0)),
        "tokens_of_solutions": int(stats.get("tokens_of_solutions", 0)),
    }
    counts = {"candidates": rows_of_units(pieces), "problems": len(pieces["problem_id"].unique())}
    return artefact.complete(counts, dropped, details)


def read_pieces(run: Run, split: str | None) -> pa.Table:
    """The candidates to score, by part and problem: `piece` (its id), `part`, `problem_id`, `question`, `rows`.

    UserError when no labelled candidate belongs to a problem of the split (None: of either).
    """
    problems = read_problems(run, split, ["problem_id", "question"]).combine_chunks()
    parts, counts = [], []
    for name, rows in run.artefact("labels").named_parts(["problem_id"]):
        parts.append(name)
        counts.append(rows["problem_id"].value_counts())
    if counts:
        part = np.repeat(np.arange(len(parts)), [len(of_part) for of_part in counts])
        # Chunked: one array holds no more than 2 GiB of ids.
        ids = pa.chunked_array([of_part.field("values") for of_part in counts])
        rows = pa.concat_arrays([of_part.field("counts") for of_part in counts])
        problem = pc.index_in(ids, value_set=problems["problem_id"].combine_chunks()).combine_chunks()
        in_split = problem.is_valid()
        if in_split.true_count:
            part = part[in_split.to_numpy(zero_copy_only=False)]
            number, problem = pa.array(part, pa.int32()), problem.drop_null()
            columns = {name: problems[name].combine_chunks() for name in ("problem_id", "question")}
            # Dictionaries, so that each name and question is stored once.
            encoded = {name: pa.DictionaryArray.from_arrays(problem, column) for name, column in columns.items()}
            names, ids = pa.array(parts), columns["problem_id"].take(problem)
            piece = pc.binary_join_element_wise(names.take(number), ids, " ")
            part_names, rows = pa.DictionaryArray.from_arrays(number, names), rows.filter(in_split).cast(pa.int32())
            return pa.table({"piece": piece, "part": part_names, **encoded, "rows": rows})
    raise UserError(f"score: no labelled candidate belongs to a problem of split '{split}'")


def missing(artefacts: Sequence[Artefact], pieces: pa.Table) -> pa.Table:
    """The pieces that each artefact lacks, as units for `Reader`."""
    rows, chosen, unit_ids = pieces["rows"].to_numpy(), [], []
    for artefact in artefacts:
        ids = pc.binary_join_element_wise(artefact.name, pieces["piece"].combine_chunks(), " ")
        lacking = np.flatnonzero(~stored_units(artefact, ids, rows))
        chosen.append(lacking)
        unit_ids.append(ids.take(lacking))
    units = pieces.drop_columns("piece").take(np.concatenate(chosen))
    number = pa.array(np.repeat(np.arange(len(chosen)), [len(lacking) for lacking in chosen]), pa.int32())
    names = pa.DictionaryArray.from_arrays(number, pa.array([artefact.name for artefact in artefacts]))
    return units.append_column("unit_id", pa.chunked_array(unit_ids)).append_column("artefact", names)


class Reader:
    """The worker of `run_units`: reads the solutions of units and has another worker, named `worker`, score them."""

    def __init__(self, worker: str, labelled: str, **kwargs: Any) -> None:
        self.worker, self.labels = resolve(worker)(**kwargs), Run(labelled).artefact("labels")
        self.part: tuple[str, pa.Table] | None = None

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """The worker's rows and counts for the units with their solutions (`UNITS`)."""
        with_solutions = []
        for unit in units.to_pylist():
            if self.part is None or self.part[0] != unit["part"]:
                rows = self.labels.read_part(unit["part"], ["candidate_id", "problem_id", "steps"])
                self.part = unit["part"], rows
            rows = self.part[1].filter(pc.equal(self.part[1]["problem_id"], unit["problem_id"])).sort_by("candidate_id")
            solutions = {"candidate_ids": rows["candidate_id"].to_pylist(), "steps": rows["steps"].to_pylist()}
            with_solutions.append({**unit, **solutions})
        return self.worker(pa.Table.from_pylist(with_solutions, schema=UNITS))
