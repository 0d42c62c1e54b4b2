"""ProcessBench: solutions of many models with the first wrong step as people see it (0-based, -1: none).

Columns: id, generator, problem, steps, final_answer_correct, label.
"""

from collections.abc import Sequence
from typing import Any

from minos_ray.imports.grouping import Collection
from minos_ray.labels.latex import extract_latex
from minos_ray.problems.files import BadRow, records
from minos_ray.problems.rows import text_of
from minos_ray.store import Manifest, Run


def import_processbench(src: str, run: Run) -> list[Manifest]:
    """Problems, candidates and labels of one or more of its files, all in split test."""
    found = Collection("processbench", "test", "human")
    for record in records(src):
        try:
            if isinstance(record, BadRow):
                raise record
            add(found, record)
        except BadRow as error:
            found.dropped[str(error)] += 1
    return found.write(run, "processbench", src, {})


def add(found: Collection, record: dict[str, Any]) -> None:
    """Adds one solution; BadRow when its label does not fit its steps."""
    question, name, generator = (text_of(record, column) for column in ("problem", "id", "generator"))
    steps, first = record.get("steps"), record.get("label")
    if not isinstance(steps, list) or not steps or not all(isinstance(step, str) and step.strip() for step in steps):
        raise BadRow("'steps' is not a list of texts")
    if not isinstance(first, int) or not -1 <= first < len(steps):
        raise BadRow("'label' is not -1 or the number of a step")
    if not isinstance(record.get("final_answer_correct"), bool):
        raise BadRow("'final_answer_correct' is not true or false")
    answer = extract_latex("\n".join(steps))
    dataset = f"processbench-{name.rpartition('-')[0]}"
    found.add(question, dataset, generator, steps, until_error(steps, first), answer, record["final_answer_correct"])


def until_error(steps: Sequence[str], first: int) -> list[int]:
    """1 before the first wrong step, 0 at it, -1 (unknown) behind it; all 1 when none is wrong."""
    if first < 0:
        return [1] * len(steps)
    return [1] * first + [0] + [-1] * (len(steps) - first - 1)
