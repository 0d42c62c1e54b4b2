"""What more critiques and more tokens buy: the scale-up study with its trends, the best choice for each budget, why
best-of-n falls, and when to abstain; as text and for the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minos_ray.report.figures import BOUND, GROUPS, INK, MARKERS, MINOS, PAPER, VOTE, drawn, grid
from minos_ray.report.results import METHOD_NAMES, PAPER_SCALE, PAPER_TABLE, first_upper
from minos_ray.report.statement import interval, percent, signed, text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (GROUPS["minos"], GROUPS["other"])
VOTE_LINE: dict[str, Any] = {"color": GROUPS["vote"], "linewidth": 1.2, "linestyle": (0, (4, 3))}
ENDS = {"mean": "", "difference": "difference_"}
Rows = Sequence[Mapping[str, Any]]
Evaluation = Mapping[str, Any]
Entry = Mapping[str, Any]
AXES = {"tokens": "generated tokens per problem", "flops": "FLOPs per problem, solving and verifying"}


class Pen(NamedTuple):
    """How a kind of verifier is drawn: its name, its colour, and how far aside on the axis of critiques."""

    name: str
    colour: str
    aside: float


@dataclass(frozen=True)
class TrendRow:
    """A line of the table of trends; the slope and its ends in shares per 10,000 critiques, None where unknown."""

    name: str
    slope: float
    low: float | None
    high: float | None
    p_trials: float
    exchanges: int
    exact: bool
    p_problems: float | None


def trend_rows(trend: Mapping[str, Any] | None) -> list[TrendRow]:
    """The trends of a sweep of at least two amounts, and the paper's points under the same test; else none."""
    curves = [curve for curve in (trend or {}).get("curves", []) if curve["trend"]]
    keys = ("slope", "ci_low", "ci_high", "p_trials", "exchanges", "exact", "p_problems")
    ours = [TrendRow(f"{title(c['measure'])}, {c['kind'].upper()}", *(c["trend"][key] for key in keys)) for c in curves]
    if not ours:
        return []
    # scipy takes longer to import than `minos evaluate` to write its table of budgets, which needs none of it.
    from minos_ray.evaluation.statistics import rising, slope_weights

    # The paper has one training for each amount, so only the test over trials can be made.
    amounts, values = zip(*PAPER_SCALE[1:], strict=True)
    fractions = np.array(values) / 100
    p = rising(fractions[None], amounts, 0)
    slope = float(fractions @ slope_weights(amounts))
    return [
        *ours,
        TrendRow("Paper, 5k to 30k: weighted vote, ORM", slope, None, None, p.p, p.exchanges, p.exact, None),
    ]


def title(measure: str) -> str:
    """`Best of n`, `F1`, `AUC`."""
    return measure.upper() if measure in {"f1", "auc"} else first_upper(measure.replace("_", " "))


@drawn
def scale(trials: Rows, metrics: Sequence[str], trend: Mapping[str, Any] | None) -> "tuple[Figure, str] | None":
    """A column per metric over the number of critiques, the paper's points in the last.

    Above, each trial and the means; below, where a sweep has trends, the paired differences to the first amount.
    """
    if not trials:
        return None
    curves = [curve for curve in (trend or {}).get("curves", []) if curve["trend"]]
    rows, columns = (2 if curves else 1), len(metrics) + 1
    figure, axes = grid(rows, columns, height=2.5)
    for place, metric in enumerate(metrics):
        of_metric = [curve for curve in curves if curve["measure"] == metric]
        levels(axes[place], trials, metric, of_metric)
        if curves:
            gains(axes[columns + place], trials, of_metric)
    papers(axes[columns - 1 :: columns])
    axes[0].legend(fontsize=7.5, loc="upper center", ncol=3, handlelength=1.6, borderaxespad=0.1)
    for axis in axes:
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 1000 else f"{x:g}")
        axis.margins(y=0.2)
    for axis in axes[-columns:]:
        axis.set_xlabel("critiques in stage 1", fontsize=8)
    figure.tight_layout(h_pad=1.4)
    return figure, "Measures over the number of critiques used in stage 1, with intervals, beside the paper's points"


def pens(trials: Rows) -> dict[str, Pen]:
    """One pen per kind of verifier; two kinds are drawn a little apart, so that their bars do not cover each other."""
    kinds = sorted({t["kind"] for t in trials})
    apart = 0.008 * max(t["critiques"] for t in trials) if len(kinds) > 1 else 0.0
    styles = ((COLOURS[0], -apart), (COLOURS[1], apart))
    return {kind: Pen(kind.upper(), *style) for kind, style in zip(kinds, styles, strict=False)}


