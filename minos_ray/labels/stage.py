"""Stage `label`: grades the answer of every candidate, splits its steps and labels them; and what would stop it.

Step labels come from a function, from rollouts, or from rollouts that agree with the function.
"""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.candidates.stage import length_problems
from minos_ray.config.load import Config, NamedFunction, resolve
from minos_ray.config.schema import Label, Model
from minos_ray.errors import UserError, errors_of
from minos_ray.grading.graders import Graded, Grader, Grading
from minos_ray.graph.specs import begin, fresh
from minos_ray.graph.state import Todo
from minos_ray.labels.inserted import inserted
from minos_ray.labels.rollouts import prefix_id, prefixes, rollouts
from minos_ray.problems.split import read_problems
from minos_ray.steps.split import after_first_error, first_error, is_texts, own_solution
from minos_ray.store import columns
from minos_ray.store.columns import GRADED
from minos_ray.store.run import Artefact, Manifest, Run
from minos_ray.units.run_units import Work, rows_of_units, run_units, stored_units

COUNTED = ("rollouts", "consensus", "no_consensus")
UNIT_ROWS = 2048
NO_PROBLEM = "candidate of an unknown problem"
SOURCES = "set label.steps (package.module:function) or label.rollouts, or import labels of steps"
EXAMPLE = "Step 1: 1 + 1 = 2\nThe answer is: 2"


class Labels(NamedTuple):
    """Labels (1, 0, -1) and soft labels of a candidate's steps, the answer line last."""

    labels: list[int]
    scores: list[float | None]


class RolloutTable:
    """The stored rollouts by prefix: sorted arrays, since every labelling actor holds all of them."""

    def __init__(self, run: Run) -> None:
        columns = ["prefix_id", "label", "completions", "correct"]
        rows = run.artefact("rollouts").read(columns).sort_by("prefix_id")
        self.ids = np.array(rows["prefix_id"].to_pylist(), dtype="S24")
        self.labels, completions, correct = (rows[name].to_numpy() for name in columns[1:])
        with np.errstate(invalid="ignore"):
            self.fractions = correct / completions

    def __call__(self, problem_id: str, cut: Sequence[str], correct: bool) -> Labels | None:
        """The labels of a candidate with these prefixes, None when one of them is not stored."""
        ids = np.array([prefix_id(problem_id, prefix) for prefix in cut], dtype="S24")
        rows = np.searchsorted(self.ids, ids)
        if (rows == len(self.ids)).any() or (self.ids[rows] != ids).any():
            return None
        scores = [None if np.isnan(fraction) else float(fraction) for fraction in self.fractions[rows]]
        return Labels([*self.labels[rows].tolist(), int(correct)], [*scores, float(correct)])


class StepLabeller:
    """Splits candidates and labels their steps; `counts` are how many the rollouts labelled and how many agreed."""

    def __init__(self, run: Run, label: Label) -> None:
        self.split, self.policy = resolve(label.splitter), label.after_first_error
        self.function = resolve(label.steps) if label.steps else None
        self.rollouts = RolloutTable(run) if label.rollouts else None
        self.soft = bool(label.rollouts and label.rollouts.soft)
        self.counts: Counter[str] = Counter()

    def __call__(self, problem: dict[str, Any], text: str, grade: Graded) -> dict[str, Any]:
        """The label columns about steps, of the part of the text that is graded."""
        text = own_solution(text)
        steps = self.split(text)
        labels, errors, source, scores = [-1] * len(steps), [], "none", None
        if self.function:
            labels, errors = self.function(problem["question"], problem["solution"], steps)
            source = "gold"
        if self.rollouts and problem["split"] == "train":
            labels, scores, source = self.by_rollouts(problem["problem_id"], text, steps, grade, labels)
            errors = []
        labels, errors = after_first_error(labels, errors, self.policy)
        return {
            "steps": steps,
            "step_labels": labels,
            "step_scores": scores,
            "step_source": source,
            "error_types": errors,
        }

    def by_rollouts(
        self, problem_id: str, text: str, steps: list[str], grade: Graded, opinion: list[int]
    ) -> tuple[list[int], list[float | None] | None, str]:
        """Labels, soft labels and source; unlabelled without rollouts, or when the opinion has another first error."""
        unlabelled = [-1] * len(steps), None
        is_graded = steps and grade.status in GRADED
        rollouts = (
            self.rollouts(problem_id, prefixes(text, steps)[0], grade.correct) if is_graded and self.rollouts else None
        )
        if rollouts is None:
            return *unlabelled, "none"
        self.counts["rollouts"] += 1
        if self.function:
            agree = first_error(rollouts.labels) == first_error(opinion)
            self.counts["consensus" if agree else "no_consensus"] += 1
            if not agree:
                return *unlabelled, "no_consensus"
        return rollouts.labels, rollouts.scores if self.soft else None, "rollouts"


def label(config: Config, run: Run) -> Manifest:
    """Labels every candidate, then inserts errors into right solutions where `inserted.count` wants some."""
    manifest = label_candidates(config, run)
    inserted(config, run)
    return manifest


