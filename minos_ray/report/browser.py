"""The candidates on the page: a gallery of some, and a browser of all that belong to some test problems.

The gallery is a seeded sample: right and wrong, scored high and low, and some with critiques. Where a run has very many
test problems, only some of them, a seeded choice, are looked at.

The browser reads its problems without loading the others. The candidates of a problem are packed for the page: columns,
every text once, identical candidates once, gzip.
"""

import base64
import gzip
import json
import math
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.evaluation.candidates import Keys, clusters
from minos_ray.problems.split import read_problems
from minos_ray.report.figures import HEAT, TINT
from minos_ray.store.run import Run

PREFERRED = ("prm-minos", "prm-base", "orm-minos", "orm-base")
GROUPS = {
    "right-high": "Right, and scored high",
    "right-low": "Right, yet scored low",
    "wrong-high": "Wrong, yet scored high",
    "wrong-low": "Wrong, and scored low",
    "any": "Test candidates",
    "critique": "Training candidates with their critiques",
}
MOST = 2_000  # test problems that are looked at
TAIL = 0.3  # the share of right (or wrong) candidates that counts as scored high (or low)
MARKS = {1: "+", 0: "-", -1: "."}  # labels of steps
LABELS = ["candidate_id", "problem_id", "answer", "correct", "status"]
STEPS = ["steps", "step_labels", "error_types"]
Rows = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Step:
    """One step: label 1, 0 or -1 (none); `score` by the PRM where there is one."""

    text: str
    label: int
    error: str
    score: float | None


@dataclass
class Sample:
    """One candidate with everything known about it."""

    candidate_id: str
    group: str
    question: str = ""
    gold: str = ""
    answer: str | None = None
    correct: bool = False
    status: str = ""
    steps: list[Step] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    critiques: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    """The sample; `judge` is the verifier that says high or low, `steps_by` the PRM that colours steps."""

    samples: list[Sample]
    judge: str
    steps_by: str

    def groups(self) -> list[tuple[str, list[Sample]]]:
        """Titles and samples of the groups that are not empty."""
        groups = [(title, [s for s in self.samples if s.group == name]) for name, title in GROUPS.items()]
        return [(title, samples) for title, samples in groups if samples]


def looked_at(run: Run, seed: int, most: int = MOST) -> list[str] | None:
    """Ids of `most` test problems; None for all of them, when there are no more (or no artefact `problems`)."""
    if run.artefact("problems").manifest() is None:
        return None
    names = read_problems(run, "test", ["problem_id"])["problem_id"]
    if len(names) <= most:
        return None
    return [names[place].as_py() for place in random.Random(seed).sample(range(len(names)), most)]


