"""The pictures of the report, as inline SVG."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from minos_ray.report import paper
from minos_ray.report.canvas import BOUND, GROUPS, INK, MARKERS, PAPER, VOTE, drawn, grid
from minos_ray.report.gather import Reach
from minos_ray.report.results import MAIN, METHOD_NAMES, Difference, first_upper, gap_name, headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
PAPER_REACH = Reach("orm", f1=0.859, last=900, base=420, minos=120)
Curves = Mapping[str, Sequence[Mapping[str, float]]]


def split(verifier: str) -> tuple[str, str]:
    """Kind and start of a verifier: `orm-minos` is an `orm` that starts from `minos`."""
    kind, _, start = verifier.rpartition("-")
    return (kind, start) if start in {"base", "minos"} else (verifier, "other")


@drawn
def accuracy_over_n(evaluation: Mapping[str, Any]) -> "tuple[Figure, str] | None":
    """One panel per method and kind of verifier, the vote in each; single samples and perfection apart."""
    series: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    shown = [m for m in evaluation["methods"] if m["method"] in MAIN and m["n"] <= headline(evaluation)]
    for entry in sorted(shown, key=lambda m: m["n"]):
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
        over_n(axis, panel_name(method, kind), lines)
    same_height(axes[: len(panels)])
    bounds(axes[len(panels)], series)
    for axis in axes[len(panels) + 1 :]:
        axis.set_axis_off()
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("accuracy (%)", fontsize=8)
    figure.tight_layout(h_pad=1.2)
    return figure, "Accuracy over the number of candidates n, one panel per method"


def panel_name(method: str, kind: str) -> str:
    """The method and the kind of verifier as a title."""
    name = first_upper(METHOD_NAMES.get(method, method))
    return name if kind == "critic" else f"{name}, {kind.upper()}"


def over_n(axis: "Axes", title: str, lines: Sequence[tuple[str, str, Sequence[Mapping[str, Any]]]]) -> None:
    """Lines (group, label, points) over n on a log2 axis; the 95 % interval of each at its end, side by side."""
    largest = max((m["n"] for _, _, points in lines for m in points), default=1)
    for place, (group, label, points) in enumerate(line for line in lines if line[2]):
        colour, xs = GROUPS[group], [m["n"] for m in points]
        ys = [100 * m["accuracy"] for m in points]
        axis.plot(xs, ys, color=colour, marker=MARKERS[group], markeredgecolor=PAPER, markeredgewidth=0.6, label=label)
        end, at = points[-1], largest * 1.3 * 1.22**place
        axis.plot([at, at], [100 * end["ci_low"], 100 * end["ci_high"]], color=colour, linewidth=2.4, alpha=0.55,
                  solid_capstyle="butt")  # fmt: skip
    ticks = [2**k for k in range(0, int(largest).bit_length(), 2) if 2**k <= largest]
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.set_xlabel("candidates per problem, n", fontsize=8)
    axis.set_title(title)
    axis.legend(fontsize=7.5, loc="lower left", handlelength=1.6, borderaxespad=0.2, labelspacing=0.3)


def bounds(axis: "Axes", series: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> None:
    """Perfect selection above, the vote, one sample below."""
    lines = [("bound", "perfect selection", "pass@n"), ("vote", "self-consistency", "self-consistency")]
    over_n(axis, "Bounds (own scale)", [(group, label, series.get((method, ""), [])) for group, label, method in lines])
    for entry in series.get(("pass@1", ""), [])[-1:]:
        axis.axhline(100 * entry["accuracy"], color=BOUND, linewidth=1, linestyle=(0, (4, 3)), label="one sample")
        axis.legend(fontsize=7.5, loc="center right", bbox_to_anchor=(0.86, 0.55), handlelength=1.6)


def same_height(axes: "Sequence[Axes]") -> None:
    """All panels on the scale of the widest."""
    low = min((axis.get_ylim()[0] for axis in axes), default=0)
    high = max((axis.get_ylim()[1] for axis in axes), default=100)
    for axis in axes:
        axis.set_ylim(low, high)


@drawn
def forest(found: Sequence[Difference]) -> "tuple[Figure, str] | None":
    """Minos minus base with intervals, one row each, zero as a line."""
    if not found:
        return None
    figure, (axis,) = grid(1, 1, height=0.55 + 0.3 * len(found), width=6.4)
    for place, d in enumerate(reversed(found)):
        low, mid, high = (100 * v for v in (d.low, d.value, d.high))
        colour = GROUPS["minos"] if d.sign else VOTE
        axis.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axis.plot([mid], [place], marker="o", markersize=6, color=colour, markeredgecolor=PAPER)
    axis.axvline(0, color=INK, linewidth=0.9)
    axis.set_yticks(range(len(found)), [gap_name(d) for d in reversed(found)])
    axis.set_ylim(-0.6, len(found) - 0.4)
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
    for at, metric in enumerate(metrics):
        for place, kind in enumerate(kinds):
            axis = axes[at * columns + place]
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
        kept = [p for p in points if p.get(metric) is not None]
        start = split(name)[1]
        axis.plot([p["step"] for p in kept], [p[metric] for p in kept], color=GROUPS[start], marker=MARKERS[start],
                  markersize=3, label=name)  # fmt: skip
        if start == "base" and kept:
            axis.axhline(kept[-1][metric], color=GROUPS["base"], linewidth=0.8, linestyle=(0, (3, 3)))
    axis.legend(fontsize=7.5, loc="lower right")
    axis.set_xlabel("training step", fontsize=8)


def axes_over(figure: "Figure", place: "Axes") -> "Axes":
    """New axes where others of a grid stand."""
    spec = place.get_subplotspec()
    assert spec is not None
    return figure.add_subplot(spec)


def papers(figure: "Figure", place: "Axes") -> None:
    """The paper's F1 of its ORM, on axes of its own."""
    axis = axes_over(figure, place)
    for name, values in paper.CONVERGENCE.items():
        start = split(name)[1]
        axis.plot(paper.CONVERGENCE_STEPS, values, color=GROUPS[start], linewidth=1.2, label=f"paper {name}")
    axis.axhline(paper.CONVERGENCE["orm-base"][-1], color=GROUPS["base"], linewidth=0.8, linestyle=(0, (3, 3)))
    axis.set_title("Paper, ORM: F1 (own scale)", fontweight="normal")
    axis.legend(fontsize=7.5, loc="lower right")
    axis.set_xlabel("training step", fontsize=8)


