"""What the candidate browser shows: some test problems with all their candidates, read without loading the others.

The candidates of a problem are packed for the page: columns, every text once, identical candidates once, gzip.
"""

import base64
import gzip
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.answers import Keys, clusters
from minos_ray.problems.split import read_problems
from minos_ray.report.canvas import HEAT, TINT
from minos_ray.report.samples import PREFERRED, complete, finite, is_scored
from minos_ray.store.run import Run

MARKS = {1: "+", 0: "-", -1: "."}  # labels of steps
LABELS = ["candidate_id", "problem_id", "answer", "correct", "status"]
STEPS = ["steps", "step_labels", "error_types"]
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Critique:
    """What a critic wrote about a candidate."""

    critic: str
    agrees: bool
    status: str
    text: str


@dataclass(frozen=True)
class Content:
    """All of a candidate but its index. `scores` by verifier, `step_scores` (thousandths) by each that scores steps.

    None stands for a score that is no number.
    """

    answer: str | None
    cluster: int
    correct: bool
    status: str
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    errors: tuple[str, ...]
    scores: tuple[float | None, ...]
    step_scores: tuple[tuple[int | None, ...], ...]
    critiques: tuple[Critique, ...] = ()


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
    labels = run.artefact("labels")
    ids = {i for part in labels.part_names() for i in labels.read_part(part, ["problem_id"])["problem_id"].unique()}
    rows = read_problems(run, "test", ["problem_id", "question", "answer"])
    problems = [row for row, name in zip(rows.to_pylist(), rows["problem_id"], strict=True) if name in ids]
    if not problems:
        return None
    chosen = sorted(random.Random(seed).sample(range(len(problems)), min(count, len(problems))))
    problems_in_page = [problems[place] for place in chosen]
    source = read(run, [p["problem_id"] for p in problems_in_page], verifiers)
    chunks, entries = [], []
    for problem in problems_in_page:
        candidates = candidates_of(problem["problem_id"], source)
        chunks.append(pack(columns(candidates)))
        facts = {"id": problem["problem_id"], "question": problem["question"], "gold": problem["answer"]}
        right = sum(content.correct for _, content in candidates)
        entries.append({**facts, "right": right, "candidates": len(candidates)})
    return Browser(index(entries, source), chunks, len(problems))


def read(run: Run, problems: Sequence[str], verifiers: Sequence[str]) -> Source:
    """Labels, scores and critiques of these problems only."""
    labels = run.artefact("labels").read_where("problem_id", problems, LABELS + STEPS)
    names = [name for name in dict.fromkeys([*verifiers, "critic"]) if complete(run, f"scores/{name}")]
    fields = ["candidate_id", "problem_id", "score", "step_scores"]
    scores = {name: run.artefact(f"scores/{name}").read_where("problem_id", problems, fields) for name in names}
    steps_by = [name for name, table in scores.items() if pc.sum(pc.list_value_length(table["step_scores"])).as_py()]
    grouped = {name: by_problem(table) for name, table in scores.items()}
    written = critiques(run, labels["candidate_id"].to_pylist())
    wrong = labels.filter(pc.invert(labels["correct"]))["answer"].drop_null().unique()
    with Keys(workers=os.cpu_count() or 1) as keys:  # one call for all problems keeps every process busy
        return Source(by_problem(labels), grouped, written, steps_by, keys(wrong.to_pylist()))


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


def critiques(run: Run, candidates: Iterable[str]) -> Rows:
    """Critiques by candidate."""
    if not complete(run, "critiques"):
        return {}
    fields = ["candidate_id", "critic", "agrees", "status", "text"]
    by_candidate: Rows = defaultdict(list)
    for row in run.artefact("critiques").read_where("candidate_id", candidates, fields).to_pylist():
        by_candidate[row["candidate_id"]].append(row)
    return by_candidate


