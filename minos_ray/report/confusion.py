"""What the critic says of the types of errors: its table, and the confusion matrix with the types that are known."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minos_ray.report.canvas import INK, MINOS, drawn, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TypeRow:
    """One type: how many steps of each source the critic sorts under it, their shares, and the paper's share."""

    kind: str
    steps: dict[str, int]
    shares: dict[str, float]
    paper: float


def type_rows(found: Mapping[str, Any] | None, paper: Mapping[str, float]) -> list[TypeRow]:
    """One row per type; none when the critic was not asked."""
    sources = {name: kinds for name, kinds in (found or {}).get("by_source", {}).items() if sum(kinds.values())}
    return [
        TypeRow(
            kind,
            {name: kinds[kind] for name, kinds in sources.items()},
            {name: kinds[kind] / sum(kinds.values()) for name, kinds in sources.items()},
            paper[kind],
        )
        for kind in (paper if sources else ())
    ]


@drawn
def confusion(matrix: Mapping[str, Mapping[str, int]]) -> "tuple[Figure, str] | None":
    """Known types as rows, the critic's as columns; a cell's shade is its share of the row, its number the steps."""
    rows = [kind for kind, said in matrix.items() if sum(said.values())]
    if not rows:
        return None
    columns = list(next(iter(matrix.values())))
    figure, (axis,) = grid(1, 1, height=0.9 + 0.42 * len(rows), width=6.4)
    for y, known in enumerate(rows):
        total = sum(matrix[known].values())
        for x, said in enumerate(columns):
            steps = matrix[known][said]
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
