"""Every method for every n on the same candidates, with intervals, and paired differences.

The outcome of every method on every problem at the n where methods are compared lies in `outcomes.parquet` beside
evaluation.json, for comparisons of runs by problem. Accuracies are also given by category of the problems, such as
MATH's levels and subjects: a category is any column of `problems` that says what kind a problem is: `dataset`, and
whatever stands behind the columns that all problems have.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from minos_ray.config.schema import AGGREGATIONS, Evaluate
from minos_ray.errors import UserError
from minos_ray.evaluation.candidates import Block
from minos_ray.evaluation.selection import Choice, best_of, pass_at, problem_rng, rankings, voters, votes
from minos_ray.evaluation.statistics import Measured, bounded_intervals, flip_test, sign_test
from minos_ray.problems.split import read_problems
from minos_ray.store.columns import SCHEMAS
from minos_ray.store.run import Run

OUTCOMES_FILE = "outcomes.parquet"
OUTCOMES_SCHEMA = pa.schema(
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
# Arrays of scores by verifier, or by (verifier, aggregation).
ByName = Mapping[Any, np.ndarray]


class Method(NamedTuple):
    """A way to choose an answer among n candidates; `aggregation` as in `selection.Choice`."""

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


def write_outcomes(run: Run, outcomes: Mapping[Method, np.ndarray], headline: int, problem_ids: pa.Array) -> None:
    """Writes the methods at the headline n, and pass@1; an outcome is null where a problem has too few candidates."""
    tables, count = [], len(problem_ids)
    for method, values in outcomes.items():
        if not method.aggregation and (method.n == headline or method.name == SINGLE):
            names = [pa.repeat(method.name, count), pa.repeat(method.verifier, count)]
            columns = [problem_ids, *names, pa.repeat(pa.scalar(method.n, pa.int32()), count)]
            columns.append(pa.array(values, pa.float64(), from_pandas=True))
            tables.append(pa.Table.from_arrays(columns, schema=OUTCOMES_SCHEMA))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    run.write_bytes(OUTCOMES_FILE, sink.getvalue().to_pybytes())


def read_outcomes(run: Run) -> pa.Table:
    """All rows; UserError when the run was evaluated by a version that did not write them."""
    if not run.exists(OUTCOMES_FILE):
        manifest = run.at("evaluation.json.manifest.json")
        raise UserError(f"{run.at(OUTCOMES_FILE)} is not there; delete {manifest} and run the stage 'evaluate' again")
    with run.fs.open_input_file(f"{run.root}/{OUTCOMES_FILE}") as source:
        return pq.read_table(source)


def outcomes_of(table: pa.Table, method: str, verifier: str) -> np.ndarray:
    """[problems]: the outcomes of one method in order of problem ids; NaN where a problem has too few candidates."""
    selected = table.filter(pc.and_(pc.equal(table["method"], method), pc.equal(table["verifier"], verifier)))
    return selected.sort_by("problem_id")["outcome"].to_numpy()


def by_category(
    run: Run, problem_ids: Sequence[str], outcomes: Outcomes, headline: int, section: Evaluate
) -> dict[str, list[dict[str, Any]]]:
    """`categories` of evaluation.json: by column with 2 to 40 values a row for each, with every method and difference
    at `headline`.

    Only problems with that many candidates count. Problems without a value are a row of their own, at the end.
    """
    columns = next(run.artefact("problems").parts()).column_names
    names = ["dataset", *(name for name in columns if name not in SCHEMAS["problems"].names)]
    problems = {row["problem_id"]: row for row in read_problems(run, None, ["problem_id", *names]).to_pylist()}
    at_headline = {m: values for m, values in outcomes.items() if (m.n == headline or m.name == SINGLE)}
    methods = {m: values for m, values in at_headline.items() if not m.aggregation}
    pairs = [(a, b) for a, b in paired_methods(outcomes, headline) if a.n == headline]
    measured = np.stack([*methods.values(), *(outcomes[a] - outcomes[b] for a, b in pairs)], axis=1)
    tables = {}
    for name in names:
        values = np.array([problems[problem][name] for problem in problem_ids], dtype=object)
        if not FEWEST <= len({*values} - {None}) <= MOST:
            continue
        tables[name] = []
        # Numbers by size, then words; no value last.
        sizes = {value: float(value) if value is not None and value.isdecimal() else np.inf for value in values}
        for value in sorted(sizes, key=lambda value: (value is None, sizes[value], value or "")):
            chosen = ~np.isnan(measured[:, 0]) & (values == value)
            if chosen.any():
                row = category_row(measured[chosen], list(methods), pairs, section)
                tables[name].append({"value": value, **row})
    return tables


def category_row(
    columns: np.ndarray, methods: list[Method], pairs: list[tuple[Method, Method]], section: Evaluate
) -> dict[str, Any]:
    """Accuracies and paired differences of some problems with their intervals; columns as in `bounded_intervals`."""
    intervals = bounded_intervals(columns, len(methods), section.bootstrap, section.seed)
    mean, low, high = (part.tolist() for part in intervals)
    ends = [{"ci_low": a, "ci_high": b} for a, b in zip(low, high, strict=True)]
    accuracies = [
        {"method": m.name, "verifier": m.verifier, "accuracy": mean[k], **ends[k]} for k, m in enumerate(methods)
    ]
    differences = [
        {"a": a.key, "b": b.key, "difference": mean[k], **ends[k]} for k, (a, b) in enumerate(pairs, len(methods))
    ]
    return {"problems": len(columns), "methods": accuracies, "paired": differences}


@dataclass
class Selected:
    """The expected accuracy of every choice on every problem, gathered block by block.

    `values` [choices, problems, ns] and `single` [problems] (pass@1) are lists of arrays, one for each block.
    Methods are compared at `headline`, one of the ns. `variance` [choices, ns] is the summed Monte Carlo variance of
    the votes, `by_group` [choices, groups] the summed accuracy at `headline`, `left_out` the number of candidates that
    belong to no group. Before `merge`, both sums have the terms of each problem in front: they are added up in the
    order of the problems, so that the sum does not depend on the blocks.
    """

    section: Evaluate
    ns: list[int]
    headline: int
    choices: list[Choice] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    single: list[np.ndarray] = field(default_factory=list)
    left_out: int = 0
    variance: np.ndarray = field(default_factory=lambda: np.zeros(()))
    by_group: np.ndarray = field(default_factory=lambda: np.zeros(()))

    @classmethod
    def for_sizes(cls, sizes: np.ndarray, section: Evaluate) -> "Selected":
        """Empty, for problems with these numbers of candidates, at the ns of the config that some problem has
        candidates for; by default powers of two, and N if nearly all have it. UserError when no problem has enough."""
        of_group = sizes // section.groups
        largest = int(of_group.max(initial=0))
        powers = [2**k for k in range(largest.bit_length())]
        full = [largest] if (of_group == largest).mean() >= NEARLY_ALL else []
        ns = sorted({n for n in section.ns or (*powers, *full) if 0 < n <= largest})
        if not ns:
            keys, most = f"evaluate.groups = {section.groups}, evaluate.ns = {list(section.ns)}", sizes.max(initial=0)
            raise UserError(f"{keys}: no problem has so many candidates; the largest has {most}")
        return cls(section, ns, headline_n({n: int((of_group >= n).sum()) for n in ns}))

    def add(self, block: Block) -> None:
        """Adds the problems of a block; every block has the same verifiers."""
        candidates, groups = block.candidates, self.section.groups
        scores = {name: table.score for name, table in block.scores.items()}
        prms = {name: table for name, table in block.scores.items() if name.startswith("prm")}
        steps: dict[tuple[str, str], np.ndarray]
        steps = {(name, how): table.aggregated(how) for name, table in prms.items() for how in AGGREGATIONS}
        # In the order of the rows of `choose`.
        self.choices = self.choices or [Choice("pass@n"), *rankings(scores, steps), *voters((0,), scores, steps)]
        values = np.full((len(self.choices), candidates.problems, len(self.ns)), np.nan)
        self.variance = np.zeros((candidates.problems, len(self.choices), len(self.ns)))
        self.by_group = np.zeros((candidates.problems, len(self.choices), groups))
        single, ids = np.zeros(candidates.problems), np.array(candidates.problem_ids)
        for problems, rows in candidates.by_size():
            single[problems] = candidates.correct[rows].mean(axis=1)
            size = rows.shape[1] // groups
            self.left_out += len(rows) * (rows.shape[1] - size * groups)
            if ns := [n for n in self.ns if n <= size]:
                dealt = rows[:, : size * groups].reshape(-1, size)
                by_group, by_step = ({k: v[dealt] for k, v in arrays.items()} for arrays in (scores, steps))
                chosen = choose(candidates.clusters[dealt], by_group, by_step, ns, self.section, ids[problems])
                by_group = chosen.values.reshape(len(self.choices), -1, groups, len(ns))
                values[:, problems, : len(ns)] = by_group.mean(axis=2)
                variance = chosen.variance.reshape(len(self.choices), -1, groups, len(ns)).sum(axis=2) / groups**2
                self.variance[problems, :, : len(ns)] = variance.swapaxes(0, 1)
                if len(ns) > self.headline_index:
                    self.by_group[problems] = by_group[..., self.headline_index].swapaxes(0, 1)
        self.problems += ids.tolist()
        self.values.append(values)
        self.single.append(single)

    def merge(self, block: "Selected") -> None:
        """Adds the problems of the block that follows; `block` has added no other."""
        self.choices = block.choices
        self.problems += block.problems
        self.values += block.values
        self.single += block.single
        self.left_out += block.left_out
        for name in ("variance", "by_group"):
            total, rows = getattr(self, name), getattr(block, name)
            setattr(self, name, np.concatenate([np.broadcast_to(total, (1, *rows.shape[1:])), rows]).sum(axis=0))

    @property
    def headline_index(self) -> int:
        """The place of `headline` among the ns."""
        return self.ns.index(self.headline)

    def joined(self) -> np.ndarray:
        """[choices, problems, ns]: `values` of all blocks, of which they become one."""
        if len(self.values) > 1:
            self.values = [np.concatenate(self.values, axis=1)]
        return self.values[0]

    def outcomes(self) -> Outcomes:
        """Accuracy of each problem by method."""
        values = self.joined()
        compared = ~np.isnan(values[0, :, self.headline_index])
        single = {Method(SINGLE, "", 1): np.where(compared, np.concatenate(self.single), np.nan)}
        return single | {method: values[i, :, j] for method, i, j in self.methods()}

    def methods(self) -> list[tuple[Method, int, int]]:
        """The method of each choice (first index) at each n (second index)."""
        return [
            (Method(choice.method, choice.verifier, n, choice.aggregation), i, j)
            for i, choice in enumerate(self.choices)
            for j, n in enumerate(self.ns)
        ]


class Chosen(NamedTuple):
    """Expected accuracies and their Monte Carlo variances, both [choices, rows, ns]."""

    values: np.ndarray
    variance: np.ndarray


def choose(
    clusters: np.ndarray, scores: ByName, steps: ByName, ns: list[int], section: Evaluate, problem_ids: np.ndarray
) -> Chosen:
    """Every choice on equally large problems, or groups of their candidates: arrays [problems * groups, candidates].

    `problem_ids` [problems] seed the random subsets.
    """
    exact = [pass_at(clusters, ns), *(best_of(s, clusters, ns) for s in rankings(scores, steps).values())]

    def rng_of(row: int) -> np.random.Generator:
        problem, group = divmod(row, section.groups)
        return problem_rng(section.seed, problem_ids[problem], group)

    ballots = list(voters(clusters.shape, scores, steps).values())
    voted, variance = votes(clusters, ballots, ns, section.trials, rng_of)
    certain = np.zeros((len(exact), *variance.shape[1:]))
    return Chosen(np.concatenate([np.stack(exact), voted]), np.concatenate([certain, variance]))


def compare(selected: Selected, outcomes: Outcomes, measured: list[Measured]) -> dict[str, Any]:
    """`n`, `methods`, `paired`, `aggregations` and `groups` of evaluation.json; `outcomes` are those of `selected`.

    Rows whose intervals are still to be filled are added to `measured`.
    """
    # Monte Carlo standard errors of sampled methods: random subsets, not random problems.
    entering = (~np.isnan(selected.joined())).sum(axis=1)
    deviations = np.sqrt(selected.variance) / np.maximum(entering, 1)
    errors = {method: float(deviations[i, j]) for method, i, j in selected.methods() if deviations[i, j] > 0}
    methods, aggregations, paired = [], [], []
    for m, values in outcomes.items():
        error = {"se": errors[m]} if m in errors else {}
        row = {"n": m.n, **entry("accuracy", values), **error}
        if m.aggregation:
            aggregations.append({"verifier": m.verifier, "aggregation": m.aggregation, "method": m.name, **row})
        else:
            methods.append({"method": m.name, "verifier": m.verifier, **row})
        measured.append(Measured((aggregations if m.aggregation else methods)[-1], "ci", values))
    for a, b in paired_methods(outcomes, selected.headline):
        difference = entry("difference", outcomes[a] - outcomes[b])
        paired.append({"a": a.key, "b": b.key, "n": a.n, **difference, **p_value(a, b, outcomes, selected)})
        measured.append(Measured(paired[-1], "ci", outcomes[a], outcomes[b]))
    return {
        "n": selected.headline,
        "methods": methods,
        "paired": paired,
        "aggregations": aggregations,
        "groups": by_group(selected),
    }


def entry(name: str, values: np.ndarray) -> dict[str, Any]:
    """The mean of values [problems] as keys of a row, whose interval is still to be filled."""
    entering = values[~np.isnan(values)]
    return {name: float(entering.mean()), "ci_low": None, "ci_high": None, "problems": len(entering)}


def by_group(selected: Selected) -> dict[str, Any]:
    """Accuracies of each group at the headline n, and their standard deviation; empty with one group."""
    if selected.section.groups == 1:
        return {}
    entering = ~np.isnan(selected.joined()[0])
    accuracies = selected.by_group / max(1, entering[:, selected.headline_index].sum())
    return {
        "count": selected.section.groups,
        "n": selected.headline,
        "left_out": selected.left_out,
        "too_few": int(len(selected.problems) - entering.any(axis=1).sum()),
        "methods": [
            {**choice._asdict(), "accuracy": row.tolist(), "sd": float(row.std(ddof=1))}
            for choice, row in zip(selected.choices, accuracies, strict=True)
        ],
    }


def p_value(a: Method, b: Method, outcomes: Outcomes, selected: Selected) -> dict[str, Any]:
    """At the headline n: McNemar's exact test where each problem has one outcome (or a tie), else a sign-flip test."""
    if a.n != selected.headline:
        return {"p_value": None}
    difference = outcomes[a] - outcomes[b]
    if all((2 * values[~np.isnan(values)] % 1 == 0).all() for values in (outcomes[a], outcomes[b])):
        return {"p_value": sign_test(difference), "test": "mcnemar"}
    return {"p_value": flip_test(difference, selected.section.seed), "test": "sign-flip"}