def label_candidates(config: Config, run: Run) -> Manifest:
    """Labels every candidate of the run; a rerun labels only the slices of candidates that are missing."""
    if done := fresh(config, run, "labels"):
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
    missing = units.filter(pa.array(~stored_units(target, units["unit_id"].combine_chunks())))
    rows = rows_of_units(units)
    work = Work(
        label="grade",
        pool="grade",
        worker=Labeller,
        kwargs={"run": run.path, "label": config.label},
        batch_units=1,
        rows=rows,
        rows_before=rows - rows_of_units(missing),
    )
    run_units(run, "labels", missing, work, config.resources)
    return finish(target, rows, time.monotonic() - start)


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
        candidates = []
        for unit in units.to_pylist():
            # The last part stays in memory, since its slices follow one another.
            if self.part is None or self.part[0] != unit["part"]:
                columns_read = ["candidate_id", "problem_id", "text"]
                self.part = (unit["part"], self.candidates.read_part(unit["part"], columns_read))
            candidates += self.part[1].slice(unit["first"], unit["rows"]).to_pylist()
        # Those of a large run would not fit into every actor as objects.
        names = pa.array({row["problem_id"] for row in candidates}, pa.string())
        asked = self.problems.filter(pc.is_in(self.problems["problem_id"], value_set=names)).to_pylist()
        problems = {row["problem_id"]: row for row in asked}
        rows = [row for row in candidates if row["problem_id"] in problems]
        golds = [problems[row["problem_id"]]["answer"] for row in rows]
        grades = self.grading(golds, [row["text"] for row in rows])
        self.label_steps.counts.clear()
        labels = [
            {
                "candidate_id": row["candidate_id"],
                "problem_id": row["problem_id"],
                "answer": grade.answer,
                "correct": grade.correct,
                "status": grade.status,
                **self.label_steps(problems[row["problem_id"]], row["text"], grade),
            }
            for row, grade in zip(rows, grades, strict=True)
        ]
        stats: Counter[str] = Counter(grade.status for grade in grades)
        stats.update(self.label_steps.counts)
        stats["stepless"] = sum(not row["steps"] for row in labels)
        stats["strict_correct"] = sum(self.grading.strict(golds, [row["text"] for row in rows]))
        stats[NO_PROBLEM] = len(candidates) - len(rows)
        return columns.table("labels", labels), dict(stats)


def functions(config: Config, stages: Set[str]) -> Iterator[NamedFunction]:
    """The grader, the splitter and what labels steps."""
    if "label" not in stages:
        return
    label = config.label
    yield NamedFunction("label.grader", label.grader, "a minos_ray.grading.graders.Grader", kind=Grader)
    yield NamedFunction("label.splitter", label.splitter, "(text) -> list of steps", (EXAMPLE,), is_right=is_texts)
    if label.steps:
        form = "(question, solution, steps) -> labels and error types"
        yield NamedFunction("label.steps", label.steps, form, ("1 + 1?", None, EXAMPLE.split("\n")))


def models(config: Config, stages: Set[str]) -> Iterator[tuple[str, Model]]:
    """The model that completes rollouts, where it is not the generator, with its key."""
    rollouts = config.label.rollouts if "label" in stages else None
    if rollouts and rollouts.completer:
        yield "label.rollouts.completer", rollouts.completer


def problems_of(config: Config, run: Run, todo: Todo) -> Iterator[str]:
    """One line for each thing wrong with the rollouts."""
    if "rollouts" not in todo.artefacts or config.label.rollouts is None:
        return
    from minos_ray.labels.rollouts import completer, settings

    model = config.label.rollouts.completer
    if model and model != config.generator:
        tokens, engine = config.sample.max_tokens, config.resources.sample
        yield from length_problems("sample.max_tokens", tokens, "sample", engine, model, run)
    yield from errors_of(settings, config)
    yield from errors_of(completer, config)


def steps_are_labelled(config: Config, run: Run) -> bool:
    """Whether some step has, or will have, a label; labels that were imported are looked at."""
    labels = run.artefact("labels")
    manifest = labels.manifest()
    if manifest is None or "import" not in manifest.inputs:
        return bool(config.label.steps or config.label.rollouts)
    parts = labels.parts(["step_labels"])
    return any(pc.any(pc.greater_equal(pc.list_flatten(rows["step_labels"]), 0)).as_py() for rows in parts)


def require_for_prms(config: Config, run: Run, key: str, names: Collection[str]) -> None:
    """UserError when there are PRMs among the verifiers (or kinds) of a key and no step labels to learn from."""
    prms = [name for name in names if name.startswith("prm")]
    if prms and not steps_are_labelled(config, run):
        orms = ", ".join(name.replace("prm", "orm") for name in prms)
        raise UserError(
            f"{key}: {', '.join(prms)} need step labels to learn from, and nothing labels steps: {SOURCES}, or train "
            f"ORMs alone ({key}=[{orms}])"
        )


def require_for_error_analysis(config: Config, run: Run) -> None:
    """UserError when wrong steps are to be sorted and none will be known."""
    count = config.error_analysis.count
    if count and not config.inserted.count and not steps_are_labelled(config, run):
        raise UserError(
            f"error_analysis.count = {count}: only steps that are labelled wrong are sorted, and nothing labels steps: "
            f"{SOURCES}; or set inserted.count, or error_analysis.count=0"
        )
