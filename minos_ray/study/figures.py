"""The pictures of a study, as SVG files: the curve over critiques, the arms against Minos and base, the convergence."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from minos_ray.report.canvas import GROUPS, INK, PAPER, drawn, grid
from minos_ray.report.scale import Rows, gains, levels
from minos_ray.study.grid import Grid, Trial
from minos_ray.study.statement import NAMES, counts_of, title
from minos_ray.study.trials import Curve, learning_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = ("study/curve.svg", "study/arms.svg", "study/convergence.svg", "study/labels.svg")
SHOWN = ("f1", "auc", "weighted_vote", "best_of_n")
SIDES = (("base", "base", GROUPS["base"]), ("minos", "Minos", GROUPS["minos"]))
# What the report's own CSS names, for a page that does not have it.
LIGHT = {"currentColor": "#1d2127", "var(--card)": "#ffffff"}


def write_figures(grid: Grid, rows: Rows, answer: Mapping[str, Any]) -> None:
    """Writes every picture, on white.

    The learning curves are those of base, Minos and the controls: arms whose stage 1 has no critiques but plain text,
    what extra training alone does.
    """
    controls = [arm for arm in grid.ablations if arm.changes.get("sft.source") in ("candidates", "solutions")]
    drawn_arms = {"base": grid.amounts[0], "Minos": grid.amounts[-1]} | {arm.name: arm for arm in controls}
    curves: dict[str, dict[str, list[Curve]]] = {kind: {} for kind in grid.kinds}
    for name, arm in drawn_arms.items():
        runs = [grid.trial_run(Trial(arm, seed)) for seed in grid.seeds]
        for place, kind in enumerate(grid.kinds):
            curves[kind][name] = [learning_curve(run, grid.verifiers(arm)[place]) for run in runs]
    pictures = (over_critiques(rows, answer), arms(answer), convergence(curves), over_labels(answer["labels"]))
    for name, picture in zip(PICTURES, pictures, strict=True):
        if picture is not None:
            text = str(picture)
            for variable, colour in LIGHT.items():
                text = text.replace(variable, colour)
            end = text.index(">") + 1
            text = f'{text[:end]}<rect width="100%" height="100%" fill="#ffffff"/>{text[end:]}'
            grid.run.write_bytes(name, text.encode())


@drawn
def over_critiques(rows: Rows, answer: Mapping[str, Any]) -> "tuple[Figure, str]":
    """A column per measure: above, every trial and the means; below, the paired differences to no critiques."""
    of_amounts = [row for row in rows if row["arm"].startswith("critiques-")]
    figure, axes = grid(2, len(SHOWN), height=2.5)
    for place, measure in enumerate(SHOWN):
        curves = [curve for curve in answer["curves"] if curve["measure"] == measure]
        levels(axes[place], of_amounts, measure, curves)
        gains(axes[len(SHOWN) + place], of_amounts, curves)
        axes[len(SHOWN) + place].set_xlabel("critiques in stage 1", fontsize=8)
    axes[0].legend(fontsize=7.5, loc="lower right", handlelength=1.6)
    figure.tight_layout(h_pad=1.4)
    return figure, "F1, AUC, weighted vote and best-of-n over the number of critiques, with 95 % intervals over seeds"


@drawn
def arms(answer: Mapping[str, Any]) -> "tuple[Figure, str]":
    """A panel per kind: the primary measure of every arm minus base, and minus Minos, with 95 % intervals."""
    measure = answer["primary"]["measure"]
    kinds = list(dict.fromkeys(entry["kind"] for entry in answer["arms"]))
    entries = [entry for entry in answer["arms"] if entry["measure"] == measure]
    figure, axes = grid(1, len(kinds), height=0.6 + 0.36 * len({entry["arm"] for entry in entries}))
    for axis, kind in zip(axes, kinds, strict=True):
        of_kind = [entry for entry in entries if entry["kind"] == kind]
        panel(axis, of_kind, [title(entry["arm"], counts_of(answer)) for entry in of_kind])
        axis.set_title(f"{NAMES[measure]}, {kind.upper()} (points)")
    axes[0].legend(fontsize=7.5, loc="best", handlelength=1.6)
    figure.tight_layout()
    return figure, "Every arm minus base and minus Minos, with 95 % intervals over seeds"


def panel(axis: "Axes", entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """A line per arm, the first on top."""
    axis.axvline(0, color=INK, linewidth=0.8)
    for aside, (side, name, colour) in zip((0.14, -0.14), SIDES, strict=True):
        key = f"minus_{side}"
        gaps = [(len(entries) - k + aside, entry[key]) for k, entry in enumerate(entries) if key in entry]
        heights = [height for height, _ in gaps]
        axis.plot([100 * gap["mean"] for _, gap in gaps], heights, "o", color=colour, label=f"minus {name}")
        for height, gap in gaps:
            if gap["ci_low"] is not None:
                axis.plot([100 * gap["ci_low"], 100 * gap["ci_high"]], [height] * 2, color=colour, alpha=0.6)
    axis.set_yticks(range(len(entries), 0, -1), names, fontsize=8)
    axis.set_ylim(0.4, len(entries) + 0.6)


@drawn
def convergence(kinds: Mapping[str, Mapping[str, list[Curve]]]) -> "tuple[Figure, str]":
    """A panel per kind: F1 on held-out rows over the steps of stage 2, each seed faint, the mean over seeds."""
    colours = (GROUPS["base"], GROUPS["minos"], GROUPS["other"], GROUPS["bound"])
    figure, axes = grid(1, len(kinds), height=2.8)
    for axis, (kind, by_arm) in zip(axes, kinds.items(), strict=True):
        for colour, (name, curves) in zip(cycle(colours), by_arm.items(), strict=False):
            by_seed = [{point["step"]: 100 * point["f1"] for point in curve} for curve in curves]
            for points in by_seed:
                axis.plot(list(points), list(points.values()), color=colour, alpha=0.18, linewidth=0.9)
            shared = sorted(set.intersection(*map(set, by_seed)))
            means = [np.mean([points[step] for points in by_seed]) for step in shared]
            axis.plot(shared, means, color=colour, marker="o", markeredgecolor=PAPER, label=name)
        axis.set_title(f"F1 on held-out rows (%), {kind.upper()}")
        axis.set_xlabel("steps of stage 2", fontsize=8)
    axes[0].legend(fontsize=7.5, loc="lower right", handlelength=1.6)
    figure.tight_layout()
    return figure, "F1 on held-out rows over the steps of stage 2, base against Minos and plain text"


@drawn
def over_labels(entries: Rows) -> "tuple[Figure, str] | None":
    """A panel per kind and measure: base and Minos over the labels of stage 2, logarithmic, with 95 % intervals."""
    measures = [entry for entry in entries if entry["measure"] in SHOWN[:2]]
    if not measures:
        return None
    figure, axes = grid(1, len(measures), height=2.8)
    for axis, entry in zip(axes, measures, strict=True):
        for side, name, colour in SIDES:
            axis.plot(entry["amounts"], [100 * p["mean"] for p in entry[side]], "o-", color=colour, label=name)
            for amount, p in zip(entry["amounts"], entry[side], strict=True):
                if p["ci_low"] is not None:
                    axis.plot([amount] * 2, [100 * p["ci_low"], 100 * p["ci_high"]], color=colour, alpha=0.5)
        axis.set_xscale("log")
        axis.set_xticks(entry["amounts"], [f"{amount:,}" for amount in entry["amounts"]], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_title(f"{NAMES[entry['measure']]}, {entry['kind'].upper()}: {entry['ratio']['mean']:.1f} x the labels")
        axis.set_xlabel("labels of stage 2", fontsize=8)
    axes[0].legend(fontsize=7.5, loc="lower right", handlelength=1.6)
    figure.tight_layout()
    return figure, "F1 and AUC of base and Minos over the number of labels, with 95 % intervals over seeds"
