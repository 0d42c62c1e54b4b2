"""Writing imported artefacts: their inputs say where they come from, so stages take them as fresh."""

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import pyarrow as pa

from minos_ray.errors import UserError
from minos_ray.files.read import download, is_hub
from minos_ray.store import columns
from minos_ray.store.columns import Row
from minos_ray.store.contents import of_path
from minos_ray.store.run import Artefact, Manifest, Run


def require_rows(rows: Sized, src: str, dropped: Mapping[str, int]) -> None:
    """UserError when nothing is left to import; before `begin_import` clears what is there."""
    if not rows:
        raise UserError(f"import: no row of {src} can be used; dropped: {dict(dropped)}")


def begin_import(run: Run, names: Iterable[str], form: str, src: str, **options: object) -> dict[str, Artefact]:
    """The artefacts, ready to be written, with what is imported, and its content, as their only input."""
    digest = of_path(download(src) if is_hub(src) else src)
    inputs = {"import": {"format": form, "source": src, "content": digest, "options": options}}
    artefacts = {name: run.artefact(name) for name in names}
    for artefact in artefacts.values():
        artefact.begin(inputs)
    return artefacts


def write_rows(
    artefact: Artefact, parts: Mapping[str, list[Row]], dropped: Mapping[str, int], **details: Any
) -> Manifest:
    """`write_tables` of rows that are not tables yet; all parts have the same columns."""
    table, tables, start = columns.table(artefact.name, [row for rows in parts.values() for row in rows]), {}, 0
    for name, rows in parts.items():
        if rows:
            tables[name] = [table.slice(start, len(rows))]
            start += len(rows)
    return write_tables(artefact, tables, dropped, **details)


def write_tables(
    artefact: Artefact,
    parts: Mapping[str, list[pa.Table]],
    dropped: Mapping[str, int],
    notes: Mapping[str, int] | None = None,
    **details: Any,
) -> Manifest:
    """Writes tables by part, checked over all parts, and completes the artefact; for problems a part is a split.

    `notes` are counts of rows that were kept with a reservation.
    """
    tables = {name: pa.concat_tables(pieces) for name, pieces in parts.items()}
    if not any(map(len, tables.values())):
        raise UserError(f"import: no row of {artefact.name} is left; dropped: {dict(dropped)}")
    columns.validate(artefact.name, pa.concat_tables(tables.values()))
    for name, table in tables.items():
        artefact.write_part(name, table)
    counts = {"rows": sum(map(len, tables.values()))}
    if artefact.name == "problems":
        counts |= {name: len(table) for name, table in tables.items()}
    return artefact.complete({**counts, **(notes or {})}, dict(dropped), details)


def candidate(problem_id: str, index: int, text: str, model: str) -> Row:
    """A row of `candidates`; nobody counted its tokens (0)."""
    return {
        "candidate_id": f"{problem_id}/{index}",
        "problem_id": problem_id,
        "index": index,
        "text": text,
        "finish_reason": "stop",
        "num_tokens": 0,
        "model": model,
    }


def label(row: Row, answer: str | None, correct: bool, steps: list[str], step_labels: list[int], source: str) -> Row:
    """The row of `labels` of a candidate whose labels are given."""
    return {
        "candidate_id": row["candidate_id"],
        "problem_id": row["problem_id"],
        "answer": answer,
        "correct": correct,
        "status": "correct" if correct else "no_answer" if answer is None else "wrong",
        "steps": steps,
        "step_labels": step_labels,
        "step_scores": None,
        "step_source": source,
        "error_types": [],
    }
