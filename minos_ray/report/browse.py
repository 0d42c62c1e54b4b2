"""What the candidate browser shows: some test problems with all their candidates, read without loading the rest."""

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.answers import Keys, clusters
from minos_ray.problems.split import read_problems
from minos_ray.report.canvas import HEAT, TINT
from minos_ray.report.chunks import Content, Critique, columns, finite, pack
from minos_ray.report.samples import PREFERRED, complete, is_scored
from minos_ray.store.run import Run

LABELS = ["candidate_id", "problem_id", "answer", "correct", "status"]
STEPS = ["steps", "step_labels", "error_types"]
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Browser:
    """`index` is JSON with what is known before a problem is opened; `chunks` are the candidates of each, packed."""

    index: str
    chunks: list[str]
    total: int


@dataclass(frozen=True)
class Source:
    """The rows of the chosen problems: labels and each verifier's scores by problem, critiques by candidate.

    `keys` are those of wrong answers (see `Keys`); `steps_by` the verifiers that score steps.
    """

    labels: dict[str, pa.Table]
    scores: dict[str, dict[str, pa.Table]]
    critiques: Rows
    steps_by: list[str]
    keys: dict[str, str]


def browser(run: Run, count: int, seed: int, verifiers: Sequence[str]) -> Browser | None:
    """At most `count` labelled test problems, a seeded choice; None where there are none or none are wanted."""
    if not count or not complete(run, "problems") or not complete(run, "labels"):
        return None
    problems = labelled(run)
    if not problems:
        return None
    chosen = sorted(random.Random(seed).sample(range(len(problems)), min(count, len(problems))))
    shown = [problems[place] for place in chosen]
    source = read(run, [p["problem_id"] for p in shown], verifiers)
    chunks, entries = [], []
    for problem in shown:
        candidates = candidates_of(problem["problem_id"], source)
        chunks.append(pack(columns(candidates)))
        entries.append(entry(problem, candidates))
    return Browser(index(entries, source), chunks, len(problems))


def labelled(run: Run) -> list[dict[str, Any]]:
    """Test problems (id, question, answer) that have a labelled candidate."""
    labels = run.artefact("labels")
    there = {i for part in labels.part_names() for i in labels.read_part(part, ["problem_id"])["problem_id"].unique()}
    rows = read_problems(run, "test", ["problem_id", "question", "answer"])
    return [row for row, known in zip(rows.to_pylist(), rows["problem_id"], strict=True) if known in there]


def read(run: Run, problems: Sequence[str], verifiers: Sequence[str]) -> Source:
    """Labels, scores and critiques of these problems only."""
    labels = run.artefact("labels").read_where("problem_id", problems, LABELS + STEPS)
    names = [name for name in dict.fromkeys([*verifiers, "critic"]) if complete(run, f"scores/{name}")]
    wanted = ["candidate_id", "problem_id", "score", "step_scores"]
    scores = {name: run.artefact(f"scores/{name}").read_where("problem_id", problems, wanted) for name in names}
    steps_by = [name for name, table in scores.items() if has_values(table["step_scores"])]
    grouped = {name: by_problem(table) for name, table in scores.items()}
    written = critiques(run, labels["candidate_id"].to_pylist())
    return Source(by_problem(labels), grouped, written, steps_by, keyed(labels))


def keyed(labels: pa.Table) -> dict[str, str]:
    """The keys of all wrong answers, in one call that keeps every process busy."""
    wrong = labels.filter(pc.invert(labels["correct"]))["answer"].drop_null().unique()
    with Keys(workers=os.cpu_count() or 1) as keys:
        return keys(wrong.to_pylist())


def by_problem(rows: pa.Table) -> dict[str, pa.Table]:
    """The rows of each problem."""
    if not rows.num_rows:
        return {}
    ordered = rows.sort_by("problem_id").combine_chunks()
    runs = pc.run_end_encode(ordered["problem_id"].combine_chunks())
    ends = runs.run_ends.to_pylist()
    return {
        name: ordered.slice(a, b - a) for name, a, b in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False)
    }


def has_values(column: pa.ChunkedArray) -> bool:
    """Whether a column of lists holds any value."""
    return bool(pc.sum(pc.list_value_length(column)).as_py())


def critiques(run: Run, candidates: Iterable[str]) -> Rows:
    """Critiques by candidate."""
    if not complete(run, "critiques"):
        return {}
    wanted = ["candidate_id", "critic", "agrees", "status", "text"]
    found: Rows = defaultdict(list)
    for row in run.artefact("critiques").read_where("candidate_id", candidates, wanted).to_pylist():
        found[row["candidate_id"]].append(row)
    return found


def candidates_of(problem: str, source: Source) -> list[tuple[int | str, Content]]:
    """The candidates of one problem by index, with answers as clusters."""
    rows = source.labels[problem].to_pylist()
    there = {name: tables[problem].to_pylist() for name, tables in source.scores.items() if problem in tables}
    scores = {name: {row["candidate_id"]: row for row in there.get(name, [])} for name in source.scores}
    numbers = clusters([row["answer"] for row in rows], [row["correct"] for row in rows], source.keys)
    made = []
    for row, cluster in zip(rows, numbers, strict=True):
        scored = {name: found.get(row["candidate_id"]) for name, found in scores.items()}
        index = row["candidate_id"].removeprefix(f"{problem}/")
        made.append((int(index) if index.isdigit() else index, content(row, cluster, scored, source)))
    return sorted(made, key=lambda pair: (isinstance(pair[0], str), pair[0]))


def content(row: dict[str, Any], cluster: int, scored: dict[str, dict[str, Any] | None], source: Source) -> Content:
    """One candidate from its labels row and its scores rows."""
    by_step = {name: found["step_scores"] if found else None for name, found in scored.items()}
    kinds = tuple(kind or "" for kind in row["error_types"] or [])
    return Content(
        answer=row["answer"],
        cluster=cluster,
        correct=row["correct"],
        status=row["status"],
        steps=tuple(row["steps"] or []),
        labels=tuple(row["step_labels"] or []),
        errors=kinds if any(kinds) else (),
        scores=tuple(found["score"] if found and is_scored(found) else None for found in scored.values()),
        step_scores=tuple(thousandths(by_step[name] or []) for name in source.steps_by),
        critiques=tuple(
            Critique(c["critic"], c["agrees"], c["status"], c["text"])
            for c in source.critiques.get(row["candidate_id"], [])
        ),
    )


def thousandths(scores: Sequence[float]) -> tuple[int | None, ...]:
    """Step scores as whole numbers, None for what is no number."""
    return tuple(None if finite(score) is None else round(1000 * score) for score in scores)


def entry(problem: dict[str, Any], candidates: Sequence[tuple[int | str, Content]]) -> dict[str, Any]:
    """What the list of problems says of one."""
    right = sum(content.correct for _, content in candidates)
    facts = {"id": problem["problem_id"], "question": problem["question"], "gold": problem["answer"]}
    return {**facts, "right": right, "candidates": len(candidates)}


def index(entries: Sequence[dict[str, Any]], source: Source) -> str:
    """JSON that may stand inside a script element."""
    names = list(source.scores)
    found = {
        "verifiers": names,
        "steps_by": source.steps_by,
        "sort": next((name for name in PREFERRED if name in names), "index"),
        "heat": HEAT,
        "tint": TINT,
        "problems": entries,
    }
    return json.dumps(found, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
