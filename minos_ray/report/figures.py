"""The pictures of the report: from matplotlib to SVG that lives inside the page, whose text is text, and which follows
the page's colours.
"""

import functools
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec

from markupsafe import Markup

from minos_ray.report.results import (
    MAIN,
    METHOD_NAMES,
    PAPER_CONVERGENCE,
    PAPER_CONVERGENCE_STEPS,
    PAPER_DATASETS,
    Difference,
    first_upper,
    gap_name,
    headline,
    paper_error_shares,
)
from minos_ray.report.statement import MinRow, Reach

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

# Stand-ins that matplotlib draws with; the page says what they are in light and in dark.
INK, PAPER = "#010203", "#fdfcfb"
THEME = {INK: "currentColor", PAPER: "var(--card)"}

# Colours that stay apart for colour-blind eyes and on white as on near-black.
MINOS, BASE, VOTE, BOUND, OTHER = "#2a7fc9", "#d9822b", "#7d838b", "#b4577f", "#2f9e77"
GROUPS = {"minos": MINOS, "base": BASE, "vote": VOTE, "bound": BOUND, "other": OTHER}
# From 0 over 0.5 to 1: orange, grey, blue.
HEAT = ((217, 122, 30), (150, 152, 158), (36, 118, 200))
TINT = 0.42  # how much of it lies behind text; more would cost the text its contrast
MARKERS = {"minos": "o", "base": "s", "vote": "", "bound": "", "other": "D"}

STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(
        ["text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"], INK
    ),
}

COLUMNS = 3
PAPER_REACH = Reach("orm", f1=0.859, last=900, base=420, minos=120)
SHOWN = 8  # steps with a bar of their own; later ones share one
SIDES = {"before": BOUND, "at": MINOS, "after": OTHER}
Curves = Mapping[str, Sequence[Mapping[str, float]]]


def drawn(draw: "Callable[P, tuple[Figure, str] | None]") -> "Callable[P, Markup | None]":
    """Turns a function that draws a figure and says what it shows into one that gives inline SVG, or None."""

    @functools.wraps(draw)
    def inline(*args: P.args, **kwargs: P.kwargs) -> Markup | None:
        import matplotlib

        matplotlib.use("Agg")
        style: Any = {**STYLE, "svg.hashsalt": inline.__name__}  # ids that are the same in every run
        with matplotlib.rc_context(style):
            picture = draw(*args, **kwargs)
            return svg(*picture, inline.__name__) if picture else None

    return inline