def gallery(run: Run, count: int, seed: int, problems: Sequence[str] | None = None) -> Gallery:
    """About `count` candidates (of `problems`; None: of any), a quarter of them with critiques where there are any."""
    scored = [name for name in (*PREFERRED, "critic") if complete(run, f"scores/{name}")]
    judge = next((name for name in scored if name in PREFERRED), "")
    if not count or not complete(run, "labels"):
        return Gallery([], judge, "")
    rng = random.Random(seed)
    criticised = pick_criticised(run, count // 4, rng)
    chosen = {**pick_test(run, judge, count - len(criticised), rng, problems), **dict.fromkeys(criticised, "critique")}
    samples = [Sample(identity, group) for identity, group in chosen.items()]
    steps_by = next((name for name in scored if name.startswith("prm")), "")
    fill(run, {s.candidate_id: s for s in samples}, scored, steps_by)
    return Gallery(samples, judge, steps_by)


def complete(run: Run, name: str) -> bool:
    """Whether an artefact is there and complete."""
    return run.artefact(name).manifest() is not None


def pick_criticised(run: Run, count: int, rng: random.Random) -> list[str]:
    """Candidates with critiques; up to a quarter of them set aside for disagreeing with the labels."""
    if not complete(run, "critiques"):
        return []
    rows = run.artefact("critiques").read(["candidate_id", "agrees"])
    if not rows.num_rows:
        return []
    agreed = rows.filter(rows["agrees"])["candidate_id"].to_pylist()
    aside = rows.filter(pc.invert(rows["agrees"]))["candidate_id"].to_pylist()
    few = take(aside, count // 4, rng)
    return take(agreed, count - len(few), rng) + few


def pick_test(run: Run, judge: str, count: int, rng: random.Random, problems: Sequence[str] | None) -> dict[str, str]:
    """Candidates and their groups: equally many right and wrong, scored high and low by `judge`."""
    labels = run.artefact("labels").read_where("problem_id", problems, ["candidate_id", "problem_id", "correct"])
    correct = dict(zip(*(labels[c].to_pylist() for c in ("candidate_id", "correct")), strict=True))
    if not judge:
        test = pa.array([], pa.string())
        if complete(run, "problems"):
            test = read_problems(run, "test", ["problem_id"])["problem_id"].combine_chunks()
        of_test = labels.filter(pc.is_in(labels["problem_id"], value_set=test))["candidate_id"]
        return dict.fromkeys(take(sorted(of_test.to_pylist()), count, rng), "any")
    rows = run.artefact(f"scores/{judge}").read_where("problem_id", problems, ["candidate_id", "score", "step_scores"])
    unscored = pc.and_(pc.equal(rows["score"], 0), pc.equal(pc.list_value_length(rows["step_scores"]), 0))
    rows = rows.filter(pc.invert(unscored)).sort_by("score")
    ordered = [identity for identity in rows["candidate_id"].to_pylist() if identity in correct]
    chosen: dict[str, str] = {}
    for place, (right, end) in enumerate(product((True, False), ("high", "low"))):
        side = [identity for identity in ordered if correct[identity] == right]
        tail = max(1, int(TAIL * len(side)))
        pool = side[-tail:] if end == "high" else side[:tail]
        name = f"{'right' if right else 'wrong'}-{end}"
        quota = count // 4 + (place < count % 4)
        chosen |= dict.fromkeys(take([i for i in pool if i not in chosen], quota, rng), name)
    return chosen


def take(identities: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """At most `count` of them, of different problems as long as possible."""
    shuffled = rng.sample(identities, len(identities))
    seen: set[str] = set()
    first, later = [], []
    for identity in shuffled:
        problem = identity.rpartition("/")[0]
        (later if problem in seen else first).append(identity)
        seen.add(problem)
    return (first + later)[:count]


def only(
    run: Run, name: str, column: str, values: Iterable[str], fields: list[str] | None = None
) -> list[dict[str, Any]]:
    """The rows of an artefact whose `column` is among the values; none where it is not there."""
    return run.artefact(name).read_where(column, values, fields).to_pylist() if complete(run, name) else []


def is_scored(row: dict[str, Any]) -> bool:
    """Whether a row of scores holds one: score 0 without step scores stands for none."""
    return bool(row["score"] or row["step_scores"])


def fill(run: Run, samples: dict[str, Sample], scored: Sequence[str], steps_by: str) -> None:
    """Reads question, labels, scores and critiques of the samples."""
    step_scores: dict[str, list[float | None]] = {}
    for name in scored:
        for row in only(run, f"scores/{name}", "candidate_id", samples):
            if finite(row["score"]) is not None and is_scored(row):
                samples[row["candidate_id"]].scores[name] = row["score"]
            if name == steps_by:
                step_scores[row["candidate_id"]] = [finite(score) for score in row["step_scores"] or []]
    problems: dict[str, list[Sample]] = {}
    for row in only(run, "labels", "candidate_id", samples):
        sample = samples[row["candidate_id"]]
        sample.answer, sample.correct, sample.status = row["answer"], row["correct"], row["status"]
        sample.steps = steps(row, step_scores.get(row["candidate_id"], []))
        problems.setdefault(row["problem_id"], []).append(sample)
    for row in only(run, "problems", "problem_id", problems):
        for sample in problems[row["problem_id"]]:
            sample.question, sample.gold = row["question"], row["answer"]
    for row in only(run, "critiques", "candidate_id", samples):
        samples[row["candidate_id"]].critiques.append(row)


def finite(score: float | None) -> float | None:
    """The score, None where it is no number."""
    return score if score is not None and math.isfinite(score) else None


def steps(row: dict[str, Any], scores: Sequence[float | None]) -> list[Step]:
    """The steps of a labels row; lists shorter than the steps are filled up with nothing."""
    texts = row["steps"] or []
    labels = [*(row["step_labels"] or []), *[-1] * len(texts)]
    errors = [*(row["error_types"] or []), *[""] * len(texts)]
    padded = [*scores, *[None] * len(texts)]
    return [Step(*parts) for parts in zip(texts, labels, errors, padded, strict=False)]


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
    names = list(source.scores)
    facts = {
        "verifiers": names,
        "steps_by": source.steps_by,
        "sort": next((name for name in PREFERRED if name in names), "index"),
        "heat": HEAT,
        "tint": TINT,
        "problems": entries,
    }
    # It may stand inside a script element.
    index = json.dumps(facts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Browser(index, chunks, len(problems))


def read(run: Run, problems: Sequence[str], verifiers: Sequence[str]) -> Source:
    """Labels, scores and critiques of these problems only."""
    labels = run.artefact("labels").read_where("problem_id", problems, LABELS + STEPS)
    names = [name for name in dict.fromkeys([*verifiers, "critic"]) if complete(run, f"scores/{name}")]
    fields = ["candidate_id", "problem_id", "score", "step_scores"]
    scores = {name: run.artefact(f"scores/{name}").read_where("problem_id", problems, fields) for name in names}
    steps_by = [name for name, table in scores.items() if pc.sum(pc.list_value_length(table["step_scores"])).as_py()]
    grouped = {name: by_problem(table) for name, table in scores.items()}
    critiques: Rows = defaultdict(list)
    fields = ["candidate_id", "critic", "agrees", "status", "text"]
    for row in only(run, "critiques", "candidate_id", labels["candidate_id"].to_pylist(), fields):
        critiques[row["candidate_id"]].append(row)
    wrong = labels.filter(pc.invert(labels["correct"]))["answer"].drop_null().unique()
    with Keys(workers=os.cpu_count() or 1) as keys:  # one call for all problems keeps every process busy
        return Source(by_problem(labels), grouped, critiques, steps_by, keys(wrong.to_pylist()))


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


def columns(candidates: Iterable[tuple[int | str, Content]]) -> dict[str, Any]:
    """Columns over the distinct contents; `indices` names the candidates that have each."""
    indices: dict[Content, list[int | str]] = defaultdict(list)
    for index, content in candidates:
        indices[content].append(index)
    contents, places = list(indices), dict[str, int]()

    def at(text: str | None) -> int:
        """The place of a text among all, of which equal ones have one; -1 for none."""
        return -1 if text is None else places.setdefault(text, len(places))

    # The shortest numbers that are the same float32, so that sorting on the page is exact; None for no number.
    scores = (
        [None if finite(score) is None else float(str(np.float32(score))) for score in column]
        for column in zip(*(c.scores for c in contents), strict=True)
    )
    packed = {
        "indices": list(indices.values()),
        "answers": [at(c.answer) for c in contents],
        "clusters": [c.cluster for c in contents],
        "correct": [int(c.correct) for c in contents],
        "statuses": [at(c.status) for c in contents],
        "steps": [[at(step) for step in c.steps] for c in contents],
        "labels": ["".join(MARKS[label] for label in c.labels) for c in contents],
        "errors": [[at(kind) for kind in c.errors] for c in contents],
        "scores": list(scores),
        "step_scores": [list(column) for column in zip(*(c.step_scores for c in contents), strict=True)],
        "critiques": {
            str(row): [[at(k.critic), int(k.agrees), at(k.status), at(k.text)] for k in c.critiques]
            for row, c in enumerate(contents)
            if c.critiques
        },
    }
    return {"texts": list(places), **packed}


def pack(packed: dict[str, Any]) -> str:
    """Base64 of gzip of JSON; the same columns always give the same text."""
    text = json.dumps(packed, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
