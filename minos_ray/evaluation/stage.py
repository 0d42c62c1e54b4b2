"""The stage `evaluate`: scores and labels in, evaluation.json out."""

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc

from minos_ray.config import Config
from minos_ray.errors import UserError
from minos_ray.evaluation import error_types, meta
from minos_ray.evaluation import outcomes as by_problem
from minos_ray.evaluation.candidates import Candidates, Scores, read_candidates, read_scores
from minos_ray.evaluation.comparison import CRITIC, compare, outcomes
from minos_ray.stages import begin, specs
from minos_ray.store import Manifest, Run

NAME = "evaluation.json"


def evaluate(config: Config, run: Run) -> Manifest:
    """Selection, intervals, meta-evaluation and error types of the test candidates."""
    artefact = begin(config, run, NAME)
    if isinstance(artefact, Manifest):
        return artefact
    start = time.monotonic()
    candidates = read_candidates(run)
    if not candidates.problems:
        raise UserError("evaluate: no labelled candidate belongs to a problem of split 'test'")
    scores, missing = all_scores(config, run, candidates)
    found = outcomes(candidates, {name: each.score for name, each in scores.items()}, config.evaluate)
    by_problem.write(run, found, candidates.rows["problem_id"].take(candidates.starts[:-1]).combine_chunks())
    content = {
        **compare(found, config.evaluate),
        "meta": judged(candidates, scores),
        "errors": errors(run, candidates, scores),
        "counts": {**counts(run, candidates, scores), "missing": missing, "dropped": dropped(config, run)},
    }
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    totals = {
        "problems": candidates.problems,
        "candidates": len(candidates.correct),
        "methods": len(content["methods"]),
    }
    return artefact.complete(totals, unscored(scores), {"seconds": round(time.monotonic() - start, 2)})


def all_scores(config: Config, run: Run, candidates: Candidates) -> tuple[dict[str, Scores], list[str]]:
    """Scores by verifier (the critic last), and the names of those that are not there."""
    names = [*config.reward.verifiers, CRITIC]
    found = {name: read_scores(run, f"scores/{name}", candidates) for name in names}
    expected = names if config.score.judge else names[:-1]
    return {name: s for name, s in found.items() if s}, [name for name in expected if found[name] is None]


def judged(candidates: Candidates, scores: Mapping[str, Scores]) -> list[dict[str, Any]]:
    """Meta-evaluation of every verifier; candidates whose grading ended in a timeout have no known outcome."""
    sure = pc.not_equal(candidates.rows["status"], "timeout").to_numpy()
    labels = candidates.rows["step_labels"]
    found = [meta.outcome(name, s.score[sure], candidates.correct[sure]) for name, s in scores.items()]
    by_step = [meta.steps(name, s.step_scores, labels) for name, s in scores.items()]
    return found + [row for row in by_step if row]


def errors(run: Run, candidates: Candidates, scores: dict[str, Scores]) -> dict[str, Any]:
    """Error types by split, and which of them each verifier rejects."""
    splits = {"train": read_candidates(run, "train"), "test": candidates}
    found = {name: error_types.errors(part.rows["error_types"]) for name, part in splits.items()}
    values = {name: s.score for name, s in scores.items()}
    return {
        "by_split": {name: error_types.counts(part) for name, part in found.items()},
        "wrong": {name: int((~part.correct).sum()) for name, part in splits.items()},
        "rejected": error_types.rejected(values, candidates.correct, found["test"]),
        **sorted_by_critic(run),
    }


def sorted_by_critic(run: Run) -> dict[str, Any]:
    """What the critic said of the types of wrong steps, where it was asked."""
    if run.artefact("error_types").manifest() is None:
        return {}
    rows = run.artefact("error_types").read(["source", "known", "type", "status"]).to_pylist()
    return {"critic": error_types.by_critic(rows)}


def counts(run: Run, candidates: Candidates, scores: dict[str, Scores]) -> dict[str, Any]:
    """What was evaluated, and what was odd about it."""
    statuses = pc.value_counts(candidates.rows["status"]).to_pylist()
    sizes, problems = np.unique(np.diff(candidates.starts), return_counts=True)
    return {
        "problems": candidates.problems,
        "candidates": len(candidates.correct),
        "status": {entry["values"]: entry["counts"] for entry in statuses},
        "no_answer": int((candidates.clusters < 0).sum()),
        "truncated": truncated(run, candidates),
        "problems_by_candidates": {str(size): int(n) for size, n in zip(sizes, problems, strict=True)},
        "without_right_candidate": int(
            (np.add.reduceat(candidates.correct.astype(int), candidates.starts[:-1]) == 0).sum()
        ),
        "unscored": unscored(scores),
    }


def truncated(run: Run, candidates: Candidates) -> int | None:
    """Candidates that were cut off at the token limit; None when the texts are not here."""
    if run.artefact("candidates").manifest() is None:
        return None
    table = run.artefact("candidates").read(["candidate_id", "finish_reason"])
    cut = table.filter(pc.equal(table["finish_reason"], "length"))["candidate_id"]
    return int(pc.sum(pc.is_in(candidates.rows["candidate_id"], value_set=cut.combine_chunks())).as_py() or 0)


def unscored(scores: dict[str, Scores]) -> dict[str, int]:
    """Candidates without a score, which count as scored 0."""
    return {f"unscored by {name}": s.unscored for name, s in scores.items() if s.unscored}


def dropped(config: Config, run: Run) -> dict[str, dict[str, int]]:
    """What every earlier stage dropped, and why."""
    names = [s.artefact for s in specs(config) if s.stage not in {"evaluate", "report", "sweep"}]
    manifests = {name: run.artefact(name).manifest() for name in names}
    return {name: manifest.dropped for name, manifest in manifests.items() if manifest and manifest.dropped}