def grid(
    rows: int, columns: int, height: float = 2.3, width: float = 9.6, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """A figure of equal axes, as a flat list; sizes in inches."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **options)
    return figure, list(axes.flat)


def svg(figure: "Figure", alt: str, name: str) -> Markup:
    """The figure as inline SVG with ids of its own, without metadata; the figure is closed."""
    import matplotlib.pyplot as plt

    sink = io.StringIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(sink, format="svg", bbox_inches="tight", pad_inches=0.04, metadata=nothing)
    plt.close(figure)
    text = sink.getvalue()
    text = re.sub(r'\bid="', f'id="{name}-', text[text.index("<svg") :])
    text = text.replace("url(#", f"url(#{name}-").replace('href="#', f'href="#{name}-')
    for stand_in, colour in THEME.items():
        text = text.replace(stand_in, colour)
    text = re.sub(r'^<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r"<svg \1", text, count=1)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(alt)}" ', 1))


def split(verifier: str) -> tuple[str, str]:
    """Kind and start of a verifier: `orm-minos` is an `orm` that starts from `minos`."""
    kind, _, start = verifier.rpartition("-")
    return (kind, start) if start in {"base", "minos"} else (verifier, "other")


@drawn
def accuracy_over_n(evaluation: Mapping[str, Any]) -> "tuple[Figure, str] | None":
    """One panel per method and kind of verifier, the vote in each; single samples and perfection apart."""
    series: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    entries = [m for m in evaluation["methods"] if m["method"] in MAIN and m["n"] <= headline(evaluation)]
    for entry in sorted(entries, key=lambda m: m["n"]):
        series[entry["method"], entry["verifier"] or ""].append(entry)
    if max((len(points) for points in series.values()), default=0) < 2:
        return None
    panels: dict[tuple[str, str], list[str]] = defaultdict(list)
    for method, verifier in sorted(series):
        if verifier:
            panels[method, split(verifier)[0]].append(verifier)
    figure, axes = grid(-(-(len(panels) + 1) // COLUMNS), COLUMNS)
    for axis, ((method, kind), verifiers) in zip(axes, panels.items(), strict=False):
        lines = [("vote", "self-consistency", series.get(("self-consistency", ""), []))]
        lines += [(split(v)[1], v, series[method, v]) for v in verifiers]
        title = first_upper(METHOD_NAMES.get(method, method))
        over_n(axis, title if kind == "critic" else f"{title}, {kind.upper()}", lines)
    limits = [axis.get_ylim() for axis in axes[: len(panels)]]
    for axis in axes[: len(panels)]:  # all on the scale of the widest
        axis.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    # Perfect selection above, the vote, one sample below.
    bounds = axes[len(panels)]
    lines = [("bound", "perfect selection", "pass@n"), ("vote", "self-consistency", "self-consistency")]
    over_n(bounds, "Bounds (own scale)", [(group, label, series.get((name, ""), [])) for group, label, name in lines])
    for entry in series.get(("pass@1", ""), [])[-1:]:
        sample = 100 * entry["accuracy"]
        bounds.axhline(sample, color=BOUND, linewidth=1, linestyle=(0, (4, 3)), label="one sample")
        bounds.legend(fontsize=7.5, loc="center right", bbox_to_anchor=(0.86, 0.55), handlelength=1.6)
    for axis in axes[len(panels) + 1 :]:
        axis.set_axis_off()
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("accuracy (%)", fontsize=8)
    figure.tight_layout(h_pad=1.2)
    return figure, "Accuracy over the number of candidates n, one panel per method"


def over_n(axis: "Axes", title: str, lines: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]]) -> None:
    """Lines (group, label, points) over n on a log2 axis; the 95 % interval of each at its end, side by side."""
    largest = max((m["n"] for _, _, points in lines for m in points), default=1)
    for place, (group, label, points) in enumerate(line for line in lines if line[2]):
        colour, xs = GROUPS[group], [m["n"] for m in points]
        ys = [100 * m["accuracy"] for m in points]
        axis.plot(xs, ys, color=colour, marker=MARKERS[group], markeredgecolor=PAPER, markeredgewidth=0.6, label=label)
        end, x = points[-1], largest * 1.3 * 1.22**place
        axis.plot([x, x], [100 * end["ci_low"], 100 * end["ci_high"]], color=colour, linewidth=2.4, alpha=0.55,
                  solid_capstyle="butt")  # fmt: skip
    ticks = [2**k for k in range(0, int(largest).bit_length(), 2) if 2**k <= largest]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.set_xlabel("candidates per problem, n", fontsize=8)
    axis.set_title(title)
    axis.legend(fontsize=7.5, loc="lower left", handlelength=1.6, borderaxespad=0.2, labelspacing=0.3)


@drawn
def forest(pairs: Sequence[Difference]) -> "tuple[Figure, str] | None":
    """Minos minus base with intervals, one row each, zero as a line."""
    if not pairs:
        return None
    figure, (axis,) = grid(1, 1, height=0.55 + 0.3 * len(pairs), width=6.4)
    for place, d in enumerate(reversed(pairs)):
        low, mid, high = (100 * v for v in (d.low, d.value, d.high))
        colour = GROUPS["minos"] if d.sign else VOTE
        axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot([mid], [place], marker="o", markersize=6, color=colour, markeredgecolor=PAPER)
    axis.axvline(0, color=INK, linewidth=0.9)
    axis.set_yticks(range(len(pairs)), [gap_name(d) for d in reversed(pairs)])
    axis.set_ylim(-0.6, len(pairs) - 0.4)
    axis.grid(axis="y", visible=False)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("points of accuracy, Minos minus base (95 % interval, paired over problems)", fontsize=8)
    return figure, "Paired differences Minos minus base with intervals"


@drawn
def convergence(curves: Curves, reached: Sequence[Reach]) -> "tuple[Figure, str] | None":
    """F1 (above) and AUC (below) over training steps: one column per kind, the paper's ORM in the last."""
    kinds = sorted({split(name)[0] for name, points in curves.items() if points})
    if not kinds:
        return None
    metrics = [m for m in ("f1", "auc") if any(m in p for points in curves.values() for p in points)]
    columns = len(kinds) + 1
    figure, axes = grid(len(metrics), columns, sharey="row")
    for line, metric in enumerate(metrics):
        for place, kind in enumerate(kinds):
            axis = axes[line * columns + place]
            training(axis, {name: points for name, points in curves.items() if split(name)[0] == kind}, metric)
            axis.set_title(f"{kind.upper()}: {metric.upper()}")
            axis.tick_params(labelleft=True)
    for axis in axes[columns - 1 :: columns]:
        axis.set_axis_off()
    papers(figure, axes[columns - 1])
    if len(metrics) > 1 and reached:
        shares(figure, axes[-1], reached)
    figure.tight_layout(h_pad=1.2)
    return figure, "F1 and AUC on held-out candidates over training steps"


def training(axis: "Axes", curves: Curves, metric: str) -> None:
    """One metric over steps, base and Minos, the last value of base as a line."""
    for name, points in sorted(curves.items()):
        measured = [p for p in points if p.get(metric) is not None]
        steps, values, start = [p["step"] for p in measured], [p[metric] for p in measured], split(name)[1]
        axis.plot(steps, values, color=GROUPS[start], marker=MARKERS[start], markersize=3, label=name)
        if start == "base" and measured:
            axis.axhline(values[-1], color=GROUPS["base"], linewidth=0.8, linestyle=(0, (3, 3)))
    axis.legend(fontsize=7.5, loc="lower right")
    axis.set_xlabel("training step", fontsize=8)


def in_place_of(figure: "Figure", empty: "Axes") -> "Axes":
    """New axes where empty ones are, which share the scale of their row."""
    spec = empty.get_subplotspec()
    assert spec is not None
    return figure.add_subplot(spec)


def papers(figure: "Figure", empty: "Axes") -> None:
    """The paper's F1 of its ORM, on axes of its own."""
    axis = in_place_of(figure, empty)
    for name, values in PAPER_CONVERGENCE.items():
        start = split(name)[1]
        axis.plot(PAPER_CONVERGENCE_STEPS, values, color=GROUPS[start], linewidth=1.2, label=f"paper {name}")
    axis.axhline(PAPER_CONVERGENCE["orm-base"][-1], color=GROUPS["base"], linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set_title("Paper, ORM: F1 (own scale)", fontweight="normal")
    axis.legend(fontsize=7.5, loc="lower right")
    axis.set_xlabel("training step", fontsize=8)


def shares(figure: "Figure", empty: "Axes", reached: Sequence[Reach]) -> None:
    """How much of the training base and Minos need for the F1 with which base ends, the paper's below."""
    axis = in_place_of(figure, empty)
    names = []
    for place, r in enumerate([*reached, PAPER_REACH]):
        for start, step, y in (("base", r.base, place - 0.19), ("minos", r.minos, place + 0.19)):
            percent = 100 * (r.last if step is None else step) / r.last
            axis.barh(y, percent, height=0.34, color=GROUPS[start], alpha=0.45 if r is PAPER_REACH else 0.9)
            axis.text(percent + 2, y, "never" if step is None else f"{step}", fontsize=7.5, va="center")
        names.append(r.kind.upper() if r is not PAPER_REACH else "paper")
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.grid(axis="y", visible=False)
    axis.set_title("First step with base's final F1")
    axis.set_xlabel("% of base's steps (orange base, blue Minos)", fontsize=8)


@drawn
def calibration(bins: Mapping[str, Sequence[Mapping[str, float]]]) -> "tuple[Figure, str] | None":
    """Share of right solutions over the score, per kind of verifier; the diagonal is perfect."""
    kinds = sorted({split(name)[0] for name, rows in bins.items() if rows})
    if not kinds:
        return None
    figure, axes = grid(1, len(kinds), height=2.7, width=3.2 * len(kinds), sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        for name, rows in sorted(bins.items()):
            if split(name)[0] == kind and rows:
                start = split(name)[1]
                axis.plot([r["score"] for r in rows], [r["correct"] for r in rows], color=GROUPS[start],
                          marker=MARKERS[start], label=name)  # fmt: skip
        axis.set_title(kind.upper())
        axis.set_xlabel("mean score in the bin", fontsize=8)
        axis.legend(fontsize=7.5, loc="upper left")
    axes[0].set_ylabel("share of right solutions", fontsize=8)
    figure.tight_layout()
    return figure, "Calibration of the verifiers' scores"


@drawn
def errors(splits: Mapping[str, Mapping[str, int]], dataset: str) -> "tuple[Figure, str] | None":
    """The share of each type among wrong steps: per split, and in the paper."""
    if not splits:
        return None
    groups = {split: {k: v / sum(kinds.values()) for k, v in kinds.items()} for split, kinds in splits.items()}
    groups[f"paper, {PAPER_DATASETS[dataset]}"] = paper_error_shares(dataset)
    kinds = list(dict.fromkeys(kind for values in groups.values() for kind in values))
    colours = {"train": GROUPS["base"], "test": GROUPS["minos"]}
    figure, (axis,) = grid(1, 1, height=2.3, width=6.4)
    width = 0.8 / len(groups)
    for place, (name, values) in enumerate(groups.items()):
        places = [k + (place - (len(groups) - 1) / 2) * width for k in range(len(kinds))]
        heights = [100 * values.get(kind, 0.0) for kind in kinds]
        axis.bar(places, heights, width=width * 0.9, color=colours.get(name, VOTE), label=name)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("% of wrong steps", fontsize=8)
    axis.legend(fontsize=7.5)
    return figure, "Share of each error type among wrong steps, beside the paper"


@drawn
def confusion(matrix: Mapping[str, Mapping[str, int]]) -> "tuple[Figure, str] | None":
    """Known types as rows, the critic's as columns; a cell's shade is its share of the row, its number the steps."""
    rows = [kind for kind, counts in matrix.items() if sum(counts.values())]
    if not rows:
        return None
    columns = list(next(iter(matrix.values())))
    figure, (axis,) = grid(1, 1, height=0.9 + 0.42 * len(rows), width=6.4)
    for y, inserted in enumerate(rows):
        total = sum(matrix[inserted].values())
        for x, by_critic in enumerate(columns):
            steps = matrix[inserted][by_critic]
            axis.axhspan(y - 0.47, y + 0.47, (x + 0.02) / len(columns), (x + 0.98) / len(columns), color=MINOS,
                         alpha=0.04 + 0.66 * steps / total, linewidth=0)  # fmt: skip
            axis.text(x, y, f"{steps}", ha="center", va="center", color=INK, fontweight="bold" if x == y else "normal")
    axis.set_xlim(-0.5, len(columns) - 0.5)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xticks(range(len(columns)), columns)
    axis.set_yticks(range(len(rows)), rows)
    axis.set_xlabel("type by the critic", fontsize=8)
    axis.set_ylabel("inserted type", fontsize=8)
    axis.grid(visible=False)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure, "Confusion matrix of inserted error types and the critic's"


@drawn
def where_min_falls(rows: Sequence[MinRow]) -> "tuple[Figure, str] | None":
    """Left: share of solutions over the step of the minimum; right: wrong solutions, against the first error."""
    if not rows:
        return None
    figure, (by_step, by_side) = grid(1, 2, height=2.5, gridspec_kw={"width_ratios": [1.5, 1]})
    minimum_by_step(by_step, rows)
    against_first_error(by_side, [row for row in rows if sum(row.sides.values())])
    figure.tight_layout(w_pad=2)
    return figure, "Where the lowest step score falls"


def minimum_by_step(axis: "Axes", rows: Sequence[MinRow]) -> None:
    """One bar per verifier and step."""
    most = max(len(row.by_step) for row in rows)
    places = range(min(most, SHOWN + 1))
    width = 0.8 / len(rows)
    for place, row in enumerate(rows):
        counts = [*row.by_step[:SHOWN], sum(row.by_step[SHOWN:])][: len(places)]
        counts += [0] * (len(places) - len(counts))
        shift = (place - (len(rows) - 1) / 2) * width
        axis.bar([k + shift for k in places], [100 * c / row.solutions for c in counts], width=width * 0.9,
                 color=GROUPS[split(row.verifier)[1]], label=row.verifier)  # fmt: skip
    axis.set_xticks(places, [str(k + 1) if k < SHOWN else f"{SHOWN + 1}+" for k in places])
    axis.set_xlabel("step with the lowest score", fontsize=8)
    axis.set_ylabel("% of solutions", fontsize=8)
    axis.set_title("By step")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.2)
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=7.5, loc="upper left", ncols=len(rows))


def against_first_error(axis: "Axes", rows: Sequence[MinRow]) -> None:
    """One stacked bar per verifier; the numbers inside are per cent."""
    for place, row in enumerate(rows):
        start = 0.0
        for side, colour in SIDES.items():
            share = 100 * (row.side(side) or 0.0)
            label = side if place == 0 else None
            axis.barh(place, share, left=start, height=0.55, color=colour, alpha=0.75, label=label)
            if share >= 8:
                axis.text(start + share / 2, place, f"{share:.0f}", ha="center", va="center", fontsize=8, color=INK)
            start += share
    axis.set_yticks(range(len(rows)), [row.verifier for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.grid(visible=False)
    axis.set_xlabel("% of wrong solutions", fontsize=8)
    axis.set_title("Against the first wrong step", pad=18)
    if rows:
        axis.legend(fontsize=7.5, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 0.98), handlelength=1.2)


@drawn
def taught(policies: Sequence[Mapping[str, Any]]) -> "tuple[Figure, str] | None":
    """Gold accuracy and the judge's mean score of each policy, with 95 % intervals, on one axis."""
    if not policies:
        return None
    figure, (axis,) = grid(1, 1, width=4.8)
    rounds = [policy["round"] for policy in policies]
    for measure, label, colour in (("gold", "gold accuracy", MINOS), ("proxy", "judge's mean score", OTHER)):
        axis.plot(rounds, [100 * p[measure] for p in policies], color=colour, marker="o", label=label)
        low, high = ([100 * p[f"{measure}_{end}"] for p in policies] for end in ("low", "high"))
        axis.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.set_xticks(rounds)
    axis.set_xlabel("policy (0: the generator)", fontsize=8)
    axis.set_ylabel("% of test solutions", fontsize=8)
    axis.legend(fontsize=7.5)
    return figure, "Gold accuracy and the judge's mean score on test problems over the rounds of teaching"
