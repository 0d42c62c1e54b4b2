"""The stage `evaluate`: scores and labels in, evaluation.json out."""

import json
import os
import time
from typing import Any, NamedTuple

import pyarrow as pa

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.evaluation import error_types, outcomes
from minos_ray.evaluation.answers import Keys
from minos_ray.evaluation.blocks import Plan, blocks, planned
from minos_ray.evaluation.comparison import Selected, compare, selection_of
from minos_ray.evaluation.judged import Judged
from minos_ray.evaluation.methods import CRITIC
from minos_ray.evaluation.tally import CandidateTally, ErrorTally, cut_off
from minos_ray.graph.specs import APART, begin, fresh, specs
from minos_ray.observe.progress import Progress
from minos_ray.store.run import Manifest, Run

NAME = "evaluation.json"


def evaluate(config: Config, run: Run) -> Manifest:
    """Selection, intervals, meta-evaluation and error types of the test candidates, in blocks of problems."""
    if done := fresh(config, run, NAME):
        return done
    # What cannot be done is refused before an older evaluation is removed.
    plan = planned(run, "test")
    if not plan.groups:
        raise UserError("evaluate: no labelled candidate belongs to a problem of split 'test'")
    selected = selection_of(plan.sizes, config.evaluate)
    artefact = begin(config, run, NAME)
    run.delete(outcomes.NAME)
    start = time.monotonic()
    there, missing = scored(config, run)
    found = gather(run, plan, there, selected)
    content = {
        **compare(found.selected),
        "meta": found.judged.rows(),
        "calibration": found.judged.calibration(),
        "errors": by_split(run, found.errors),
        "counts": {**found.tally.counts(), "missing": missing, "dropped": dropped(config, run)},
    }
    outcomes.write(run, selected.outcomes(), selected.headline, pa.array(selected.problems, pa.string()))
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    totals = {name: found.tally.sums[name] for name in ("problems", "candidates")}
    totals["methods"] = len(content["methods"])
    return artefact.complete(totals, dict(found.tally.unscored), {"seconds": round(time.monotonic() - start, 2)})


class Gathered(NamedTuple):
    """What the blocks of test candidates added up to."""

    selected: Selected
    judged: Judged
    errors: ErrorTally
    tally: CandidateTally


def gather(run: Run, plan: Plan, verifiers: list[str], selected: Selected) -> Gathered:
    """Goes over the test candidates, block by block."""
    with (
        Keys(workers=os.cpu_count() or 1) as keys,
        Progress("evaluate", len(plan.sizes), "problems", run=run) as progress,
    ):
        found = Gathered(selected, Judged(), ErrorTally(), CandidateTally(cut_off(run), keys.counts))
        for block in blocks(run, plan, verifiers, keys):
            for part in found:
                part.add(block)
            progress.advance(block.candidates.problems)
    return found


def scored(config: Config, run: Run) -> tuple[list[str], list[str]]:
    """Verifiers with complete scores (the critic last), and the names of those that are not there."""
    names = [*config.reward.verifiers, CRITIC]
    there = [name for name in names if run.artefact(f"scores/{name}").manifest()]
    expected = names if config.score.judge else names[:-1]
    return there, [name for name in expected if name not in there]


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
    names = [s.artefact for s in specs(config) if s.stage not in {"evaluate", "report", *APART}]
    manifests = {name: run.artefact(name).manifest() for name in names}
    return {name: manifest.dropped for name, manifest in manifests.items() if manifest and manifest.dropped}
