"""PRMScore (PRMBench, 2501.03124) from the rows of `minos meta`: 0.5 * F1 + 0.5 * F1_neg over the steps of a class.

As in its own evaluation: F1 is that of the class right, F1_neg that of wrong; the right controls are left out; a class
is one score, a group the mean of its classes, the overall score that of all steps together. `multi_solutions` has no
wrong step, its score is F1.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "prmbench-"
CLASSES = {
    "redundency": "NR",
    "circular": "NCL",
    "counterfactual": "ES",
    "step_contradiction": "SC",
    "domain_inconsistency": "DC",
    "confidence": "CI",
    "missing_condition": "PS",
    "deception": "DR",
    "multi_solutions": "MS",
}
GROUPS = {"simplicity": ("NR", "NCL"), "soundness": ("ES", "SC", "DC", "CI"), "sensitivity": ("PS", "DR", "MS")}
WITHOUT_WRONG = "MS"
Confusion = Mapping[str, int]


def prmbench(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By verifier: overall, groups and classes; what needs a class that is not there is None."""
    found: dict[str, dict[str, Counter[str]]] = {}
    for row in rows:
        name = CLASSES.get(row["set"].removeprefix(PREFIX)) if row["set"].startswith(PREFIX) else None
        if name and row["level"] == "step":
            # A class may lie in several sets.
            found.setdefault(row["verifier"], {}).setdefault(name, Counter()).update(row["confusion"])
    return {verifier: scores(classes) for verifier, classes in found.items()}


def scores(classes: Mapping[str, Confusion]) -> dict[str, Any]:
    """The scores of one verifier."""
    by_class = {name: class_score(name, counts) for name, counts in classes.items()}
    groups = {group: mean([by_class.get(name) for name in names]) for group, names in GROUPS.items()}
    pooled = {key: sum(counts[key] for counts in classes.values()) for key in ("tp", "fp", "tn", "fn")}
    overall = prm_score(pooled) if len(classes) == len(CLASSES) else None
    return {"overall": overall, **groups, "classes": {n: by_class[n] for n in CLASSES.values() if n in by_class}}


def class_score(name: str, counts: Confusion) -> float:
    """Of one class."""
    return f1(counts["tp"], counts["fp"], counts["fn"]) if name == WITHOUT_WRONG else prm_score(counts)


def prm_score(counts: Confusion) -> float:
    """0.5 * F1 + 0.5 * F1_neg."""
    wrong = f1(counts["tn"], counts["fn"], counts["fp"])
    return (f1(counts["tp"], counts["fp"], counts["fn"]) + wrong) / 2


def f1(hit: int, false: int, missed: int) -> float:
    """Harmonic mean of precision and recall; 0 when there is nothing to hit and nothing was said."""
    return 2 * hit / (2 * hit + false + missed) if hit + false + missed else 0.0


def mean(values: list[float | None]) -> float | None:
    """None when one is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scores as a table in text, in per cent as published."""
    columns = ("overall", *GROUPS)
    head = f"{'PRMScore':24} " + " ".join(f"{name:>11}" for name in columns)
    names = [f"{name:>5}" for name in CLASSES.values()]
    table = [f"{head} {' '.join(names)}"]
    for verifier, row in found.items():
        whole = " ".join(f"{percent(row[name]):>11}" for name in columns)
        single = " ".join(f"{percent(row['classes'].get(name)):>5}" for name in CLASSES.values())
        table.append(f"{verifier:24} {whole} {single}")
    return table if found else []


def percent(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"
