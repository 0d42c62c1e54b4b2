"""What a budget buys: the best choice for each, why best-of-n falls, and when to abstain; as text and for the page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minos_ray.report.canvas import BOUND, GROUPS, MARKERS, MINOS, PAPER, VOTE, drawn, grid
from minos_ray.report.results import METHOD_NAMES
from minos_ray.report.statement import interval, percent, signed, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Evaluation = Mapping[str, Any]
Entry = Mapping[str, Any]
AXES = {"tokens": "generated tokens per problem", "flops": "FLOPs per problem, solving and verifying"}


def way_name(entry: Entry) -> str:
    """`weighted vote, prm-base, 16 of 64 scored`, `vote among the top 4, orm-base`."""
    name, _, rest = (
        entry["method"].partition("-") if entry["method"].startswith("adaptive") else (entry["method"], "", "")
    )
    words = [f"adaptive vote, {float(rest):.0%} sure".replace("%", " %") if rest else METHOD_NAMES[name]]
    if entry.get("top"):
        words[0] = f"vote among the top {entry['top']}"
    if entry["verifier"]:
        words.append(entry["verifier"])
        words += [f"{entry['verified']} of {entry['n']} scored"] if entry["verified"] < entry["n"] else []
    return ", ".join(words)


def best_rows(evaluation: Entry) -> list[Entry]:
    """The best choice for each budget with the vote beside it: over FLOPs, or tokens where sizes are not known."""
    budgets = evaluation.get("compute", {}).get("budgets", [])
    axis = "flops" if any(row["axis"] == "flops" for row in budgets) else "tokens"
    votes = {row["solutions"]: row for row in budgets if row["axis"] == axis and not row["group"]}
    best = [row for row in budgets if row["axis"] == axis and row["group"] == "any"]
    # Budgets beyond the last at which something changes buy nothing.
    names = [(way_name(row), row["n"]) for row in best]
    last = next((k for k in range(len(best)) if len(set(names[k:])) == 1), len(best))
    return [{**row, "vote": votes[row["solutions"]]} for row in best[: last + 1]]


def budget_table(evaluation: Entry) -> str:
    """The best choice for each budget as plain text; empty where the run does not say how long its candidates are."""
    rows = best_rows(evaluation)
    if not rows:
        return ""
    cost = "FLOPs" if rows[0]["axis"] == "flops" else "tokens"
    lines = [("budget, solutions", cost, "best choice", "n", "accuracy", "95 % interval", "vote", "minus vote")]
    for row in rows:
        gap = f"{signed(row['minus_vote'])} {interval(row['minus_vote_low'], row['minus_vote_high'])}"
        ends = interval(row["ci_low"], row["ci_high"])
        numbers = (percent(row["accuracy"]), ends, percent(row["vote"]["accuracy"]), gap)
        lines.append((f"{row['solutions']:,}", f"{row['budget']:.2g}", way_name(row), str(row["n"]), *numbers))
    return "\n".join(text_table(lines, words=3))


def peak_lines(evaluation: Entry) -> list[str]:
    """For each verifier the n at which best-of-n is best, and how many of the accepted best ones are wrong."""
    lines = []
    for row in evaluation.get("peaks", []):
        ends = [
            percent(share) for share in (row["false_positives"][0], row["false_positives"][-1]) if share is not None
        ]
        seen = f"is best at n = {row['peak']}" if row["peak"] else f"does not fall up to n = {row['n'][-1]}"
        foreseen = f"n = {row['predicted_peak']}" if row["predicted_peak"] else "no peak"
        wrong = f"; wrong among the best that it accepts: {' to '.join(ends)}" if len(ends) == 2 else ""
        lines.append(f"{row['verifier']}: best-of-n {seen} (predicted from its scores: {foreseen}){wrong}.")
    return lines


@drawn
def accuracy_over_cost(evaluation: Entry) -> "tuple[Figure, str] | None":
    """A panel for each axis: every choice as a point, the vote and the best choice for each budget as lines."""
    content = evaluation.get("compute") or {}
    axes = [axis for axis in AXES if any(row["axis"] == axis for row in content.get("budgets", []))]
    if not axes:
        return None
    figure, panels = grid(1, len(axes))
    for panel, axis in zip(panels, axes, strict=False):
        points = [entry for entry in content["methods"] if entry[axis] is not None]
        panel.scatter([p[axis] for p in points], [100 * p["accuracy"] for p in points], s=5, color=VOTE, alpha=0.35)
        for group, colour, label in (("", BOUND, "vote"), ("any", MINOS, "best choice")):
            rows = [row for row in content["budgets"] if (row["axis"], row["group"]) == (axis, group)]
            by_budget(panel, rows, colour, label)
        panel.set_title(AXES[axis])
        panel.set_xlabel("budget", fontsize=8)
    panels[0].set_ylabel("accuracy (%)", fontsize=8)
    figure.tight_layout()
    return figure, "Accuracy over generated tokens and over FLOPs of solving and verifying"


def by_budget(panel: "Axes", rows: list[Entry], colour: str, label: str) -> None:
    """A line over budgets with its intervals as a band."""
    xs = [row["budget"] for row in rows]
    panel.plot(
        xs, [100 * row["accuracy"] for row in rows], color=colour, marker="o", markeredgecolor=PAPER, label=label
    )
    lows, highs = ([100 * row[end] for row in rows] for end in ("ci_low", "ci_high"))
    panel.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    panel.set_xscale("log", base=2)
    panel.legend(fontsize=7.5, loc="lower right")


@drawn
def peaks(evaluation: Entry) -> "tuple[Figure, str] | None":
    """Best-of-n over n as seen and as predicted, and the wrong ones among the best that a verifier accepts."""
    rows = evaluation.get("peaks", [])
    if not rows or len(rows[0]["n"]) < 2:
        return None
    figure, (left, right) = grid(1, 2)
    colours = [*GROUPS.values()]
    for k, row in enumerate(rows):
        colour, marker = colours[k % len(colours)], [*MARKERS.values()][k % 2]
        left.plot(row["n"], [100 * a for a in row["accuracy"]], color=colour, marker=marker, label=row["verifier"])
        left.plot(
            row["predicted_n"], [100 * a for a in row["predicted"]], color=colour, linestyle=(0, (3, 3)), linewidth=1
        )
        points = [
            (n, 100 * share) for n, share in zip(row["n"], row["false_positives"], strict=True) if share is not None
        ]
        right.plot(
            [n for n, _ in points], [share for _, share in points], color=colour, marker=marker, label=row["verifier"]
        )
    for panel, title in ((left, "best-of-n: accuracy (%)"), (right, "wrong among the accepted best (%)")):
        panel.set_xscale("log", base=2)
        panel.set_title(title)
        panel.set_xlabel("candidates per problem, n", fontsize=8)
        panel.legend(fontsize=7.5)
    figure.tight_layout()
    return figure, "Where best-of-n is best, and false positives among the highest scores"
