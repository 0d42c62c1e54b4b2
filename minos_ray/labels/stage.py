"""Stage `label`: grades the answer of every candidate, splits its steps and labels them."""

import time
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config, resolve
from minos_ray.config.schema import Label
from minos_ray.errors import UserError
from minos_ray.grading.graders import Graded
from minos_ray.grading.pool import Grading
from minos_ray.graph.specs import begin, fresh
from minos_ray.inserted.stage import inserted
from minos_ray.labels.rollouts import rollouts
from minos_ray.labels.step_labels import COUNTED, StepLabeller
from minos_ray.problems.split import read_problems
from minos_ray.store import columns
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.work.run_units import Work, run_units, stored_units

UNIT_ROWS = 2048
NO_PROBLEM = "candidate of an unknown problem"


def label(config: Config, run: Run) -> Manifest:
    """Labels every candidate, then inserts errors into right solutions where `inserted.count` wants some."""
    manifest = label_candidates(config, run)
    inserted(config, run)
    return manifest


def label_candidates(config: Config, run: Run) -> Manifest:
    """Labels every candidate of the run; a rerun labels only the slices of candidates that are missing."""
    done = fresh(config, run, "labels")
    if done is not None:
        if config.label.rollouts and "import" in done.inputs:  # no stage replaces what was imported
            raise UserError(
                "label.rollouts is set, but the labels of this run were imported; delete its folder labels/"
            )
        if not config.label.rollouts or fresh(config, run, "rollouts"):
            return done
    start = time.monotonic()
    units = plan(run.artefact("candidates"))
    if config.label.rollouts:
        rollouts(config, run)
    target = begin(config, run, "labels")
    label_missing(config, run, target, units)
    return finish(target, count_rows(units), time.monotonic() - start)


def label_missing(config: Config, run: Run, target: Artefact, units: pa.Table) -> None:
    """Labels the units that are not stored yet, on the actors of `resources.grade`."""
    missing = units.filter(pa.array(~stored_units(target, units["unit_id"].combine_chunks())))
    rows = count_rows(units)
    work = Work(
        label="grade",
        pool="grade",
        worker=Labeller,
        kwargs={"run": run.path, "label": config.label},
        batch_units=1,
        rows=rows,
        rows_before=rows - count_rows(missing),
    )
    run_units(run, "labels", missing, work, config.resources)


def count_rows(units: pa.Table) -> int:
    """Candidates of units."""
    return pc.sum(units["rows"]).as_py() or 0


def plan(candidates: Artefact) -> pa.Table:
    """Units: slices of at most `UNIT_ROWS` rows of each part. UserError while the candidates are not complete."""
    if candidates.manifest() is None:
        raise UserError(f"{candidates.path} is not complete; run the stage 'sample' first")
    slices: dict[str, list[Any]] = {"part": [], "first": [], "rows": []}
    for part, rows in candidates.sizes_of_parts():
        for first in range(0, rows, UNIT_ROWS):
            slices["part"].append(part)
            slices["first"].append(first)
            slices["rows"].append(min(UNIT_ROWS, rows - first))
    units = pa.table(slices, pa.schema([("part", pa.string()), ("first", pa.int64()), ("rows", pa.int64())]))
    names = pc.binary_join_element_wise(units["part"], units["first"].cast(pa.string()), ":")
    return units.append_column("unit_id", names)


def finish(target: Artefact, rows: int, seconds: float) -> Manifest:
    """Sums the numbers of the parts and completes the artefact."""
    total = target.stats()
    counts = {"rows": int(sum(total.get(status, 0) for status in columns.STATUSES))}
    counts |= {status: int(total.get(status, 0)) for status in columns.STATUSES}
    counts |= {kind: int(total[kind]) for kind in COUNTED if kind in total}
    dropped = {NO_PROBLEM: int(total.get(NO_PROBLEM, 0))}
    if counts["rows"] + dropped[NO_PROBLEM] != rows:
        raise RuntimeError(f"{rows} candidates, but {counts['rows']} labels and {dropped[NO_PROBLEM]} dropped")
    details = {name: int(total.get(name, 0)) for name in ("stepless", "strict_correct")}
    return target.complete(counts, dropped, {"seconds": round(seconds, 1), **details})


class Labeller:
    """The worker: holds the problems, reads slices of candidates and labels them."""

    def __init__(self, run: str, label: Label) -> None:
        self.candidates = Run(run).artefact("candidates")
        self.problems = read_problems(Run(run), None, ["problem_id", "split", "question", "answer", "solution"])
        self.label_steps = StepLabeller(Run(run), label)
        self.grading = Grading(resolve(label.grader), label.timeout_s)
        self.part: tuple[str, pa.Table] | None = None

    def __call__(self, units: pa.Table) -> tuple[pa.Table, dict[str, float]]:
        """Labels of all candidates of the units, and how many had which status."""
        candidates = [row for unit in units.to_pylist() for row in self._rows(unit)]
        problems = self._problems({row["problem_id"] for row in candidates})
        rows = [row for row in candidates if row["problem_id"] in problems]
        golds = [problems[row["problem_id"]]["answer"] for row in rows]
        grades = self.grading(golds, [row["text"] for row in rows])
        self.label_steps.counts.clear()
        labels = [self._label(row, problems[row["problem_id"]], g) for row, g in zip(rows, grades, strict=True)]
        stats: Counter[str] = Counter(grade.status for grade in grades)
        stats.update(self.label_steps.counts)
        stats["stepless"] = sum(not row["steps"] for row in labels)
        stats["strict_correct"] = sum(self.grading.strict(golds, [row["text"] for row in rows]))
        stats[NO_PROBLEM] = len(candidates) - len(rows)
        return columns.table("labels", labels), dict(stats)

    def _rows(self, unit: dict[str, Any]) -> list[dict[str, Any]]:
        """The candidates of a unit. The last part stays in memory, since its slices follow one another."""
        if self.part is None or self.part[0] != unit["part"]:
            self.part = (unit["part"], self.candidates.read_part(unit["part"], ["candidate_id", "problem_id", "text"]))
        return self.part[1].slice(unit["first"], unit["rows"]).to_pylist()

    def _problems(self, names: set[str]) -> dict[str, dict[str, Any]]:
        """These problems by id; those of a large run would not fit into every actor as objects."""
        rows = self.problems.filter(pc.is_in(self.problems["problem_id"], value_set=pa.array(names, pa.string())))
        return {row["problem_id"]: row for row in rows.to_pylist()}

    def _label(self, candidate: dict[str, Any], problem: dict[str, Any], grade: Graded) -> dict[str, Any]:
        return {
            "candidate_id": candidate["candidate_id"],
            "problem_id": candidate["problem_id"],
            "answer": grade.answer,
            "correct": grade.correct,
            "status": grade.status,
            **self.label_steps(problem, candidate["text"], grade),
        }
