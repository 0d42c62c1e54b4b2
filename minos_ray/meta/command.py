"""`minos meta`: verifiers, published reward models and critics judged on labelled sets, without a generator.

Writes meta.json.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc

from minos_ray.config.load import Config
from minos_ray.errors import UserError
from minos_ray.evaluation import verdicts as measures
from minos_ray.evaluation.candidates import Candidates, Scores
from minos_ray.meta import prmbench
from minos_ray.meta.intervals import outcome_intervals, step_intervals
from minos_ray.meta.sets import LabelledSet, read_set, refuse_overlap
from minos_ray.meta.threshold import Threshold, best_first_error, best_outcome
from minos_ray.meta.verifiers import Verifier, score_set, scores_of, verifiers
from minos_ray.store.run import Run

NAME = "meta.json"
GIVEN = "given"
PROCESSBENCH, MEAN = "processbench", "mean_first_error_f1"
COLUMNS = ("accuracy", "f1", "auc", "first_error_f1")


def meta(config: Config, run: Run) -> dict[str, Any]:
    """Scores every set of `meta.sets` with everything that is to be judged; prints and writes what it is worth.

    First errors are counted as in ProcessBench. Thresholds are given, or come from the set `meta.threshold_from`.
    """
    sets = [read_set(path, "meta.sets") for path in config.meta.sets or (run.path,)]
    other = None
    if config.meta.threshold_from is not None:
        other = read_set(config.meta.threshold_from, "meta.threshold_from")
        refuse_overlap(other, sets)
    judged = verifiers(config, run)
    thresholds = choose(config, run, other, judged, any(one.by_step for one in sets))
    rows = [row for one in sets for row in judge_set(config, run, one, judged, thresholds)]
    content = {
        "threshold": None if other else config.meta.threshold,
        "threshold_from": other.run.path if other else None,
        "rows": rows,
        **means(rows),
        "prmbench": prmbench.prmbench(rows),
    }
    run.write_bytes(NAME, json.dumps(content, indent=1, allow_nan=False).encode())
    print("\n".join([*report(content), f"written to {run.at(NAME)}"]))
    return content


def choose(
    config: Config, run: Run, other: LabelledSet | None, judged: Sequence[Verifier], by_step: bool
) -> dict[str, Threshold]:
    """The thresholds of each verifier: as given, or the best on the other set; `by_step`: steps will be judged too."""
    given = Threshold(config.meta.threshold, config.meta.threshold, GIVEN)
    if other is None:
        return {verifier.name: given for verifier in judged}
    scores = scores_of(run, score_set(config, run, other, judged), other.candidates)
    return {name: chosen(name, found, other, by_step) for name, found in scores.items()}


def chosen(name: str, scores: Scores, other: LabelledSet, by_step: bool) -> Threshold:
    """The best thresholds of one verifier on a set; UserError when steps need one and its labels do not tell."""
    fine = known_outcomes(other.candidates) & ~np.isnan(scores.score)
    outcome = best_outcome(scores.score[fine], other.candidates.correct[fine])
    step = best_first_error(measures.aligned(scores.step_scores, other.candidates.rows["step_labels"]))
    if step is None and by_step and measures.flat(scores.step_scores).lengths.any():
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
    of_name = {verifier.name: verifier for verifier in judged}
    for dataset, part in labelled.parts():
        for name, scores in scores_of(run, artefacts, part).items():
            first = {"set": dataset, "verifier": name, "kind": of_name[name].kind}
            for row in judge(config, of_name[name], scores, part, thresholds[name]):
                yield first | row | {"threshold_from": thresholds[name].source}


def judge(
    config: Config, verifier: Verifier, scores: Scores, part: Candidates, threshold: Threshold
) -> Iterator[dict[str, Any]]:
    """The rows of both levels, with intervals. Solutions whose grading ended in a timeout have no known outcome."""
    sure = known_outcomes(part)
    problem = np.repeat(np.arange(part.problems), np.diff(part.starts))
    score, correct = scores.score[sure], part.correct[sure]
    row = measures.outcome(verifier.name, score, correct, threshold.outcome)
    yield row | outcome_intervals(score, correct, threshold.outcome, problem[sure], config.evaluate)
    labels = part.rows["step_labels"]
    steps = measures.steps(verifier.name, scores.step_scores, labels, threshold.step, verifier.by_step)
    if steps:
        both = measures.aligned(scores.step_scores, labels)
        yield steps | step_intervals(both, threshold.step, problem, config.evaluate)


def known_outcomes(part: Candidates) -> np.ndarray:
    """Which solutions have a known outcome."""
    return pc.not_equal(part.rows["status"], "timeout").to_numpy()


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """First-error F1 averaged over ProcessBench's sets, as published, and over the others; over all without any."""
    bench = [row for row in rows if row["set"].startswith(PROCESSBENCH)]
    rest = [row for row in rows if not row["set"].startswith(PROCESSBENCH)]
    return {MEAN: mean_f1(bench or rest), f"{MEAN}_of_others": mean_f1(rest if bench else [])}


def mean_f1(rows: list[dict[str, Any]]) -> dict[str, float]:
    """First-error F1 of each verifier, averaged over the sets where it is defined."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get("first_error_f1") is not None:
            found.setdefault(row["verifier"], []).append(row["first_error_f1"])
    return {name: float(np.mean(values)) for name, values in found.items()}


def report(content: Mapping[str, Any]) -> list[str]:
    """Everything in text: the rows, the mean over sets, PRMBench, where thresholds come from."""
    source = content["threshold_from"]
    where = f"thresholds chosen on {source}" if source else f"threshold {content['threshold']:g}, given"
    bench = any(row["set"].startswith(PROCESSBENCH) for row in content["rows"])
    mean = average("first-error F1, mean over " + ("ProcessBench" if bench else "sets"), content[MEAN])
    mean += average("first-error F1, mean over other sets", content[f"{MEAN}_of_others"])
    table = prmbench.lines(content["prmbench"])
    return [*lines(content["rows"]), *mean, *([""] if table else []), *table, "", where]


def average(title: str, found: Mapping[str, float]) -> list[str]:
    """A mean by verifier, nothing without any."""
    return ["", title, *(f"{name:24} {value:.3f}" for name, value in found.items())] if found else []


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table."""
    head = f"{'set':28} {'verifier':20} {'kind':8} {'level':7} {'examples':>8} {'unscored':>8} {'threshold':>9} "
    return [head + " ".join(f"{name:>20}" for name in COLUMNS), *map(line, rows)]


def line(row: dict[str, Any]) -> str:
    """One row; a dash where a measure is not defined."""
    facts = f"{row['set']:28} {row['verifier']:20} {row['kind']:8} {row['level']:7} {row['examples']:8} "
    facts += f"{row['unscored']:8} {row['threshold']:9.4g} "
    return facts + " ".join(f"{shown(row, name):>20}" for name in COLUMNS)


def shown(row: dict[str, Any], name: str) -> str:
    """A measure with its interval."""
    value, around = row.get(name), row.get(f"{name}_ci")
    if value is None:
        return "-"
    return f"{value:.3f} [{around[0]:.3f}, {around[1]:.3f}]" if around else f"{value:.3f}"
