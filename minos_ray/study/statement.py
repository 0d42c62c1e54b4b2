"""What a study says: tables as Markdown (the primary comparison, the curve, the ablations, the convergence), and
pictures as SVG files (the curve over critiques, the arms against Minos and base, the convergence).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from minos_ray.config.training import LABEL_ARM
from minos_ray.report.budget import Rows, gains, levels
from minos_ray.report.figures import GROUPS, INK, PAPER, drawn, grid
from minos_ray.study.comparison import Curve, learning_curve
from minos_ray.study.grid import Grid, Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "f1": "F1",
    "auc": "AUC",
    "accuracy": "accuracy",
    "step_f1": "first-error F1",
    "best_of_n": "best-of-n",
    "weighted_vote": "weighted vote",
}
# What the tables of arms show; study.json has everything.
IN_TABLES = ("f1", "step_f1", "weighted_vote")
Answer = Mapping[str, Any]
PICTURES = ("study/curve.svg", "study/arms.svg", "study/convergence.svg", "study/labels.svg")
SHOWN = ("f1", "auc", "weighted_vote", "best_of_n")
SIDES = (("base", "base", GROUPS["base"]), ("minos", "Minos", GROUPS["minos"]))
# What the report's own CSS names, for a page that does not have it.
LIGHT = {"currentColor": "#1d2127", "var(--card)": "#ffffff"}


def statement(answer: Answer) -> str:
    """All tables, in points (per cent) with 95 % intervals over seeds."""
    sample, vote, oracle = (100 * answer["plain"][name] for name in ("one_sample", "self_consistency", "oracle"))
    candidates = f"Of {answer['n']} candidates: one sample {sample:.1f}, vote {vote:.1f}, oracle {oracle:.1f}."
    counts = counts_of(answer)
    curve = head("verifier, measure", *(f"{count:,}" for count in counts), "all minus none", "p (trend)")
    for entry in answer["curves"]:
        means, last = (f"{100 * point['mean']:.1f}" for point in entry["points"]), entry["points"][-1]
        minus = between(last["difference"], last["difference_ci_low"], last["difference_ci_high"])
        p = entry["trend"]["p_trials"]
        curve.append(line(measured(entry), *means, minus, f"{p:.4f}" if p >= 0.0001 else "< .0001"))
    arms = head("arm", "verifier, measure", "mean", "minus base", "minus Minos")
    for entry in answer["arms"]:
        if entry["measure"] in IN_TABLES:
            differences = (gain(entry[key]) if key in entry else "" for key in ("minus_base", "minus_minos"))
            arms.append(line(title(entry["arm"], counts), measured(entry), f"{100 * entry['mean']:.1f}", *differences))
    versus = head("arms", "verifier, measure", "difference")
    for entry in answer["versus"]:
        if entry["measure"] in IN_TABLES:
            versus += [line(pair, measured(entry), gain(difference)) for pair, difference in entry["pairs"].items()]
    reached = head("arm", "verifier", "steps to base's final F1, by seed", "of")
    for entry in answer["reached"]:
        steps = ", ".join("never" if step is None else str(step) for step in entry["steps"])
        reached.append(line(title(entry["arm"], counts), entry["kind"].upper(), steps, str(entry["last"])))
    stage_1 = head("arm", "rows of stage 1", "steps", "tokens")
    for entry in answer["stage_1"]:
        amounts = (f"{entry[name]:,.0f}" for name in ("rows", "steps", "tokens"))
        stage_1.append(line(title(entry["arm"], counts), *amounts))
    critics = head("arm", "AUC of the bought critic", "of the refined one", "difference")
    for entry in answer["critics"]:
        means = (f"{100 * entry[name]:.1f}" for name in ("bought", "refined"))
        critics.append(line(title(entry["arm"], counts), *means, gain(entry["refined_minus_bought"])))
    tables = [curve, arms, versus, reached, stage_1, *labels(answer["labels"]), critics]
    parts = [primary(answer), [candidates], *(table for table in tables if len(table) > 2)]  # more than its head
    return "\n\n".join(map("\n".join, parts)) + "\n"


def primary(answer: Answer) -> Iterator[str]:
    """The comparison that counts, and a second line where another one had been named before the trials."""
    comparison, before = answer["primary"], answer["named"]
    seeds = ", ".join(f"{100 * value:+.1f}" for value in comparison["seeds"])
    name = f"{NAMES[comparison['measure']]} of the {comparison['kind'].upper()}"
    when = "NOT named before" if before["changed"] else "Named before"
    yield f"{when}: {name}, Minos minus base: {gain(comparison)} points over {len(answer['seeds'])} seeds ({seeds})."
    if before["changed"]:
        first = f"{before['primary']['measure']} of {before['primary']['kind']}, seeds {before['seeds']}"
        yield f"Named on {before['time']}: {first}. Changed since: {', '.join(before['changed'])}."


def labels(entries: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Base and Minos over the amounts of labels; how many times Minos' labels and steps base needs, by seed."""
    if not entries:
        return
    curves = head("verifier, measure", "stage 1", *(f"{count:,} labels" for count in entries[0]["amounts"]))
    ratios = head("verifier, measure", "labels of base for one of Minos", "by seed", "steps", "curves apart")
    for entry in entries:
        for side in ("base", "minos"):
            points = [f"{100 * p['mean']:.1f} {ends(p['ci_low'], p['ci_high'])}".strip() for p in entry[side]]
            curves.append(line(measured(entry), side, *points))
        times = [entry["ratio"], entry["steps_ratio"]]
        texts = [
            f"{t['mean']:.2f}" + ("" if t["ci_low"] is None else f" [{t['ci_low']:.2f}, {t['ci_high']:.2f}]")
            for t in times
        ]
        seeds = ", ".join(f"{ratio:.2f}" for ratio in times[0]["seeds"])
        ratios.append(line(measured(entry), texts[0], seeds, texts[1], str(times[0]["bounded"])))
    yield curves
    yield ratios


def title(arm: str, counts: Sequence[int]) -> str:
    """An arm in words: `base`, `750 critiques`, `Minos`, or the name of the ablation."""
    names = {f"critiques-{count:06d}": f"{count:,} critiques" for count in counts}
    names |= {f"critiques-{counts[0]:06d}": "base", f"critiques-{counts[-1]:06d}": f"Minos ({counts[-1]:,} critiques)"}
    if match := LABEL_ARM.fullmatch(arm):
        return f"{match[2]}, {int(match[1]):,} labels"
    return names.get(arm, arm)


def counts_of(answer: Answer) -> list[int]:
    """The amounts of critiques, ascending."""
    return [point["critiques"] for point in answer["curves"][0]["points"]]


def measured(entry: Mapping[str, Any]) -> str:
    """`ORM, F1`."""
    return f"{entry['kind'].upper()}, {NAMES[entry['measure']]}"


def gain(difference: Mapping[str, Any]) -> str:
    """`+3.1 [1.2, 5.0]`, and the interval over problems where there is one."""
    inner = ends(difference.get("problems_low"), difference.get("problems_high"))
    outer = between(difference["mean"], difference["ci_low"], difference["ci_high"])
    return f"{outer} (problems {inner})" if inner else outer


def between(mean: float, low: float | None, high: float | None) -> str:
    """A difference with its interval, in points."""
    return f"{100 * mean:+.1f} {ends(low, high)}".strip()


def ends(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return "" if low is None or high is None else f"[{100 * low:.1f}, {100 * high:.1f}]"


def head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return [line(*names), line(*("---" for _ in names))]


def line(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


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
