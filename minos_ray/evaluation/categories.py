"""Accuracies by category of the problems, such as MATH's levels and subjects: every method at the n of all comparisons.

A category is any column of `problems` that says what kind a problem is: `dataset`, and whatever stands behind the
columns that all problems have.
"""

from typing import Any

import numpy as np

from minos_ray.config.schema import Evaluate
from minos_ray.evaluation.outcomes import SINGLE, Method, Outcomes, paired_methods
from minos_ray.evaluation.statistics import bounded_intervals
from minos_ray.problems.split import read_problems
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Run

# One value tells nothing apart; more than these are names or numbers, not kinds.
FEWEST, MOST = 2, 40


def read_categories(run: Run, problem_ids: list[str]) -> dict[str, list[str | None]]:
    """By column the value of each problem, for the columns with 2 to 40 values."""
    columns = next(run.artefact("problems").parts()).column_names
    names = ["dataset", *(name for name in columns if name not in SCHEMAS["problems"].names)]
    rows = {row["problem_id"]: row for row in read_problems(run, None, ["problem_id", *names]).to_pylist()}
    values = {name: [rows[problem][name] for problem in problem_ids] for name in names}
    return {name: column for name, column in values.items() if FEWEST <= len({*column} - {None}) <= MOST}


def by_category(
    categories: dict[str, list[str | None]], outcomes: Outcomes, headline: int, section: Evaluate
) -> dict[str, list[dict[str, Any]]]:
    """`categories` of evaluation.json: by column a row for each value, with every method and difference at `headline`.

    Only problems with that many candidates count. Problems without a value are a row of their own, at the end.
    """
    at_headline = {m: values for m, values in outcomes.items() if (m.n == headline or m.name == SINGLE)}
    methods = {m: values for m, values in at_headline.items() if not m.aggregation}
    pairs = [(a, b) for a, b in paired_methods(outcomes, headline) if a.n == headline]
    columns = np.stack([*methods.values(), *(outcomes[a] - outcomes[b] for a, b in pairs)], axis=1)
    compared = ~np.isnan(columns[:, 0])
    tables = {}
    for name, values in categories.items():
        of_problem = np.array(values, dtype=object)
        rows = []
        for value in sorted({*values}, key=order):
            chosen = compared & (of_problem == value)
            if chosen.any():
                rows.append({"value": value, **measured(columns[chosen], list(methods), pairs, section)})
        tables[name] = rows
    return tables


def order(value: str | None) -> tuple[bool, float, str]:
    """Numbers by size, then words; no value last."""
    number = float(value) if value is not None and value.isdecimal() else np.inf
    return value is None, number, value or ""


def measured(
    columns: np.ndarray, methods: list[Method], pairs: list[tuple[Method, Method]], section: Evaluate
) -> dict[str, Any]:
    """Accuracies and paired differences of some problems with their intervals; columns as in `bounded_intervals`."""
    mean, low, high = (
        part.tolist() for part in bounded_intervals(columns, len(methods), section.bootstrap, section.seed)
    )
    ends = [{"ci_low": a, "ci_high": b} for a, b in zip(low, high, strict=True)]
    accuracies = [
        {"method": m.name, "verifier": m.verifier, "accuracy": mean[k], **ends[k]} for k, m in enumerate(methods)
    ]
    differences = [
        {"a": a.key, "b": b.key, "difference": mean[k], **ends[k]} for k, (a, b) in enumerate(pairs, len(methods))
    ]
    return {"problems": len(columns), "methods": accuracies, "paired": differences}
