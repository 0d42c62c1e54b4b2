"""The outcome of every method on every problem, the number of candidates at which methods are compared, the file, and
accuracies by category of the problems, such as MATH's levels and subjects.

`outcomes.parquet` lies beside evaluation.json, for comparisons of runs by problem.

A category is any column of `problems` that says what kind a problem is: `dataset`, and whatever stands behind the
columns that all problems have.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.config.schema import Evaluate
from minos_ray.errors import UserError
from minos_ray.evaluation.statistics import bounded_intervals
from minos_ray.problems.split import read_problems
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Run

NAME = "outcomes.parquet"
SCHEMA = pa.schema(
    {
        "problem_id": pa.string(),
        "method": pa.string(),
        "verifier": pa.string(),
        "n": pa.int32(),
        "outcome": pa.float64(),
    }
)
SINGLE = "pass@1"
# So that a few problems that lack a candidate (a failed request, say) do not halve the n of all.
NEARLY_ALL = 0.95
# One value tells nothing apart; more than these are names or numbers, not kinds.
FEWEST, MOST = 2, 40


class Method(NamedTuple):
    """A way to choose an answer among n candidates; `aggregation` as in `methods.Choice`."""

    name: str
    verifier: str
    n: int
    aggregation: str = ""

    @property
    def key(self) -> str:
        """The name in `paired`: `best-of-n:orm-minos`, `self-consistency`."""
        return f"{self.name}:{self.verifier}" if self.verifier else self.name


# Accuracies [problems] of each method; NaN where a problem has fewer than n candidates, and for pass@1 where it has
# fewer than those at which methods are compared.
Outcomes = dict[Method, np.ndarray]


def headline_n(problems: Mapping[int, int]) -> int:
    """The n at which methods are compared: the largest that nearly all problems have.

    `problems` is the number of problems by n, not empty; the smallest n has all of them.
    """
    enough = NEARLY_ALL * max(problems.values())
    return max(n for n, count in problems.items() if count >= enough)


def headline_of(methods: Iterable[Mapping[str, Any]]) -> int:
    """`headline_n` of entries of `methods` or `aggregations` in evaluation.json; 0 without any."""
    problems = {m["n"]: m["problems"] for m in methods if m["method"] != SINGLE}
    return headline_n(problems) if problems else 0


def paired_methods(outcomes: Outcomes, headline: int) -> list[tuple[Method, Method]]:
    """Minos minus base for each n, and every use of a verifier minus the plain vote at the headline n."""
    by_verifier = [method for method in outcomes if method.verifier and not method.aggregation]
    minos = [method for method in by_verifier if method.verifier.endswith("-minos")]
    gains = [(method, method._replace(verifier=method.verifier.replace("-minos", "-base"))) for method in minos]
    vote = Method("self-consistency", "", headline)
    return [pair for pair in gains if pair[1] in outcomes] + [(m, vote) for m in by_verifier if m.n == headline]


def write(run: Run, outcomes: Mapping[Method, np.ndarray], headline: int, problem_ids: pa.Array) -> None:
    """Writes the methods at the headline n, and pass@1; an outcome is null where a problem has too few candidates."""
    tables = [
        rows(method, values, problem_ids)
        for method, values in outcomes.items()
        if not method.aggregation and (method.n == headline or method.name == SINGLE)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    run.write_bytes(NAME, sink.getvalue().to_pybytes())


def rows(method: Method, values: np.ndarray, problem_ids: pa.Array) -> pa.Table:
    """One row per problem."""
    count = len(problem_ids)
    columns = [
        problem_ids,
        pa.repeat(method.name, count),
        pa.repeat(method.verifier, count),
        pa.repeat(pa.scalar(method.n, pa.int32()), count),
        pa.array(values, pa.float64(), from_pandas=True),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def read(run: Run) -> pa.Table:
    """All rows; UserError when the run was evaluated by a version that did not write them."""
    if not run.exists(NAME):
        manifest = run.at("evaluation.json.manifest.json")
        raise UserError(f"{run.at(NAME)} is not there; delete {manifest} and run the stage 'evaluate' again")
    with run.fs.open_input_file(f"{run.root}/{NAME}") as source:
        return pq.read_table(source)


def values(table: pa.Table, method: str, verifier: str) -> np.ndarray:
    """[problems]: the outcomes of one method in order of problem ids; NaN where a problem has too few candidates."""
    selected = table.filter(pc.and_(pc.equal(table["method"], method), pc.equal(table["verifier"], verifier)))
    return selected.sort_by("problem_id")["outcome"].to_numpy()


def read_categories(run: Run, problem_ids: list[str]) -> dict[str, list[str | None]]:
    """By column the value of each problem, for the columns with 2 to 40 values."""
    columns = next(run.artefact("problems").parts()).column_names
    names = ["dataset", *(name for name in columns if name not in SCHEMAS["problems"].names)]
    rows = {row["problem_id"]: row for row in read_problems(run, None, ["problem_id", *names]).to_pylist()}
    values = {name: [rows[problem][name] for problem in problem_ids] for name in names}
    return {name: column for name, column in values.items() if FEWEST <= len({*column} - {None}) <= MOST}


def by_category(
    categories: dict[str, list[str | None]], outcomes: Outcomes, headline: int, section: Evaluate
) -> dict[str, list[dict[str, Any]]]:
    """`categories` of evaluation.json: by column a row for each value, with every method and difference at `headline`.

    Only problems with that many candidates count. Problems without a value are a row of their own, at the end.
    """
    at_headline = {m: values for m, values in outcomes.items() if (m.n == headline or m.name == SINGLE)}
    methods = {m: values for m, values in at_headline.items() if not m.aggregation}
    pairs = [(a, b) for a, b in paired_methods(outcomes, headline) if a.n == headline]
    columns = np.stack([*methods.values(), *(outcomes[a] - outcomes[b] for a, b in pairs)], axis=1)
    compared = ~np.isnan(columns[:, 0])
    tables = {}
    for name, values in categories.items():
        of_problem = np.array(values, dtype=object)
        rows = []
        for value in sorted({*values}, key=order):
            chosen = compared & (of_problem == value)
            if chosen.any():
                rows.append({"value": value, **measured(columns[chosen], list(methods), pairs, section)})
        tables[name] = rows
    return tables


def order(value: str | None) -> tuple[bool, float, str]:
    """Numbers by size, then words; no value last."""
    number = float(value) if value is not None and value.isdecimal() else np.inf
    return value is None, number, value or ""


def measured(
    columns: np.ndarray, methods: list[Method], pairs: list[tuple[Method, Method]], section: Evaluate
) -> dict[str, Any]:
    """Accuracies and paired differences of some problems with their intervals; columns as in `bounded_intervals`."""
    mean, low, high = (
        part.tolist() for part in bounded_intervals(columns, len(methods), section.bootstrap, section.seed)
    )
    ends = [{"ci_low": a, "ci_high": b} for a, b in zip(low, high, strict=True)]
    accuracies = [
        {"method": m.name, "verifier": m.verifier, "accuracy": mean[k], **ends[k]} for k, m in enumerate(methods)
    ]
    differences = [
        {"a": a.key, "b": b.key, "difference": mean[k], **ends[k]} for k, (a, b) in enumerate(pairs, len(methods))
    ]
    return {"problems": len(columns), "methods": accuracies, "paired": differences}
