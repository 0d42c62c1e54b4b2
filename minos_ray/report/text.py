"""The results as plain text, for the end of `minos demo` and `minos run`."""

from collections.abc import Mapping
from typing import Any

from minos_ray.report.results import Row, compared, headline, rows
from minos_ray.report.statement import interval, percent, signed, state


def results_table(evaluation: Mapping[str, Any]) -> str:
    """A table of every method at the headline n, and the statement below it."""
    found = rows(evaluation)
    lines = [("method", "what is done", "problems", "accuracy", "95 % interval", "minus vote")]
    lines += [cells(r) for r in found]
    widths = [max(len(line[k]) for line in lines) for k in range(6)]
    text = [aligned(line, widths) for line in lines]
    text.insert(1, "-" * (sum(widths) + 10))
    title = f"{compared(evaluation)} test problems, n = {headline(evaluation)}"
    return "\n".join([title, *text, "", *state(evaluation)])


def cells(r: Row) -> tuple[str, str, str, str, str, str]:
    """One row as text."""
    lead = f"{signed(r.lead.value)} {interval(r.lead.low, r.lead.high)}" if r.lead else ""
    return (r.name, r.recipe, f"{r.problems:,}", percent(r.accuracy), interval(r.low, r.high), lead)


def aligned(line: tuple[str, ...], widths: list[int]) -> str:
    """Words to the left, numbers to the right."""
    words = [cell.ljust(width) for cell, width in zip(line[:2], widths, strict=False)]
    numbers = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
    return "  ".join([*words, *numbers]).rstrip()
