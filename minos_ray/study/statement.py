"""The tables of a study as Markdown: the comparison named before, the curve, the ablations, the convergence."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

NAMES = {
    "f1": "F1",
    "auc": "AUC",
    "accuracy": "accuracy",
    "step_f1": "first-error F1",
    "best_of_n": "best of n",
    "weighted_vote": "weighted vote",
}
Answer = Mapping[str, Any]


def statement(answer: Answer) -> str:
    """All tables, in points (per cent)."""
    parts = [primary(answer), curve_table(answer), difference_table(answer), reach_table(answer)]
    return "\n\n".join("\n".join(part) for part in parts)


def primary(answer: Answer) -> Iterator[str]:
    """One line."""
    found = answer["primary"]
    seeds = ", ".join(f"{100 * value:+.1f}" for value in found["seeds"])
    name = f"{NAMES[found['measure']]} of the {found['kind'].upper()}"
    yield f"Named before: {name}, Minos minus base: {gain(found)} points over {len(answer['seeds'])} seeds ({seeds})."


def curve_table(answer: Answer) -> Iterator[str]:
    """Means over the amounts of critiques, the slope and its test."""
    counts = [point["critiques"] for point in answer["curves"][0]["points"]]
    yield from head("verifier, measure", *(f"{count:,}" for count in counts), "slope per 10,000", "p (trend)")
    for curve in answer["curves"]:
        trend, means = curve["trend"], (f"{100 * point['mean']:.1f}" for point in curve["points"])
        slope = f"{100 * trend['slope']:+.1f} {ends(trend['ci_low'], trend['ci_high'])}".strip()
        yield line(f"{curve['kind'].upper()}, {NAMES[curve['measure']]}", *means, slope, f"{trend['p_trials']:.4f}")


def difference_table(answer: Answer) -> Iterator[str]:
    """Every arm against base and Minos: F1, AUC and the selection, with intervals."""
    yield from head("arm", "verifier", "measure", "mean", "minus base", "minus Minos")
    for entry in answer["arms"]:
        minus = (gain(entry[f"minus_{other}"]) if f"minus_{other}" in entry else "" for other in ("base", "minos"))
        yield line(entry["arm"], entry["kind"].upper(), NAMES[entry["measure"]], f"{100 * entry['mean']:.1f}", *minus)


def reach_table(answer: Answer) -> Iterator[str]:
    """Steps to the F1 with which base ends, seed by seed."""
    yield from head("arm", "verifier", "steps to base's final F1, by seed", "of")
    for entry in answer["reached"]:
        steps = ", ".join("never" if step is None else str(step) for step in entry["steps"])
        yield line(entry["arm"], entry["kind"].upper(), steps, str(entry["last"]))


def gain(found: Mapping[str, Any]) -> str:
    """`+3.1 [1.2, 5.0]`; over problems after a semicolon where that is known."""
    inner = ends(found.get("problems_low"), found.get("problems_high"))
    known = [f"{100 * found['mean']:+.1f}", ends(found["ci_low"], found["ci_high"]), inner and f"(problems {inner})"]
    return " ".join(filter(None, known))


def ends(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def head(*names: str) -> Sequence[str]:
    """The first two lines of a table."""
    return line(*names), line(*("---" for _ in names))


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"
