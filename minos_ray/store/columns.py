"""Columns of every row artefact, as Arrow schemas."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.errors import UserError

# A row of an artefact or of a file, as a dictionary of its columns.
Row = dict[str, Any]

# Statuses of a label, as the grader gives them. Only the first two are outcomes; the others mean that there is none.
Status = Literal["correct", "wrong", "no_answer", "timeout"]
STATUSES: tuple[Status, ...] = get_args(Status)
GRADED = STATUSES[:2]

STRINGS = pa.list_(pa.string())
LABELS = pa.list_(pa.int8())
FLOATS = pa.list_(pa.float32())

SCHEMAS: dict[str, pa.Schema] = {
    "problems": pa.schema(
        [
            ("problem_id", pa.string()),
            ("dataset", pa.string()),
            ("split", pa.string()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("solution", pa.string()),
        ]
    ),
    "candidates": pa.schema(
        [
            ("candidate_id", pa.string()),
            ("problem_id", pa.string()),
            ("index", pa.int32()),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("num_tokens", pa.int32()),
            ("model", pa.string()),
        ]
    ),
    "labels": pa.schema(
        [
            ("candidate_id", pa.string()),
            ("problem_id", pa.string()),
            ("answer", pa.string()),
            ("correct", pa.bool_()),
            ("status", pa.string()),
            ("steps", STRINGS),
            ("step_labels", LABELS),
            ("step_scores", FLOATS),
            ("step_source", pa.string()),
            ("error_types", STRINGS),
        ]
    ),
    # One row per prefix: `correct` of `completions` reached the gold answer; no completion where a label needs none.
    "rollouts": pa.schema(
        [
            ("prefix_id", pa.string()),
            ("problem_id", pa.string()),
            ("label", pa.int8()),
            ("completions", pa.int32()),
            ("correct", pa.int32()),
            ("no_answer", pa.int32()),
            ("timeout", pa.int32()),
            ("tokens", pa.int32()),
        ]
    ),
    # `error_step` counts from 0 and is -1 in a right solution; `text` is the note, in the form of a critique.
    "inserted": pa.schema(
        [
            ("candidate_id", pa.string()),
            ("problem_id", pa.string()),
            ("source_id", pa.string()),
            ("steps", STRINGS),
            ("step_labels", LABELS),
            ("correct", pa.bool_()),
            ("error_types", STRINGS),
            ("error_step", pa.int32()),
            ("error_type", pa.string()),
            ("text", pa.string()),
        ]
    ),
    "critiques": pa.schema(
        [
            ("candidate_id", pa.string()),
            ("critic", pa.string()),
            ("prompt_version", pa.string()),
            ("text", pa.string()),
            ("step_verdicts", LABELS),
            ("final_verdict", pa.bool_()),
            ("agrees", pa.bool_()),
            ("status", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("completion_tokens", pa.int32()),
            ("cost_usd", pa.float64()),
        ]
    ),
    # One row per critique that a critic of ours wrote (`held-out` has the same columns): beside its verdicts whether
    # they agree with the labels, and how likely they were (`minos_ray.scoring.judge`; empty where nobody asked, or
    # nothing could be read).
    "sampled": pa.schema(
        [
            ("critique_id", pa.string()),
            ("candidate_id", pa.string()),
            ("problem_id", pa.string()),
            ("text", pa.string()),
            ("status", pa.string()),
            ("step_verdicts", LABELS),
            ("final_verdict", pa.bool_()),
            ("agreement", pa.string()),
            ("right", pa.float32()),
            ("steps_right", FLOATS),
            ("tokens", pa.int32()),
        ]
    ),
    # One row per wrong step that the critic was asked about; `known` is the type where an error was inserted.
    "error_types": pa.schema(
        [
            ("error_id", pa.string()),
            ("candidate_id", pa.string()),
            ("problem_id", pa.string()),
            ("source", pa.string()),
            ("step", pa.int32()),
            ("known", pa.string()),
            ("type", pa.string()),
            ("text", pa.string()),
            ("status", pa.string()),
            ("critic", pa.string()),
            ("cost_usd", pa.float64()),
        ]
    ),
    "scores": pa.schema(
        [
            ("candidate_id", pa.string()),
            ("problem_id", pa.string()),
            ("score", pa.float32()),
            ("step_scores", FLOATS),
        ]
    ),
}

# The column that names a row, and the columns that may be null.
KEYS = {
    "problems": "problem_id",
    "candidates": "candidate_id",
    "labels": "candidate_id",
    "rollouts": "prefix_id",
    "inserted": "candidate_id",
    "error_types": "error_id",
    "critiques": "candidate_id",
    "sampled": "critique_id",
    "scores": "candidate_id",
}
NULLABLE = {
    "problems": {"solution"},
    "candidates": set(),
    "labels": {"answer", "step_scores"},
    "rollouts": set(),
    "inserted": set(),
    "error_types": {"known", "type"},
    "critiques": {"final_verdict"},
    "sampled": {"final_verdict", "right"},
    "scores": set(),
}


def table(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table with exactly the schema of `name`; behind it, problems keep their categories as texts.

    A category (level, subject) is a further key whose values are texts, whole numbers or None in all rows.
    """
    rows, schema = list(rows), SCHEMAS[name]
    if name == "problems":
        keys = dict.fromkeys(key for row in rows for key in row if key not in schema.names)
        categories = [key for key in keys if all(isinstance(row.get(key), str | int | None) for row in rows)]
        schema = pa.schema([*schema, *((key, pa.string()) for key in categories)])
        rows = [{**row, **{key: None if row.get(key) is None else str(row[key]) for key in categories}} for row in rows]
    return pa.Table.from_pylist(rows, schema=schema)


def validate(name: str, rows: pa.Table) -> pa.Table:
    """`rows` cast to the schema of `name`; UserError names the first missing column, null or repeated id.

    Problems keep their categories.
    """
    schema = SCHEMAS[name]
    missing = [column for column in schema.names if column not in rows.column_names]
    if missing:
        raise UserError(f"{name}: column '{missing[0]}' is missing; expected {', '.join(schema.names)}")
    categories = [f for f in rows.schema if f.name not in schema.names and pa.types.is_string(f.type)]
    expected = pa.schema([*schema, *categories]) if name == "problems" else schema
    try:
        rows = rows.select(expected.names).cast(expected)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"{name}: a column has the wrong type: {error}") from error
    for column in schema.names:
        if column not in NULLABLE[name] and rows[column].null_count:
            raise UserError(f"{name}: column '{column}' has {rows[column].null_count} empty values")
    key = KEYS[name]
    counts = pc.value_counts(rows[key])
    repeated = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        first = repeated[0].as_py()
        raise UserError(f"{name}: {key} '{first['values']}' occurs {first['counts']} times")
    return rows
