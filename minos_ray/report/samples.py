"""A seeded sample of candidates to look at: right and wrong, scored high and low, and some with critiques.

Where a run has very many test problems, only some of them, a seeded choice, are looked at.
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.problems.split import read_problems
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


def only(run: Run, name: str, column: str, values: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of an artefact whose `column` is among the values; none where it is not there."""
    return run.artefact(name).read_where(column, values).to_pylist() if complete(run, name) else []


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
