"""The stage `evaluate`: scores and labels in, evaluation.json out."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.config.schema import Aggregation
from minos_ray.errors import UserError
from minos_ray.evaluation import verdicts, ways
from minos_ray.evaluation.blocks import add_blocks, block_workers, columns_of, plan_blocks
from minos_ray.evaluation.candidates import KINDS, SAMPLING_COLUMNS, Block
from minos_ray.evaluation.choices import Choices
from minos_ray.evaluation.comparison import (
    OUTCOMES_FILE,
    Selected,
    by_category,
    compare,
    write_outcomes,
)
from minos_ray.evaluation.selection import CRITIC, JUDGES, SOFT, Precision
from minos_ray.evaluation.statistics import Measured, fill_intervals
from minos_ray.evaluation.verdicts import ErrorTally, by_critic
from minos_ray.evaluation.ways import compute, prices, searched
from minos_ray.graph.specs import APART, begin, fresh, is_made_from, specs
from minos_ray.observe.progress import Progress
from minos_ray.observe.trackers import Tracking
from minos_ray.problems.split import NOT_DRAWN
from minos_ray.store.run import Manifest, Run
from minos_ray.training.results import Platt, platt_of

NAME = "evaluation.json"
# Candidates of the verifiers that are judged at a time: each takes 54 bytes at the peak.
JUDGED_AT_ONCE = 20_000_000


def evaluate(config: Config, run: Run) -> Manifest:
    """Selection, intervals, meta-evaluation and error types of the test candidates; writes evaluation.json.

    UserError when no test problem has a labelled candidate, or when `evaluate.ns` and `evaluate.groups` ask for more
    candidates than any problem has.
    """
    if done := fresh(config, run, NAME):
        return done
    # User errors are raised before `begin` removes an older evaluation.
    plan = plan_blocks(run, "test")
    if not plan.groups:
        raise UserError("evaluate: no labelled candidate belongs to a problem of split 'test'")
    selected = Selected.for_sizes(plan.sizes, config.evaluate)
    artefact = begin(config, run, NAME)
    run.delete(OUTCOMES_FILE)
    start = time.monotonic()
    judges = [CRITIC, *([SOFT] if config.score.judge and config.score.judge.soft else [])]
    names = [*config.reward.verifiers, *judges]
    verifiers = [name for name in names if run.artefact(f"scores/{name}").manifest()]
    missing = [name for name in (names if config.score.judge else config.reward.verifiers) if name not in verifiers]
    train, train_plan = ErrorTally(), plan_blocks(run, "train")
    with (
        block_workers(len(plan.groups), config.resources) as workers,
        Progress("evaluate", len(plan.sizes), "problems", run=run) as progress,
    ):
        # A model that was trained again since has another line than the one in these scores.
        of_now = [name for name in verifiers if is_made_from(run, f"scores/{name}", f"models/{name}")]
        judged, errors = Judged(platts_of(run, of_now), config.score.aggregation), ErrorTally()
        tally, precision = CandidateTally(), Precision(selected.ns, selected.headline)
        choices = Choices.for_sizes(plan.sizes, config.evaluate, selected.ns, selected.headline, verifiers)
        parts = (selected, judged, errors, tally, precision, choices)
        tables = columns_of(verifiers)
        if run.artefact("candidates").manifest():
            tables["candidates"] = SAMPLING_COLUMNS
        for problems in add_blocks(run, plan, tables, parts, workers):
            progress.advance(problems)
        for _ in add_blocks(run, train_plan, columns_of(()), (train,), workers, by_value=False):
            pass
    meta, calibration = judged.rows(), judged.calibration()
    for row in meta:
        manifest = run.artefact(f"scores/{row['verifier']}").manifest() if row["verifier"] in JUDGES else None
        if manifest and manifest.counts.get("distinct"):  # what a critic writes about a solution, on average
            row["generated_tokens"] = manifest.counts["tokens"] / manifest.counts["distinct"]
    del parts, judged  # all scores: gigabytes that the intervals need
    numbers = {NOT_DRAWN: plan.not_drawn, f"train_{NOT_DRAWN}": train_plan.not_drawn}
    not_drawn = {name: number for name, number in numbers.items() if number}
    earlier = [s.artefact for s in specs(config) if s.stage not in {"evaluate", "report", *APART}]
    dropped = {name: m.dropped for name in earlier if (m := run.artefact(name).manifest()) and m.dropped}
    values = selected.outcomes()
    measured: list[Measured] = []
    chosen, columns = ways.contents(choices, values, measured)
    price = prices(config, run, choices)
    costs = compute(choices, columns, price, measured) if price else searched(run)
    compared = compare(selected, values, measured)
    fill_intervals(measured, config.evaluate.bootstrap, config.evaluate.seed)
    content = {
        **compared,
        "categories": by_category(run, selected.problems, values, selected.headline, config.evaluate),
        "meta": meta,
        "calibration": calibration,
        "errors": errors_by_split(run, {"train": train, "test": errors}),
        "counts": {**tally.counts(), "missing": missing, "dropped": dropped, **not_drawn},
        **chosen,
        "peaks": precision.rows(),
        "compute": costs,
    }
    write_outcomes(run, values, selected.headline, pa.array(selected.problems, pa.string()))
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    tracked = track(config, run, content)
    counts = {name: tally.sums[name] for name in ("problems", "candidates")}
    counts["methods"] = len(content["methods"])
    details = {"seconds": round(time.monotonic() - start, 2), **tracked}
    return artefact.complete(counts, {**tally.unscored, **not_drawn}, details)


def track(config: Config, run: Run, content: dict[str, Any]) -> dict[str, Any]:
    """Sends the results to the tracker: measures of verifiers as step 0, then accuracies, with n as the step.

    Returns what the manifest says of the tracker.
    """
    if config.tracking.tracker is None:
        return {}
    settings = config.evaluate.model_dump(mode="json")
    tracking = Tracking(config.tracking, run, "evaluation", run.artefact(NAME).begun(), settings)
    rows = {f"{row['level']}/{row['verifier']}": row for row in content["meta"]}
    measures = {f"{name}/{key}": value for name, row in rows.items() for key, value in row.items()}
    tracking.log({key: value for key, value in measures.items() if isinstance(value, float)}, 0)
    by_n: dict[int, dict[str, float]] = {}
    for row in content["methods"]:
        by_n.setdefault(row["n"], {})[f"{row['method']}/{row['verifier']}".rstrip("/")] = row["accuracy"]
    for n, accuracies in sorted(by_n.items()):
        tracking.log(accuracies, n)
    tracked = tracking.close()
    if tracking.warning:
        print(f"evaluate: {tracking.warning}", flush=True)
    return tracked


def platts_of(run: Run, verifiers: Iterable[str]) -> dict[str, Platt]:
    """The line of each verifier that was calibrated."""
    manifests = {name: run.artefact(f"models/{name}").manifest() for name in verifiers}
    lines = {name: platt_of(m.details.get("calibration")) for name, m in manifests.items() if m}
    return {name: line for name, line in lines.items() if line}


@dataclass
class Judged:
    """Meta-evaluation of the run's own candidates: the outcome and the scores of every one, and its labelled steps.

    Lists hold one array for each block. Candidates whose grading ended in a timeout are left out of the outcomes.
    Verifiers in `platts` are calibrated; `uncalibrated` has their scores without that.
    """

    platts: dict[str, Platt]
    aggregation: Aggregation
    correct: list[np.ndarray] = field(default_factory=list)
    scores: dict[str, list[np.ndarray]] = field(default_factory=dict)
    uncalibrated: dict[str, list[np.ndarray]] = field(default_factory=dict)
    step_labels: list[pa.Array] = field(default_factory=list)
    step_scores: dict[str, list[pa.Array]] = field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Adds the candidates of a block."""
        rows, graded = block.candidates.rows, block.candidates.graded
        labelled = verdicts.any_label(rows["step_labels"])
        self.correct.append(block.candidates.correct[graded])
        self.step_labels += rows["step_labels"].filter(labelled).chunks
        for name, scores in block.scores.items():
            # The precision that they are stored in: half the memory.
            self.scores.setdefault(name, []).append(scores.score[graded].astype(np.float32))
            if platt := self.platts.get(name):
                aggregation = self.aggregation if name.startswith("prm") else "last"
                before = scores.before(platt, aggregation)[graded].astype(np.float32)
                self.uncalibrated.setdefault(name, []).append(before)
            self.step_scores.setdefault(name, []).extend(scores.step_scores.filter(labelled).chunks)

    def merge(self, block: "Judged") -> None:
        """Adds the candidates of the block that follows."""
        self.correct += block.correct
        self.step_labels += block.step_labels
        for field_name in ("scores", "uncalibrated", "step_scores"):
            for name, parts in getattr(block, field_name).items():
                getattr(self, field_name).setdefault(name, []).extend(parts)

    def rows(self) -> list[dict[str, Any]]:
        """Rows of `meta`: every verifier at the level of outcomes, then those that score labelled steps."""
        correct = np.concatenate(self.correct)
        threads = min(len(os.sched_getaffinity(0)), JUDGED_AT_ONCE // max(1, len(correct)))
        with ThreadPoolExecutor(max(1, threads)) as pool:  # numpy sorts without the interpreter's lock
            # In single precision, in which scores are stored and sorted faster. Each thread joins those that it judges.
            rows = list(
                pool.map(
                    lambda name: verdicts.outcome_row(name, np.concatenate(self.scores[name]), correct), self.scores
                )
            )
        for row in rows:
            if parts := self.uncalibrated.get(row["verifier"]):
                row["uncalibrated"] = verdicts.probabilities(np.concatenate(parts).astype(np.float64), correct)
        if self.step_labels:
            labels = pa.chunked_array(self.step_labels)
            for name, chunks in self.step_scores.items():
                options: Any = {"by_step": name.startswith("prm"), "platt": self.platts.get(name)}
                if chunks and (row := verdicts.step_row(name, pa.chunked_array(chunks), labels, **options)):
                    rows.append(row)
        return rows

    def calibration(self) -> dict[str, list[dict[str, float]]]:
        """By verifier: how often solutions with about the same score are right."""
        correct = np.concatenate(self.correct)
        return {name: verdicts.calibration(np.concatenate(parts), correct) for name, parts in self.scores.items()}


@dataclass
class CandidateTally:
    """Numbers of evaluated candidates.

    `answers` has 64 bits for each distinct wrong answer of each block by how their keys were found.
    """

    texts: bool = False
    answers: dict[str, list[np.ndarray]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    status: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)

    def add(self, block: Block) -> None:
        """Adds the candidates of a block."""
        candidates = block.candidates
        rows = candidates.rows
        self.status.update({e["values"]: e["counts"] for e in pc.value_counts(rows["status"]).to_pylist()})
        self.sizes.update(np.diff(candidates.starts).tolist())
        right = np.add.reduceat(candidates.correct.astype(int), candidates.starts[:-1])
        self.texts = block.sampling is not None
        truncated = pc.sum(pc.equal(block.sampling["finish_reason"], "length")).as_py() if block.sampling else 0
        for kind, answers in block.answers.items():
            digests = b"".join(blake2b(answer.encode(), digest_size=8).digest() for answer in answers)
            self.answers[kind].append(np.frombuffer(digests, np.uint64))
        self.sums.update(
            problems=candidates.problems,
            candidates=len(candidates.correct),
            no_answer=int((candidates.clusters < 0).sum()),
            truncated=int(truncated or 0),
            without_right_candidate=int((right == 0).sum()),
        )
        unscored = {name: int(np.isnan(table.score).sum()) for name, table in block.scores.items()}
        self.unscored.update({f"unscored by {name}": count for name, count in unscored.items()})

    def merge(self, block: "CandidateTally") -> None:
        """Adds the numbers of another block."""
        self.texts = block.texts
        for kind, hashes in block.answers.items():
            self.answers[kind] += hashes
        for name in ("status", "sizes", "sums", "unscored"):
            getattr(self, name).update(getattr(block, name))

    def counts(self) -> dict[str, Any]:
        """`counts` of evaluation.json; `truncated` is None where the run has no texts."""
        return {
            **self.sums,
            "truncated": self.sums["truncated"] if self.texts else None,
            "status": dict(self.status),
            "problems_by_candidates": {str(size): problems for size, problems in sorted(self.sizes.items())},
            "wrong_answers": {kind: len(np.unique(np.concatenate(h))) if h else 0 for kind, h in self.answers.items()},
            "unscored": {name: count for name, count in self.unscored.items() if count},
        }


def errors_by_split(run: Run, splits: Mapping[str, ErrorTally]) -> dict[str, Any]:
    """`errors` of evaluation.json: error types by split, which of them each verifier rejects, types by the critic."""
    content = {
        "by_split": {name: tally.by_type() for name, tally in splits.items()},
        "wrong": {name: tally.wrong for name, tally in splits.items()},
        "rejected": splits["test"].rejected_fractions(),
    }
    sorted_by_critic = run.artefact("error_types")
    if sorted_by_critic.manifest():
        content["critic"] = by_critic(sorted_by_critic.read(["source", "known", "type", "status"]).to_pylist())
    return content