def levels(axis: "Axes", trials: Rows, metric: str, curves: Rows) -> None:
    """Every trial as a faint point, means over seeds with their intervals, the vote as a line."""
    points = {curve["kind"]: curve["points"] for curve in curves}
    for kind, pen in pens(trials).items():
        dots = [(t["critiques"], 100 * t[metric]) for t in trials if t["kind"] == kind and t.get(metric) is not None]
        xs, ys = [x + pen.aside for x, _ in dots], [y for _, y in dots]
        axis.plot(xs, ys, "o", color=pen.colour, alpha=0.35, markeredgewidth=0)
        # A sweep without trends has points without intervals.
        groups = {amount: [y for x, y in dots if x == amount] for amount in sorted({x for x, _ in dots})}
        means = [{"critiques": amount, "mean": sum(ys) / len(ys) / 100} for amount, ys in groups.items()]
        line(axis, points.get(kind) or means, "mean", pen)
    vote = [100 * t["self_consistency"] for t in trials if t.get("self_consistency") is not None]
    if metric in {"best_of_n", "weighted_vote"} and vote:
        axis.axhline(sum(vote) / len(vote), label="vote", **VOTE_LINE)
    axis.set_title(f"{title(metric)} (%)")


def line(axis: "Axes", points: Rows, key: str, pen: Pen) -> None:
    """A line through `mean` or `difference`, with a bar for each known interval; shares drawn as per cent."""
    xs, ends = [p["critiques"] + pen.aside for p in points], [f"{ENDS[key]}{end}" for end in ("ci_low", "ci_high")]
    axis.plot(xs, [100 * p[key] for p in points], color=pen.colour, marker="o", markeredgecolor=PAPER,
              markeredgewidth=0.6, label=pen.name)  # fmt: skip
    for x, p in zip(xs, points, strict=True):
        if p.get(ends[0]) is not None:
            axis.plot([x, x], [100 * p[end] for end in ends], color=pen.colour, alpha=0.55)


def gains(axis: "Axes", trials: Rows, curves: Rows) -> None:
    """Differences to the first amount with paired intervals, and zero."""
    axis.axhline(0, color=INK, linewidth=0.8)
    for curve in curves:
        line(axis, curve["points"], "difference", pens(trials)[curve["kind"]])
    axis.set_title(f"Minus {curves[0]['points'][0]['critiques']:,} critiques (points)" if curves else "No trend")


def papers(axes: "Sequence[Axes]") -> None:
    """The paper's points, and below them their difference to its ORM with the vote, which has no critiques."""
    amounts, values = zip(*PAPER_SCALE, strict=True)
    start, vote = (PAPER_TABLE[method]["gsm8k"] for method in (("weighted-vote", "orm-base"), ("self-consistency", "")))
    axes[0].plot(amounts[1:], values[1:], color=GROUPS["minos"], marker="o", linewidth=1.2, label="SC + ORM")
    axes[0].plot([0], [start], "s", color=GROUPS["base"], label="SC + base ORM")
    axes[0].plot([0], values[:1], "D", color=GROUPS["bound"], label="its 0: the ORM alone")
    axes[0].axhline(vote, label="vote", **VOTE_LINE)
    axes[0].set_title("Paper, GSM8K (%), no intervals", fontweight="normal")
    axes[0].legend(fontsize=7, loc="best", handlelength=1.6)
    for axis in axes[1:]:
        axis.axhline(0, color=INK, linewidth=0.8)
        axis.plot(
            [0, *amounts[1:]], [0, *(v - start for v in values[1:])], color=GROUPS["minos"], marker="o", linewidth=1.2
        )
        axis.set_title("Paper, minus SC + base ORM (points)", fontweight="normal")


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
            xs, ys = [row["budget"] for row in rows], [100 * row["accuracy"] for row in rows]
            panel.plot(xs, ys, color=colour, marker="o", markeredgecolor=PAPER, label=label)
            lows, highs = ([100 * row[end] for row in rows] for end in ("ci_low", "ci_high"))
            panel.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
            panel.set_xscale("log", base=2)
            panel.legend(fontsize=7.5, loc="lower right")
        panel.set_title(AXES[axis])
        panel.set_xlabel("budget", fontsize=8)
    panels[0].set_ylabel("accuracy (%)", fontsize=8)
    figure.tight_layout()
    return figure, "Accuracy over generated tokens and over FLOPs of solving and verifying"


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
