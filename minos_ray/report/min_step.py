"""Where the lowest step score of a PRM falls: at which step, and before, at or after the first wrong one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from minos_ray.evaluation.verdicts import flat
from minos_ray.report.canvas import BOUND, GROUPS, INK, MINOS, OTHER, drawn, grid
from minos_ray.report.results import group
from minos_ray.store.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 8  # steps with a bar of their own; later ones share one
SIDES = {"before": BOUND, "at": MINOS, "after": OTHER}


@dataclass(frozen=True)
class MinRow:
    """One verifier: solutions by the step of the minimum; `last` is the share of scored solutions with it at the end.

    `sides` counts wrong solutions by where the minimum lies against the first wrong step.
    """

    verifier: str
    by_step: list[int]
    last: float | None
    sides: dict[str, int]

    @property
    def solutions(self) -> int:
        """Solutions with scored and labelled steps."""
        return sum(self.by_step)

    @property
    def first(self) -> float:
        """The share with the minimum at the first step."""
        return self.by_step[0] / self.solutions

    def side(self, name: str) -> float | None:
        """The share of wrong solutions on one side, None without any."""
        wrong = sum(self.sides.values())
        return self.sides[name] / wrong if wrong else None


def min_rows(meta: Sequence[Mapping[str, Any]], last: Mapping[str, float]) -> list[MinRow]:
    """One row per PRM (or critic) that was judged by steps; `meta` and `last` as in evaluation.json and `last_shares`.

    The score of an ORM is the last step's, so its lowest says nothing.
    """
    by_step = [m for m in meta if m["level"] == "step" and not m["verifier"].startswith("orm")]
    found = [m for m in by_step if sum(m["min"]["by_step"])]
    return [MinRow(m["verifier"], m["min"]["by_step"], last.get(m["verifier"]), m["min"]["first_error"]) for m in found]


def last_shares(run: Run, verifiers: Sequence[str]) -> dict[str, float]:
    """Per verifier: the share of solutions whose last step has the lowest score (the first of equals counts)."""
    prms = [name for name in verifiers if name.startswith("prm")]
    there = [name for name in prms if run.artefact(f"scores/{name}").manifest() is not None]
    found = {name: last_share(run, name) for name in there}
    return {name: share for name, share in found.items() if share is not None}


def last_share(run: Run, name: str) -> float | None:
    """Read part by part; a solution with a score that is no number is left out; None when there is none."""
    artefact, last, scored = run.artefact(f"scores/{name}"), 0, 0
    for part in artefact.part_names():
        steps = flat(artefact.read_part(part, ["step_scores"])["step_scores"])
        owners = np.repeat(np.arange(len(steps.lengths)), steps.lengths)
        odd = np.bincount(owners[np.isnan(steps.values)], minlength=len(steps.lengths)) > 0
        some = steps.some((steps.lengths > 0) & ~odd)
        last += int((some.first_lowest() == some.lengths - 1).sum())
        scored += len(some.lengths)
    return last / scored if scored else None


@drawn
def where_min_falls(rows: Sequence[MinRow]) -> "tuple[Figure, str] | None":
    """Left: share of solutions over the step of the minimum; right: wrong solutions, against the first error."""
    if not rows:
        return None
    figure, (left, right) = grid(1, 2, height=2.5, gridspec_kw={"width_ratios": [1.5, 1]})
    by_step(left, rows)
    against_first_error(right, [row for row in rows if sum(row.sides.values())])
    figure.tight_layout(w_pad=2)
    return figure, "Where the lowest step score falls"


def by_step(axis: "Axes", rows: Sequence[MinRow]) -> None:
    """One bar per verifier and step."""
    most = max(len(row.by_step) for row in rows)
    places = range(min(most, SHOWN + 1))
    width = 0.8 / len(rows)
    for at, row in enumerate(rows):
        counts = [*row.by_step[:SHOWN], sum(row.by_step[SHOWN:])][: len(places)]
        counts += [0] * (len(places) - len(counts))
        shift = (at - (len(rows) - 1) / 2) * width
        axis.bar([k + shift for k in places], [100 * c / row.solutions for c in counts], width=width * 0.9,
                 color=GROUPS[group(row.verifier)], label=row.verifier)  # fmt: skip
    axis.set_xticks(places, [str(k + 1) if k < SHOWN else f"{SHOWN + 1}+" for k in places])
    axis.set_xlabel("step with the lowest score", fontsize=8)
    axis.set_ylabel("% of solutions", fontsize=8)
    axis.set_title("By step")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.2)
    axis.grid(axis="x", visible=False)
    axis.legend(fontsize=7.5, loc="upper left", ncols=len(rows))


def against_first_error(axis: "Axes", rows: Sequence[MinRow]) -> None:
    """One stacked bar per verifier; the numbers inside are per cent."""
    for at, row in enumerate(rows):
        start = 0.0
        for side, colour in SIDES.items():
            share = 100 * (row.side(side) or 0.0)
            axis.barh(at, share, left=start, height=0.55, color=colour, alpha=0.75, label=side if at == 0 else None)
            if share >= 8:
                axis.text(start + share / 2, at, f"{share:.0f}", ha="center", va="center", fontsize=8, color=INK)
            start += share
    axis.set_yticks(range(len(rows)), [row.verifier for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_xlim(0, 100)
    axis.grid(visible=False)
    axis.set_xlabel("% of wrong solutions", fontsize=8)
    axis.set_title("Against the first wrong step", pad=18)
    if rows:
        axis.legend(fontsize=7.5, ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 0.98), handlelength=1.2)
