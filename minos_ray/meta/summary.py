"""What the rows of `minos meta` come to: means over sets, PRMScore, and everything as text.

PRMScore (PRMBench, 2501.03124) is 0.5 * F1 + 0.5 * F1_neg over the steps of a class. As in its own evaluation: F1 is
that of the class right, F1_neg that of wrong; the right controls are left out; a class is one score, a group the mean
of its classes, the overall score that of all steps together. `multi_solutions` has no wrong step, its score is F1.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from minos_ray.evaluation.verdicts import PROBABILITIES, f1, macro_f1

PROCESSBENCH, MEAN = "processbench", "mean_first_error_f1"
PRMBENCH = "prmbench-"
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
MEASURES = ("accuracy", "f1", "auc", "first_error_f1")
Confusion = Mapping[str, int]


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """First-error F1 averaged over ProcessBench's sets, as published, and over the others; over all without any."""
    bench = [row for row in rows if row["set"].startswith(PROCESSBENCH)]
    others = [row for row in rows if not row["set"].startswith(PROCESSBENCH)]
    return {MEAN: mean_f1(bench or others), f"{MEAN}_of_others": mean_f1(others if bench else [])}


def mean_f1(rows: list[dict[str, Any]]) -> dict[str, float]:
    """First-error F1 of each verifier, averaged over the sets where it is defined."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.get("first_error_f1") is not None:
            values.setdefault(row["verifier"], []).append(row["first_error_f1"])
    return {name: float(np.mean(of_sets)) for name, of_sets in values.items()}


def prmbench(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """PRMScores by verifier: overall, groups and classes; None for what needs a class that is missing."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for row in rows:
        name = CLASSES.get(row["set"].removeprefix(PRMBENCH)) if row["set"].startswith(PRMBENCH) else None
        if name and row["level"] == "step":
            # Added up, for a class may lie in several sets.
            counts.setdefault(row["verifier"], {}).setdefault(name, Counter()).update(row["confusion"])
    return {verifier: prm_scores(classes) for verifier, classes in counts.items()}


def prm_scores(classes: Mapping[str, Confusion]) -> dict[str, Any]:
    """The scores of one verifier from its confusion counts by class."""
    by_class = {
        name: f1(counts["tp"], counts["fp"], counts["fn"]) if name == WITHOUT_WRONG else macro_f1(counts)
        for name, counts in classes.items()
    }
    complete = len(classes) == len(CLASSES)
    pooled = {key: sum(counts[key] for counts in classes.values()) for key in ("tp", "fp", "tn", "fn")}
    classes_in_order = {name: by_class[name] for name in CLASSES.values() if name in by_class}
    return {"overall": macro_f1(pooled) if complete else None, **groups(by_class), "classes": classes_in_order}


def groups(by_class: Mapping[str, float]) -> dict[str, float | None]:
    """The mean of the classes of each group; None where one is missing."""
    return {
        group: sum(by_class[name] for name in names) / len(names) if by_class.keys() >= set(names) else None
        for group, names in GROUPS.items()
    }


def as_text(content: Mapping[str, Any]) -> list[str]:
    """The content of meta.json as lines: the rows, means over sets, PRMScores, and the source of thresholds."""
    bench = any(row["set"].startswith(PROCESSBENCH) for row in content["rows"])
    titles = {MEAN: "ProcessBench" if bench else "sets", f"{MEAN}_of_others": "other sets"}
    means = []
    for key, title in titles.items():
        if content[key]:
            lines = [f"{name:24} {value:.3f}" for name, value in content[key].items()]
            means += ["", f"first-error F1, mean over {title}", *lines]
    table = prmbench_lines(content["prmbench"])
    source = content["threshold_from"]
    threshold = f"thresholds chosen on {source}" if source else f"threshold {content['threshold']:g}, given"
    return [
        *row_lines(content["rows"]),
        *calibration_lines(content["rows"]),
        *means,
        *([""] if table else []),
        *table,
        "",
        threshold,
    ]


def row_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as a table."""
    head = f"{'set':28} {'verifier':20} {'kind':8} {'level':7} {'examples':>8} {'unscored':>8} {'threshold':>9} "
    lines = [head + " ".join(f"{name:>20}" for name in MEASURES)]
    for row in rows:
        facts = f"{row['set']:28} {row['verifier']:20} {row['kind']:8} {row['level']:7} {row['examples']:8} "
        facts += f"{row['unscored']:8} {row['threshold']:9.4g} "
        measures = []
        for name in MEASURES:  # with its interval; a dash where it is not defined
            value, ends = row.get(name), row.get(f"{name}_ci")
            text = "-" if value is None else f"{value:.3f}"
            measures.append(f"{text} [{ends[0]:.3f}, {ends[1]:.3f}]" if value is not None and ends else text)
        lines.append(facts + " ".join(f"{text:>20}" for text in measures))
    return lines


def calibration_lines(rows: list[dict[str, Any]]) -> list[str]:
    """How far the scores of calibrated verifiers are from probabilities, before and after; empty without one."""
    lines = [
        f"{row['set']:28} {row['verifier']:20} {row['level']:7} "
        + " ".join(f"{row['uncalibrated'][name]:>10.4f} -> {row[name]:.4f}" for name in PROBABILITIES)
        for row in rows
        if row.get("uncalibrated", {}).get("brier") is not None
    ]
    head = f"{'Platt scaling':28} {'':20} {'':7} " + " ".join(f"{name.replace('_', ' '):>20}" for name in PROBABILITIES)
    return ["", head, *lines] if lines else []


def prmbench_lines(scores: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """PRMScores as a table, in per cent as published; empty without any."""
    if not scores:
        return []
    columns = ("overall", *GROUPS)
    head = f"{'PRMScore':24} " + " ".join(f"{name:>11}" for name in columns)
    lines = [f"{head} {' '.join(f'{name:>5}' for name in CLASSES.values())}"]
    for verifier, row in scores.items():
        totals = " ".join(f"{percent(row[name]):>11}" for name in columns)
        of_classes = " ".join(f"{percent(row['classes'].get(name)):>5}" for name in CLASSES.values())
        lines.append(f"{verifier:24} {totals} {of_classes}")
    return lines


def percent(value: float | None) -> str:
    """One decimal, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"
