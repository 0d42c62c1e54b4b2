"""`minos meta`: verifiers, published reward models and critics judged on labelled sets, without a generator.

Writes meta.json.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.evaluation import verdicts
from minos_ray.evaluation.candidates import Candidates, Scores
from minos_ray.meta import measures
from minos_ray.meta.measures import Threshold, best_first_error, best_outcome, outcome_intervals, step_intervals
from minos_ray.meta.verifiers import LabelledSet, Verifier, check_overlap, read_set, score_set, scores_of, verifiers
from minos_ray.store.run import Run

NAME = "meta.json"
GIVEN = "given"


def meta(config: Config, run: Run) -> dict[str, Any]:
    """Scores every set of `meta.sets` with every verifier; prints and writes how good their scores are.

    First errors are counted as in ProcessBench. Thresholds are given, or come from the set `meta.threshold_from`.
    UserError when a set or a verifier cannot be used, or when both sets share a question.
    """
    sets = [read_set(path, "meta.sets") for path in config.meta.sets or (run.path,)]
    other = None
    if config.meta.threshold_from is not None:
        other = read_set(config.meta.threshold_from, "meta.threshold_from")
        check_overlap(other, sets)
    judged = verifiers(config, run)
    configured = Threshold(config.meta.threshold, config.meta.threshold, GIVEN)
    thresholds = {verifier.name: configured for verifier in judged}
    if other is not None:  # the best on that set
        by_step = any(labelled.by_step for labelled in sets)
        scores = scores_of(run, score_set(config, run, other, judged), other.candidates)
        thresholds = {name: best_thresholds(name, values, other, by_step) for name, values in scores.items()}
    rows = [row for labelled in sets for row in judge_set(config, run, labelled, judged, thresholds)]
    content = {
        "threshold": None if other else config.meta.threshold,
        "threshold_from": other.run.path if other else None,
        "rows": rows,
        **measures.means(rows),
        "prmbench": measures.prmbench(rows),
    }
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    print("\n".join([*measures.as_text(content), f"written to {run.at(NAME)}"]))
    return content


def best_thresholds(name: str, scores: Scores, other: LabelledSet, by_step: bool) -> Threshold:
    """The best thresholds of one verifier on a set.

    UserError when steps are to be judged and the set's step labels do not determine a threshold.
    """
    usable = other.candidates.graded & ~np.isnan(scores.score)
    outcome = best_outcome(scores.score[usable], other.candidates.correct[usable])
    step = best_first_error(verdicts.align_steps(scores.step_scores, other.candidates.rows["step_labels"]))
    if step is None and by_step and verdicts.flat(scores.step_scores).lengths.any():
        raise UserError(
            f"meta.threshold_from: '{other.run.path}' has no right or no wrong solution with step labels to choose "
            f"the threshold of {name} for steps by; take a set that has both"
        )
    return Threshold(outcome if step is None else step, outcome, other.run.path)


def judge_set(
    config: Config, run: Run, labelled: LabelledSet, judged: Sequence[Verifier], thresholds: Mapping[str, Threshold]
) -> Iterator[dict[str, Any]]:
    """One row per data set of a labelled set, verifier and level."""
    artefacts = score_set(config, run, labelled, judged)
    by_name = {verifier.name: verifier for verifier in judged}
    for dataset, part in labelled.parts():
        for name, scores in scores_of(run, artefacts, part).items():
            head = {"set": dataset, "verifier": name, "kind": by_name[name].kind}
            for row in judge(config, by_name[name], scores, part, thresholds[name]):
                yield head | row | {"threshold_from": thresholds[name].source}


def judge(
    config: Config, verifier: Verifier, scores: Scores, part: Candidates, threshold: Threshold
) -> Iterator[dict[str, Any]]:
    """The rows of both levels, with intervals. Solutions whose grading ended in a timeout have no known outcome."""
    problem = np.repeat(np.arange(part.problems), np.diff(part.starts))
    score, correct = scores.score[part.graded], part.correct[part.graded]
    row = verdicts.outcome_row(verifier.name, score, correct, threshold.outcome)
    if verifier.platt:
        before = scores.before(verifier.platt, config.score.aggregation if verifier.by_step else "last")
        row["uncalibrated"] = verdicts.probabilities(before[part.graded], correct)
    yield row | outcome_intervals(score, correct, threshold.outcome, problem[part.graded], config.evaluate)
    labels = part.rows["step_labels"]
    row = verdicts.step_row(verifier.name, scores.step_scores, labels, threshold.step, verifier.by_step, verifier.platt)
    if row:
        steps = verdicts.align_steps(scores.step_scores, labels)
        yield row | step_intervals(steps, threshold.step, problem, config.evaluate)
