"""Ways to choose an answer that the paper does not have: further methods, and a PRM's other aggregations."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from minos_ray.evaluation.headline import headline_of
from minos_ray.report.results import MAIN, METHOD_NAMES, VERIFIER_NAMES, Row, headline, row

AGGREGATIONS = ("min", "product", "last", "mean")
SELECTING = ("best-of-n", "weighted-vote")


@dataclass(frozen=True)
class AggregationRow:
    """One way to make one score of a PRM's step scores; accuracies as (value, low, high) by method."""

    verifier: str
    aggregation: str
    accuracies: dict[str, tuple[float, float, float]]


def further_rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """One row per method that is not the paper's, at the headline n; by method, Minos after base."""
    n = headline(evaluation)
    found = [m for m in evaluation["methods"] if m["n"] == n and m["method"] not in MAIN]
    made = [row(evaluation, m, n, "gsm8k") for m in found]
    return sorted(made, key=lambda r: (place(r.method, METHOD_NAMES), r.method, place(r.verifier), r.verifier))


def place(name: str, known: Iterable[str] = VERIFIER_NAMES) -> int:
    """Where a name stands among the known ones, others behind."""
    names = list(known)
    return names.index(name) if name in names else len(names)


def aggregation_rows(evaluation: Mapping[str, Any]) -> list[AggregationRow]:
    """One row per PRM and aggregation, at the headline n."""
    entries = evaluation.get("aggregations", [])
    n = headline_of(entries)
    found: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = defaultdict(dict)
    for e in entries:
        if e["n"] == n:
            found[e["verifier"], e["aggregation"]][e["method"]] = (e["accuracy"], e["ci_low"], e["ci_high"])
    made = [AggregationRow(*key, accuracies) for key, accuracies in found.items()]
    return sorted(made, key=lambda r: (place(r.verifier), r.verifier, AGGREGATIONS.index(r.aggregation)))


def largest_error(evaluation: Mapping[str, Any]) -> float | None:
    """The largest Monte Carlo standard error of any method and n, None where none is stored."""
    return max((m["se"] for m in evaluation["methods"] if m.get("se") is not None), default=None)
