"""Large runs for benchmarks/planning.py: as the stages leave them, but for their texts, which are few and short."""

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sampling import MODEL, questions

from minos_ray.candidates.stage import plan, read_targets
from minos_ray.config.load import Config
from minos_ray.config.resources import Actors, Engine, Resources, Scoring
from minos_ray.config.schema import Sample
from minos_ray.graph import specs
from minos_ray.store import columns as schema
from minos_ray.store.model_files import locate
from minos_ray.store.run import Run
from minos_ray.units.actor import hash_ids

N, UNIT, ACTORS = 256, 32, 2
VERIFIERS = ["orm-base", "orm-minos", "prm-base", "prm-minos"]
STEPS = ["Step 1: 3 + 4 = 7", "The answer is: 7"]
LABEL = {"answer": "7", "correct": True, "status": "correct", "steps": STEPS, "step_labels": [-1, -1]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "candidates": [{"text": f"3 + 4 = {n}", "finish_reason": "stop", "num_tokens": 9, "model": "m"} for n in (7, 8)],
    "labels": [{**LABEL, "step_scores": None, "step_source": "none", "error_types": []}],
    "scores": [{"score": score, "step_scores": [0.75, score]} for score in (0.25, 0.5)],
}


def none_stored(counts: np.ndarray) -> np.ndarray:
    """The table [problems, candidates] of a run in which no candidate is stored."""
    return np.zeros((len(counts), max(counts, default=0)), dtype=bool)


def configured(folder: Path) -> Config:
    """8 units of candidates a problem, and four verifiers."""
    pool = {"actors": ACTORS, "cpus": 1}
    resources = Resources(sample=Engine(**pool), score=Scoring(**pool), grade=Actors(**pool), num_cpus=ACTORS)
    sections = {"reward": {"verifiers": VERIFIERS}, "score": {"judge": None}}
    sample = Sample(n_train=0, n_test=N, unit=UNIT)
    return Config(run=str(folder), base=MODEL, generator=MODEL, sample=sample, resources=resources, **sections)


def made(kind: str, folder: Path, problems: int, files: int) -> Path:
    """A run with problems, and with candidates or with labels and scores as `kind` says; only once in a folder."""
    run, config = Run(str(folder)), configured(folder)
    if not run.exists("made"):
        make_problems(run, problems)
        if kind in ("half", "sampled"):
            make_candidates(run, config, files, share=0.5 if kind == "half" else 1)
        if kind == "scored":
            make_labels(run, config, files)
            make_scores(run, config, files)
        run.write_bytes("made", b"")
    return folder


def make_problems(run: Run, number: int) -> None:
    """Problems of the split `test` with questions of the miniature."""
    asked, count = questions(1000), np.arange(number)
    constant = {"dataset": "benchmark", "split": "test", "answer": "7", "solution": None}
    columns = {
        "problem_id": pc.binary_join_element_wise("benchmark/", pa.array(count).cast(pa.string()), ""),
        "question": pa.array(asked).take(pa.array(count % len(asked))),
        **{name: pa.repeat(pa.scalar(value, pa.string()), number) for name, value in constant.items()},
    }
    artefact = run.artefact("problems")
    artefact.begin({"import": "benchmark"})
    artefact.write_part("0", pa.table({name: columns[name] for name in schema.SCHEMAS["problems"].names}))
    artefact.complete({"problems": number})


class Task(NamedTuple):
    """Units of sampling that follow one another in the plan: their problems and their first indices."""

    problems: list[str]
    first: np.ndarray

    @property
    def ids(self) -> list[str]:
        """The ids of the units."""
        return [f"{name}#{at}" for name, at in zip(self.problems, self.first, strict=True)]

    def rows(self, kind: str) -> pa.Table:
        """Rows of an artefact: real ids, and `ROWS` of that kind by turns."""
        problem = pa.array(np.repeat(np.arange(len(self.problems)), UNIT))
        index = pa.array((self.first[:, None] + np.arange(UNIT)).reshape(-1), pa.int32())
        named = pa.array(self.problems).take(problem)
        candidate = pc.binary_join_element_wise(named, index.cast(pa.string()), "/")
        known = {"candidate_id": candidate, "problem_id": named, "index": index}
        told = schema.table(kind, ROWS[kind]).take(pa.array(np.arange(len(index)) % len(ROWS[kind])))
        return pa.table({name: known.get(name, told[name]) for name in told.column_names})


def tasks(run: Run, config: Config, number: int) -> Iterator[Task]:
    """The plan of the sampling stage as so many tasks of equal size."""
    wanted = read_targets(config, run)
    units = plan(wanted.amounts, none_stored(wanted.amounts), UNIT).shuffled(config.seed)
    each = -(-len(units) // number)
    for first in range(0, len(units), each):
        problems = wanted.problems["problem_id"].take(pa.array(units.problem[first : first + each]))
        yield Task(problems.to_pylist(), units.first[first : first + each])


def make_candidates(run: Run, config: Config, files: int, share: float) -> None:
    """That share of the candidates in as many parts as given."""
    artefact = specs.begin(config, run, "candidates")
    for task in islice(tasks(run, config, round(files / share)), files):
        artefact.write_part(hash_ids(task.ids), task.rows("candidates"), {"seconds": 1.0}, task.ids)
    if share == 1:
        artefact.complete({})


def make_labels(run: Run, config: Config, files: int) -> None:
    """Labels of all candidates."""
    labels = run.artefact("labels")
    labels.begin({"import": "benchmark"})
    for task in tasks(run, config, files):
        labels.write_part(hash_ids(task.ids), task.rows("labels"))
    labels.complete({})


def make_scores(run: Run, config: Config, files: int) -> None:
    """Four models, and the scores of the first two."""
    for name in VERIFIERS:
        model = run.artefact(f"models/{name}")
        model.begin({"import": "benchmark"})
        shutil.copytree(locate(MODEL, run), model.path, dirs_exist_ok=True)
        model.complete({})
    for name in VERIFIERS[:2]:
        scores = specs.begin(config, run, f"scores/{name}")
        for task in tasks(run, config, files):
            part = hash_ids(task.ids)
            units = [f"scores/{name} {part} {problem}" for problem in dict.fromkeys(task.problems)]
            scores.write_part(hash_ids(units), task.rows("scores"), {"seconds": 1.0}, units)