def shares(figure: "Figure", place: "Axes", reached: Sequence[Reach]) -> None:
    """How much of the training base and Minos need for the F1 with which base ends, the paper's below."""
    axis = axes_over(figure, place)
    names = []
    for at, r in enumerate([*reached, PAPER_REACH]):
        for group, step, shift in (("base", r.base, -0.19), ("minos", r.minos, 0.19)):
            share = 100 * (r.last if step is None else step) / r.last
            pale = 0.45 if r is PAPER_REACH else 0.9
            axis.barh(at + shift, share, height=0.34, color=GROUPS[group], alpha=pale)
            axis.text(share + 2, at + shift, "never" if step is None else f"{step}", fontsize=7.5, va="center")
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
    groups[f"paper, {paper.DATASETS[dataset]}"] = paper.error_shares(dataset)
    kinds = list(dict.fromkeys(kind for values in groups.values() for kind in values))
    colours = {"train": GROUPS["base"], "test": GROUPS["minos"]}
    figure, (axis,) = grid(1, 1, height=2.3, width=6.4)
    width = 0.8 / len(groups)
    for at, (name, values) in enumerate(groups.items()):
        places = [k + (at - (len(groups) - 1) / 2) * width for k in range(len(kinds))]
        heights = [100 * values.get(kind, 0.0) for kind in kinds]
        axis.bar(places, heights, width=width * 0.9, color=colours.get(name, VOTE), label=name)
    axis.set_xticks(range(len(kinds)), kinds)
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("% of wrong steps", fontsize=8)
    axis.legend(fontsize=7.5)
    return figure, "Share of each error type among wrong steps, beside the paper"
