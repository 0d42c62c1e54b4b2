"""The stage `evaluate`: scores and labels in, evaluation.json out."""

import json
import os
import time
from typing import Any

from minos_ray.config import Config
from minos_ray.errors import UserError
from minos_ray.evaluation import error_types
from minos_ray.evaluation.answers import Keys
from minos_ray.evaluation.blocks import Block, blocks, planned
from minos_ray.evaluation.candidates import Candidates, Scores
from minos_ray.evaluation.comparison import Selected, compare, ns_of
from minos_ray.evaluation.judged import Judged
from minos_ray.evaluation.methods import CRITIC
from minos_ray.evaluation.tally import CandidateTally, ErrorTally, cut_off
from minos_ray.progress import Progress
from minos_ray.stages import begin, specs
from minos_ray.store import Manifest, Run

NAME = "evaluation.json"


def evaluate(config: Config, run: Run) -> Manifest:
    """Selection, intervals, meta-evaluation and error types of the test candidates, in blocks of problems."""
    artefact = begin(config, run, NAME)
    if isinstance(artefact, Manifest):
        return artefact
    start = time.monotonic()
    plan = planned(run, "test")
    if not plan.groups:
        raise UserError("evaluate: no labelled candidate belongs to a problem of split 'test'")
    there, missing = scored(config, run)
    selected, judged = Selected(config.evaluate, ns_of(plan.sizes, config.evaluate)), Judged()
    tally, errors = CandidateTally(cut_off(run)), ErrorTally()
    limit, workers = config.label.timeout_s, os.cpu_count() or 1
    with Keys(limit, workers) as keys, Progress("evaluate", len(plan.sizes), "problems") as progress:
        for block in blocks(run, plan, there, keys):
            for part in (selected, judged, tally, errors):
                part.add(block)
            progress.advance(block.candidates.problems)
    content = {
        **compare(selected),
        "meta": judged.rows(),
        "calibration": judged.calibration(),
        "errors": by_split(run, errors),
        "counts": {
            **tally.counts(),
            "wrong_answers": dict(keys.counts),
            "missing": missing,
            "dropped": dropped(config, run),
        },
    }
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    totals = {name: tally.sums[name] for name in ("problems", "candidates")}
    totals["methods"] = len(content["methods"])
    return artefact.complete(totals, dict(tally.unscored), {"seconds": round(time.monotonic() - start, 2)})


def scored(config: Config, run: Run) -> tuple[list[str], list[str]]:
    """Verifiers with complete scores (the critic last), and the names of those that are not there."""
    names = [*config.reward.verifiers, CRITIC]
    there = [name for name in names if run.artefact(f"scores/{name}").manifest()]
    expected = names if config.score.judge else names[:-1]
    return there, [name for name in expected if name not in there]


def judged(candidates: Candidates, scores: dict[str, Scores]) -> list[dict[str, Any]]:
    """Meta-evaluation of every verifier on these candidates."""
    found = Judged()
    found.add(Block(candidates, scores))
    return found.rows()


def by_split(run: Run, test: ErrorTally) -> dict[str, Any]:
    """Error types by split, and which of them each verifier rejects."""
    train = ErrorTally()
    for block in blocks(run, planned(run, "train"), ()):
        train.add(block)
    splits = {"train": train, "test": test}
    return {
        "by_split": {name: part.by_type() for name, part in splits.items()},
        "wrong": {name: part.wrong for name, part in splits.items()},
        "rejected": test.shares(),
        **sorted_by_critic(run),
    }


def sorted_by_critic(run: Run) -> dict[str, Any]:
    """What the critic said of the types of wrong steps, where it was asked."""
    if run.artefact("error_types").manifest() is None:
        return {}
    rows = run.artefact("error_types").read(["source", "known", "type", "status"]).to_pylist()
    return {"critic": error_types.by_critic(rows)}


def dropped(config: Config, run: Run) -> dict[str, dict[str, int]]:
    """What every earlier stage dropped, and why."""
    names = [s.artefact for s in specs(config) if s.stage not in {"evaluate", "report", "sweep"}]
    manifests = {name: run.artefact(name).manifest() for name in names}
    return {name: manifest.dropped for name, manifest in manifests.items() if manifest and manifest.dropped}
