"""Rows of an artefact that belong to some problems: a train split is small beside 256 candidates a test problem."""

from collections.abc import Set

import pyarrow as pa
import pyarrow.compute as pc

from minos_ray.store import Artefact


def rows_of_problems(artefact: Artefact, columns: list[str], problem_ids: Set[str]) -> pa.Table:
    """The rows of these problems, `columns` of them with `problem_id`; other rows are in memory a few parts at a time.

    UserError unless the artefact is complete.
    """
    kept = [artefact.nothing(columns)]
    for part in artefact.parts(columns):
        here = [name for name in part["problem_id"].unique().to_pylist() if name in problem_ids]
        if here:
            kept.append(part.filter(pc.is_in(part["problem_id"], value_set=pa.array(here, pa.string()))))
    return pa.concat_tables(kept)