def candidates_of(problem: str, source: Source) -> list[tuple[int | str, Content]]:
    """The candidates of one problem by index, with answers as clusters."""
    rows = source.labels[problem].to_pylist()
    tables = {name: tables[problem].to_pylist() for name, tables in source.scores.items() if problem in tables}
    scores = {name: {row["candidate_id"]: row for row in tables.get(name, [])} for name in source.scores}
    numbers = clusters([row["answer"] for row in rows], [row["correct"] for row in rows], source.keys)
    candidates = []
    for row, cluster in zip(rows, numbers, strict=True):
        scored = {name: by_candidate.get(row["candidate_id"]) for name, by_candidate in scores.items()}
        index = row["candidate_id"].removeprefix(f"{problem}/")
        candidates.append((int(index) if index.isdigit() else index, content(row, cluster, scored, source)))
    return sorted(candidates, key=lambda pair: (isinstance(pair[0], str), pair[0]))


def content(row: dict[str, Any], cluster: int, scored: dict[str, dict[str, Any] | None], source: Source) -> Content:
    """One candidate from its labels row and its scores rows."""
    by_step = {name: scores["step_scores"] if scores else None for name, scores in scored.items()}
    kinds = tuple(kind or "" for kind in row["error_types"] or [])
    return Content(
        answer=row["answer"],
        cluster=cluster,
        correct=row["correct"],
        status=row["status"],
        steps=tuple(row["steps"] or []),
        labels=tuple(row["step_labels"] or []),
        errors=kinds if any(kinds) else (),
        scores=tuple(scores["score"] if scores and is_scored(scores) else None for scores in scored.values()),
        step_scores=tuple(
            tuple(None if finite(score) is None else round(1000 * score) for score in by_step[name] or [])
            for name in source.steps_by
        ),
        critiques=tuple(
            Critique(c["critic"], c["agrees"], c["status"], c["text"])
            for c in source.critiques.get(row["candidate_id"], [])
        ),
    )


def index(entries: Sequence[dict[str, Any]], source: Source) -> str:
    """JSON that may stand inside a script element."""
    names = list(source.scores)
    facts = {
        "verifiers": names,
        "steps_by": source.steps_by,
        "sort": next((name for name in PREFERRED if name in names), "index"),
        "heat": HEAT,
        "tint": TINT,
        "problems": entries,
    }
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


class Texts:
    """A table of strings: equal ones have one place."""

    def __init__(self) -> None:
        self.places: dict[str, int] = {}

    def at(self, text: str | None) -> int:
        """The place of a text, -1 for none."""
        return -1 if text is None else self.places.setdefault(text, len(self.places))


def columns(candidates: Iterable[tuple[int | str, Content]]) -> dict[str, Any]:
    """Columns over the distinct contents; `indices` names the candidates that have each."""
    indices: dict[Content, list[int | str]] = defaultdict(list)
    for index, content in candidates:
        indices[content].append(index)
    texts, contents = Texts(), list(indices)
    # The shortest numbers that are the same float32, so that sorting on the page is exact; None for no number.
    scores = (
        [None if finite(score) is None else float(str(np.float32(score))) for score in column]
        for column in zip(*(c.scores for c in contents), strict=True)
    )
    packed = {
        "indices": list(indices.values()),
        "answers": [texts.at(c.answer) for c in contents],
        "clusters": [c.cluster for c in contents],
        "correct": [int(c.correct) for c in contents],
        "statuses": [texts.at(c.status) for c in contents],
        "steps": [[texts.at(step) for step in c.steps] for c in contents],
        "labels": ["".join(MARKS[label] for label in c.labels) for c in contents],
        "errors": [[texts.at(kind) for kind in c.errors] for c in contents],
        "scores": list(scores),
        "step_scores": [list(column) for column in zip(*(c.step_scores for c in contents), strict=True)],
        "critiques": {
            str(row): [[texts.at(k.critic), int(k.agrees), texts.at(k.status), texts.at(k.text)] for k in c.critiques]
            for row, c in enumerate(contents)
            if c.critiques
        },
    }
    return {"texts": list(texts.places), **packed}


def pack(packed: dict[str, Any]) -> str:
    """Base64 of gzip of JSON; the same columns always give the same text."""
    text = json.dumps(packed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
