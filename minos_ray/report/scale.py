"""The scale-up study: its picture beside the paper's points, and the table of trends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minos_ray.evaluation.trend import rising, slope_weights
from minos_ray.report import paper
from minos_ray.report.canvas import GROUPS, INK, PAPER, drawn, grid
from minos_ray.report.results import first_upper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (GROUPS["minos"], GROUPS["other"])
VOTE_LINE: dict[str, Any] = {"color": GROUPS["vote"], "linewidth": 1.2, "linestyle": (0, (4, 3))}
ENDS = {"mean": "", "difference": "difference_"}
Rows = Sequence[Mapping[str, Any]]


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
    # The paper has one training for each amount, so only the test over trials can be made.
    amounts, values = zip(*paper.SCALE[1:], strict=True)
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
    amounts, values = zip(*paper.SCALE, strict=True)
    start, vote = (paper.TABLE[method]["gsm8k"] for method in (("weighted-vote", "orm-base"), ("self-consistency", "")))
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
